"""Stored results are found by today's presets as before; rows of a preset's own; what a score keeps of every text;
what is refused in a preset."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hpt_nb import experiments as ex
from hpt_nb import pool, scores
from hpt_nb.arrays import decode_logp, encode_logp
from hpt_nb.cli import main
from hpt_nb.experiments import eval_config, facts, load_preset, presets, vocab_config
from hpt_nb.frames import frame
from hpt_nb.scoring import label_logprobs
from hpt_nb.store import Store, config_hash, status
from hpt_nb.tasks import load_task
from tiny import tiny_lm
from tiny_run import PRESET, make_place

RESULTS = Path(__file__).parent.parent / "results"
STORED = [("offline", "offline"), ("study-agnews", "study-agnews")]
OWN = """
[manual]
"mine.toml" = ["Good or bad? ", "Review:"]
[row.Ours-exact]
like = "Ours"
h = "exact"
seeds = [0]
[row."Common+labels"]
like = "CommonVocab-pruned"
add_labels = true
s = 20
[row.Common]
like = "CommonVocab-pruned"
s = "all"
[row.PEZ-centred]
like = "PEZ"
objective = "centred"
seeds = [1]
"""
MORE = (
    PRESET.replace("s = 40", "s = 40\nh = 30")
    .replace("steps = 30", "steps = 4\nmoments = [0, 2, 4]")
    .replace("eval_every = 10", "eval_every = 2")
    + "[scoring]\nholdout = 6\n"
    + OWN
)


def stored(folder):
    found = RESULTS / folder
    if not found.exists():
        found = RESULTS / f"{folder}.pack"
    if not found.exists():
        pytest.skip(f"{folder} is retired")
    return Store(found)


def fake_lm(cell):
    "What identity asks of a model, as a cell says it."
    return SimpleNamespace(name=cell["target"], info=dict(sha256=cell["target_id"]))


@pytest.mark.parametrize("folder, name", STORED)
def test_stored_cells_are_found_by_todays_preset(folder, name):
    """A published PEZ run, its scores and vocabularies have the identity that this code gives them; a setting that
    was not there then is not named."""
    store, preset, seen = stored(folder), load_preset(name), Counter()
    for cell in store.cells("tune"):
        c = cell["config"]
        if c["method"] != "pez":
            continue
        cfg = replace(preset.config_for("pez", c["task"], c["row"]), steps=c["steps"])
        now = {
            k: c[k]
            for k in (
                "task",
                "task_hash",
                "source",
                "source_id",
                "counterpart",
                "row",
                "method",
                "vocab",
                "seed",
                "dtype",
            )
        } | facts(cfg)
        assert config_hash(now) == cell["hash"], set(now) ^ set(c)
        seen["tune"] += 1
    for cell in store.cells("eval"):
        c = cell["config"]
        now = eval_config(
            preset,
            SimpleNamespace(name=c["task"], hash=c["task_hash"]),
            c["n"],
            c,
            fake_lm(c),
            c["role"],
            c["mode"],
            c["prompt_ids"],
        )
        assert config_hash(now) == cell["hash"], set(now) ^ set(c)
        seen["eval"] += 1
    for cell in store.cells("vocab"):
        assert (
            config_hash(vocab_config(preset.vocab, cell["config"]["models"]) | dict(ids=cell["config"]["ids"]))
            == cell["hash"]
        )
    assert seen["tune"] and seen["eval"]


@pytest.mark.parametrize("name", [p for p in presets() if p.startswith("study-")])
def test_presets_of_the_study(name):
    "Each says what it is for, shows the start, and asks for the format, vocabulary and texts that all of them share."
    preset = load_preset(name)
    (task,) = preset.tasks
    assert len(preset.about) > 40 and preset.holdout == 200 and preset.tuning_dtype == "bfloat16"
    assert (preset.vocab.k, preset.vocab.h, preset.vocab.repeats, preset.vocab.s, preset.vocab.tokens) == (
        64,
        8192,
        5,
        8192,
        "words",
    )
    assert preset.n_for(task) == (300 if task == "ag_news" else 400)
    cfg = preset.tuning_for(task)
    assert (cfg.batch, cfg.n_tokens, cfg.holdout_n, cfg.lr) == (16, 10, 200, 0.3) and cfg.eval_every in (25, 50)
    assert all("qwen2.5-coder-0.5b" in s.targets and "qwen2.5-coder-0.5b" not in s.counterparts for s in preset.sources)
    if name != "study-check":
        assert {"Empty", "Start"} <= set(preset.rows) and len(preset.manual[task]) == 3
    assert len(ex.pieces(preset, {task: None})) > 3


def test_the_check_finds_what_the_study_tuned():
    main_, check = load_preset("study-main"), load_preset("study-check")
    for row in ("PEZ", "Ours"):
        assert check.config_for("pez", "sst2", row) == main_.config_for("pez", "sst2", row)
        assert set(check.seeds_of(row)) <= set(main_.seeds_of(row))
    assert (check.vocab, check.tuning_dtype, check.n, check.holdout) == (
        main_.vocab,
        main_.tuning_dtype,
        main_.n,
        main_.holdout,
    )
    assert check.scoring_dtype == "float32" != main_.scoring_dtype


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    "A run with rows of its own; and a plain one beside it."
    d = make_place(tmp_path_factory.mktemp("own"), MORE)
    (d / "plain.toml").write_text(MORE.replace(OWN, ""))
    with pytest.MonkeyPatch.context() as m:
        m.chdir(d)
        assert main(["run", "plain.toml", "--out", "plain", "--quiet"]) == 0
        assert main(["run", "preset.toml", "--out", "own", "--quiet"]) == 0
    return d


def test_rows_of_a_presets_own(ran):
    store = Store(ran / "own")
    assert not store.failures() and set(status(store).state) == {"done"}
    rows = Counter((c["config"]["row"], c["config"]["source"]) for c in store.cells("tune"))
    assert {rows[row, "one"] for row in ("PEZ", "Ours", "Common+labels", "Common")} == {2} and rows[
        "Ours-exact", "one"
    ] == rows["PEZ-centred", "one"] == 1
    plain = {c["hash"] for c in Store(ran / "plain").cells("tune")}
    assert plain < {c["hash"] for c in store.cells("tune")}  # rows that are nobody's own keep their identity
    assert all(("arm" in c["config"]) == (c["config"]["row"] not in ex.ROWS) for c in store.cells("tune"))
    assert len(store.cells("vocab")) == 2  # the sampled one and the exact one
    task, lm = load_task(ran / "mine.toml"), tiny_lm("llama3", 0)
    first = set(ex.label_tokens(lm, task, True))
    for c in store.cells("tune"):
        if c["config"]["row"] == "Common+labels" and c["config"]["source"] == "one":
            assert 20 <= c["config"]["vocab"]["s"] <= 20 + len(first)
        if c["config"]["row"] == "Common":
            assert c["config"]["vocab"]["seed"] is None


def test_every_text_of_a_score_is_kept(ran):
    """The log-probabilities are those of the library's own function, of the validation texts and the holdout texts,
    to 16 bits; and the counts follow from them."""
    df = frame(ran / "own")
    task = load_task(ran / "mine.toml")
    held = task.subset("holdout", 6, seed=0)
    lms = {"one": tiny_lm("llama3", 0), "two": tiny_lm("gemma3", 1)}
    for r in df.sample(12, random_state=0).itertuples():
        want = label_logprobs(lms[r.target], task, (*task.validation.texts, *held.texts), r.prompt_ids).numpy()
        got = np.concatenate([r.logp, r.holdout_logp])
        assert np.abs(got - want).max() < 2e-3 * max(1, np.abs(want).max())
        assert r.labels.tolist() == list(task.validation.labels) and r.holdout_labels.tolist() == list(held.labels)
        sure = np.abs(want[: r.n, 0] - want[: r.n, 1]) > 1e-2
        assert abs((want[: r.n].argmax(1) == r.labels).sum() - r.correct) <= (~sure).sum()


def test_start_and_moments(ran):
    df = frame(ran / "own", logp=False)
    for _, g in df[df["mode"] == "ids"].groupby("source"):
        start = g[g.row == "Start"]
        assert len(start) == 1 and pd_missing(start.seed.iloc[0])
        tuned = g[(g.row == "PEZ") & (g.steps == 4)]
        assert all(ids == start.prompt_ids.iloc[0] for ids in tuned.start_ids)  # each run began there
        zero = g[(g.row == "PEZ moment") & (g.steps == 0)]
        assert len(zero) == 2 and all(ids == start.prompt_ids.iloc[0] for ids in zero.prompt_ids)
    manual = df[df.row == "Manual 1"]
    assert set(manual.prompt_text) == {"Good or bad? "} and len(manual) == 2 * 3


def pd_missing(x):
    import pandas as pd

    return pd.isna(x)


def test_going_on_computes_nothing_twice(ran, monkeypatch):
    monkeypatch.chdir(ran)
    before = {p.name: p.stat().st_mtime_ns for p in (ran / "own" / "cells").iterdir()}
    gone = sorted(n for n in before if n.startswith(("eval", "reading")))[::5]
    whole = {c["hash"]: c["result"]["logp"] for c in Store(ran / "own").cells("eval")}
    for n in gone:
        (ran / "own" / "cells" / n).unlink()
    assert main(["run", "preset.toml", "--out", "own", "--quiet"]) == 0
    after = {p.name: p.stat().st_mtime_ns for p in (ran / "own" / "cells").iterdir()}
    assert after.keys() == before.keys() and all(after[n] == before[n] for n in before if n not in gone)
    assert {c["hash"]: c["result"]["logp"] for c in Store(ran / "own").cells("eval")} == whole


def test_texts_are_tokenised_once_for_each_model_and_the_models_loaded_once(ran, tmp_path, monkeypatch):
    monkeypatch.chdir(ran)
    made, loads = [], []
    real, load = scores.text_ids, pool.load_lm
    monkeypatch.setattr(scores, "text_ids", lambda lm, task, texts: made.append(lm.name) or real(lm, task, texts))
    monkeypatch.setattr(pool, "load_lm", lambda name, **kw: loads.append(name) or load(name, **kw))
    ex.run_preset(load_preset("preset.toml"), tmp_path / "out", progress=False)
    assert Counter(made) == {"one": 1, "two": 1}
    assert Counter(loads) == {"./one": 1, "./two": 1}


def test_several_prompts_share_a_pass(ran):
    "What a GPU does by itself: a call of several prompts gives each what it has alone."
    task, lm = load_task(ran / "mine.toml"), tiny_lm("gemma3", 1)
    scoring = ex.Scoring(lm, task, task.validation, task.subset("holdout", 6, seed=0))
    prompts = torch.randint(300, (5, 4), generator=torch.Generator().manual_seed(0)).tolist()
    alone = torch.stack([scoring.logp([p])[0] for p in prompts])
    assert torch.allclose(scoring.logp(prompts), alone, atol=1e-5)
    assert scoring.logp([[], []]).shape == (2, 30, 2)
    together, apart = scoring.results(prompts), [scoring.results([p])[0] for p in prompts]
    assert [r["correct"] for r in together] == [r["correct"] for r in apart]


def test_shared_passes_give_a_run_the_same_counts(ran, tmp_path, monkeypatch):
    monkeypatch.chdir(ran)
    monkeypatch.setattr(ex.Scoring, "together", lambda self, p: 7)
    store = ex.run_preset(load_preset("preset.toml"), tmp_path / "out", progress=False)
    assert not store.failures()
    here, there = (
        {
            c["hash"]: (c["result"]["correct"], decode_logp(c["result"]["logp"], c["result"]["n"]))
            for c in Store(d).cells("eval")
        }
        for d in (tmp_path / "out", ran / "own")
    )
    assert here.keys() == there.keys()
    assert all(abs(here[h][0] - there[h][0]) <= 1 and np.abs(here[h][1] - there[h][1]).max() < 5e-3 for h in here)
    read = [
        {c["hash"]: c["result"]["perplexity"] for c in Store(d).cells("reading")}
        for d in (tmp_path / "out", ran / "own")
    ]
    assert read[0].keys() == read[1].keys()
    assert all(a == b or abs(a / b - 1) < 1e-3 for a, b in zip(read[0].values(), read[1].values()))


def test_a_prompt_that_cannot_be_scored_fails_alone(ran, tmp_path, monkeypatch):
    monkeypatch.chdir(ran)
    real, odd = ex.Scoring.results, {tuple(lm.encode("Review:")) for lm in (tiny_lm("llama3", 0), tiny_lm("gemma3", 1))}

    def broken(self, prompts):
        if odd & set(map(tuple, prompts)):
            raise MemoryError("too long")
        return real(self, prompts)

    monkeypatch.setattr(ex.Scoring, "results", broken)
    monkeypatch.setattr(ex.Scoring, "together", lambda self, p: 3)
    store = ex.run_preset(load_preset("preset.toml"), tmp_path / "out", progress=False)
    assert {(f["config"]["row"], f["reason"]) for f in store.failures()} == {("Manual 2", "MemoryError: too long")}
    assert len(store.failures()) + len(store.cells("eval")) == len(Store(ran / "own").cells("eval"))


@pytest.mark.parametrize(
    "old, new, says",
    [
        (
            '[row.Ours-exact]\nlike = "Ours"',
            '[row.Ours-exact]\nlike = "Hours"',
            "like = 'Hours'; need the row that it is like",
        ),
        ('h = "exact"\nseeds', 'h = "all"\nseeds', "[row.Ours-exact]: h = 'all'"),
        ('seeds = [0]\n[row."Common', 'seeds = [7]\n[row."Common', "seeds names 7"),
        ("add_labels = true", 'add_labels = "yes"', "need true or false"),
        ('s = "all"', "s = -1", "s = -1; need a number of tokens"),
        ('objective = "centred"', 'objective = "central"', "objective='central'"),
        ('[manual]\n"mine.toml"', "[manual]\nother", "unknown key 'other'"),
        ('["Good or bad? ", "Review:"]', '"Review:"', "need a list of different texts"),
        ("holdout = 6", "holdout = -6", "holdout = -6; need a number of holdout texts"),
        ("moments = [0, 2, 4]", "moments = [0, 3]", "moments 3; need multiples of eval_every = 2"),
        ("[row.Common]", "[row.Empty]", "[row.Empty]: unknown key 'like'"),
    ],
)
def test_a_wrong_key_is_one_line(ran, monkeypatch, capsys, old, new, says):
    monkeypatch.chdir(ran)
    assert old in MORE
    (ran / "bad.toml").write_text(MORE.replace(old, new))
    assert main(["run", "bad.toml", "--out", "bad", "--quiet"]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1 and "Traceback" not in err and not (ran / "bad").exists()


def test_arrays_survive_and_damage_is_refused():
    logp = torch.randn(50, 3, generator=torch.Generator().manual_seed(1)).log_softmax(-1).numpy()
    assert np.abs(decode_logp(encode_logp(logp), 50) - logp).max() < 4e-3
    assert encode_logp(logp) == encode_logp(logp.astype(np.float64))
