"""The studies that tune nothing, in small, on three tiny models in folders: resumed, prepared elsewhere, read back,
refused."""

import os
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hpt_nb import effects_study, premise, readability, strata, strata_study
from hpt_nb.cli import main
from hpt_nb.models import load_lm
from hpt_nb.presets import VocabConfig
from hpt_nb.premise import EffectsStudy, Part, read_effects, read_tokens, run_effects
from hpt_nb.scoring import label_logprobs
from hpt_nb.store import InputError, Store
from hpt_nb.strata import STRATA, StrataStudy, read_strata, run_strata
from hpt_nb.tasks import load_task
from hpt_nb.vocabularies import stored_vocab
from tiny import tiny_lm
from tiny_run import make_place

EFFECTS = EffectsStudy(
    models=("./one", "./two", "./three"),
    parts=(Part("mine", "shift", 30, 8), Part("mine", "separation", 12, 16)),
    ks=(4, 8),
    h=20,
    repeats=2,
    k=8,
    dtype="float32",
)
RANDOM = StrataStudy(
    models=("./one", "./two"),
    others=("./three",),
    task="mine",
    texts=8,
    unlabelled=4,
    prompts=5,
    n_tokens=3,
    s=40,
    k=8,
    dtype="float32",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    d, old = make_place(tmp_path_factory.mktemp("studies")), os.getcwd()
    lm = tiny_lm("qwen2", 2)
    lm.model.save_pretrained(d / "three"), lm.tokenizer.save_pretrained(d / "three")
    os.chdir(d)
    yield d
    os.chdir(old)


WORDS = SimpleNamespace(zipf_frequency=lambda word, language: 2 + len(word) % 3)


@pytest.fixture(autouse=True)
def frequencies(monkeypatch):
    "Frequencies of our own, so that no test needs wordfreq."
    monkeypatch.setitem(sys.modules, "wordfreq", WORDS)
    readability._frequency.cache_clear()
    yield
    readability._frequency.cache_clear()


@pytest.fixture(scope="module")
def whole(place):
    "The folder of a finished study of effects; nobody writes in it."
    with pytest.MonkeyPatch.context() as m:
        m.setitem(sys.modules, "wordfreq", WORDS)
        readability._frequency.cache_clear()  # another file's test may have found the real one
        return run_effects(place / "whole", EFFECTS, data=".", progress=False).path


def files(folder):
    return {p.name: p.read_bytes() for p in (folder / "cells").iterdir()}


def test_effects_in_small(whole, tmp_path, monkeypatch):
    store = Store(shutil.copytree(whole, tmp_path / "e"))
    assert [len(store.cells(k)) for k in ("effect_tokens", "effect_agreement", "effect")] == [1, 3 * 2 * 2, 3 * 2]
    tokens, task = read_tokens(store), load_task("mine.toml")
    assert len(tokens.texts) == 30 and set(tokens.kinds) <= {"word", "piece", "other"} and len(tokens.J) == 12
    for part in EFFECTS.parts:
        effects = read_effects(store, part)
        assert sorted(effects) == ["one", "three", "two"]
        split = task.subset("validation", part.texts, seed=0)
        rows = effects["two"].rows
        assert len(rows) == part.tokens and rows == sorted(set(rows))
        lm, u = load_lm("./two", dtype="float32"), 5
        token = store.cells("effect_tokens")[0]["result"]["ids"]["two"][rows[u]]
        change = label_logprobs(lm, task, split.texts, [token]) - label_logprobs(lm, task, split.texts)
        if part.effect == "shift":
            want = (change - change.mean(1, keepdim=True)).mean(0)
        else:
            margin, sign = change[:, 1] - change[:, 0], torch.tensor([2.0 * y - 1 for y in split.labels])
            want = ((margin - margin.mean()) * sign).mean()[None]
        assert np.allclose(effects["two"].whole[u], want.numpy(), atol=5e-3)
    before = files(tmp_path / "e")
    monkeypatch.setattr(effects_study, "token_logprobs", lambda *a, **kw: pytest.fail("computed again"))
    monkeypatch.setattr(effects_study, "stability", lambda *a, **kw: pytest.fail("computed again"))
    run_effects(tmp_path / "e", EFFECTS, data=".", progress=False)
    assert files(tmp_path / "e") == before


def test_effects_prepared_first_are_the_same_and_need_no_word_list_then(whole, tmp_path, monkeypatch):
    def cells(folder):
        return {
            c["hash"]: c["result"]
            for k in ("effect_tokens", "effect_agreement", "effect")
            for c in Store(folder).cells(k)
        }

    run_effects(tmp_path / "two", EFFECTS, data=".", progress=False, prepare=True)
    assert not Store(tmp_path / "two").cells("effect")
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    readability._frequency.cache_clear()
    run_effects(tmp_path / "two", EFFECTS, data=".", progress=False)
    assert cells(tmp_path / "two") == cells(whole)
    with pytest.raises(InputError, match="pip install wordfreq"):
        run_effects(tmp_path / "none", EFFECTS, data=".", progress=False)


def test_effects_tables_of_the_study(whole):
    store = Store(whole)
    tokens, effects = read_tokens(store), read_effects(store, EFFECTS.parts[0])
    with pytest.raises(InputError, match="no J of .* K = 64"):
        premise.by_fifths(tokens, effects, draws=5)
    table = premise.agreement_table(effects, premise.grouping(tokens, effects, (8, "exact")), draws=20)
    assert len(table) == 3 * 5 and table.n.eq(6).all() and table.r.between(-1, 1).all()
    found = premise.by_variant(tokens, effects, draws=20)
    assert set(found) == {(k, h) for k in (4, 8) for h in ("exact", 20)} and all(
        len(c["pairs"]) == 3 for c in found.values()
    )
    assert len(premise.overall(effects, draws=5)) == 3


def test_strata_in_small(place, tmp_path, monkeypatch):
    store = run_strata(tmp_path / "s", RANDOM, data=".", progress=False)
    assert [len(store.cells(k)) for k in ("strata_prompts", "strata")] == [1, 3 * (len(STRATA) + 1)]
    found, task = store.cells("strata_prompts")[0]["result"], load_task("mine.toml")
    models = {n: load_lm(f"./{n}", dtype="float32") for n in ("one", "two", "three")}
    for name in STRATA:
        assert len(set(found[name]["texts"])) == 5 <= found[name]["draws"]
        for text in found[name]["texts"]:
            assert len(models["one"].encode(text)) == len(models["two"].encode(text)) == 3
            assert models["three"].decode(models["three"].encode(text)) == text
    judged, held = task.subset("validation", 8, seed=0), task.subset("holdout", 4, seed=0)
    worths = {m: read_strata(store, m) for m in ("accuracy", "calibrated", "auc")}
    for model, lm in models.items():
        for i, text in enumerate(found["top"]["texts"][:2]):
            logp, free = label_logprobs(lm, task, judged.texts, text), label_logprobs(lm, task, held.texts, text)
            y = torch.tensor(judged.labels)
            assert worths["accuracy"][model, "top"].worth[i] == pytest.approx(
                float((logp.argmax(1) == y).double().mean())
            )
            assert worths["calibrated"][model, "top"].worth[i] == pytest.approx(
                float(((logp - free.mean(0)).argmax(1) == y).double().mean())
            )
    assert worths["auc"]["one", "none"].worth.shape == (1,)
    assert (
        len(strata.carry_table(worths["auc"])) == 6 * 6
        and len(strata.choosing_table(worths["auc"], (1, 4), draws=5)) == 6 * 6 * 2
    )
    assert (
        len(strata.contrast_table(worths["auc"], 4, draws=5)) == len(strata.CONTRASTS)
        and len(strata.worth_table(worths["auc"])) == 18
    )
    before = files(tmp_path / "s")
    monkeypatch.setattr(strata_study, "label_logprobs_many", lambda *a, **kw: pytest.fail("computed again"))
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    readability._frequency.cache_clear()
    run_strata(tmp_path / "s", RANDOM, data=".", progress=False)
    assert files(tmp_path / "s") == before


def test_top_and_bottom_are_the_ends_of_the_ranking(place):
    from hpt_nb.neighbors import stable_vocab

    lms = [load_lm(f"./{n}", dtype="float32") for n in ("one", "two")]
    vocab = stable_vocab(lms, k=8)
    parts = strata.strata_of(vocab, 40)
    least, most = min(parts["top"].J), max(parts["bottom"].J)
    assert (
        least >= most
        and set(parts["top"].tokens) == set(vocab.tokens[:40])
        and set(parts["bottom"].tokens) == set(vocab.tokens[-40:])
    )
    assert set(parts["top-matched"].tokens) <= set(parts["top"].tokens) and not set(parts["matched"].tokens) & set(
        parts["top"].tokens
    )
    z = {name: sorted(readability.word_zipf(t) for t in parts[name].tokens) for name in ("matched", "top-matched")}
    assert np.allclose(z["matched"], z["top-matched"], atol=strata.CALIPER)


@pytest.mark.parametrize(
    "says, run",
    {
        "9999 texts asked of validation of mine": lambda out: run_strata(
            out, StrataStudy(models=("./one", "./two"), others=(), task="mine", texts=9999), data="."
        ),
        "no such folder": lambda out: run_strata(out, RANDOM, data="./nowhere"),
        "no task 'other'": lambda out: run_effects(
            out, EffectsStudy(models=("./one", "./two"), parts=(Part("other", "shift", 5, 8),)), data="."
        ),
        "fewer than 2": lambda out: run_effects(
            out, EffectsStudy(models=("./one", "./two"), parts=(Part("mine", "shift", 5, 3),)), data="."
        ),
        "tokens requested from a vocabulary": lambda out: run_effects(
            out, EffectsStudy(models=("./one", "./two"), parts=(Part("mine", "shift", 5000, 8),), k=8), data="."
        ),
        "do not overlap": lambda out: run_strata(
            out, StrataStudy(models=("./one", "./two"), others=(), task="mine", texts=8, unlabelled=4, k=8), data="."
        ),
    }.items(),
)
def test_bad_input_is_refused_before_the_work(place, tmp_path, says, run):
    with pytest.raises(InputError, match=says):
        run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_small_study_beside_a_run_takes_its_vocabulary_and_needs_no_word_list(place, tmp_path, monkeypatch):
    "As `make report` measures effects: the same tokens and numbers as alone, and nothing is compared twice."
    few = dict(models=("./one", "./two"), parts=(Part("mine", "shift", 20, 8),), ks=(8,), k=8, h=0)
    few = EffectsStudy(**few, dtype="float32", words=False)
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    readability._frequency.cache_clear()
    alone = run_effects(tmp_path / "alone", few, data=".", progress=False)
    beside = Store(tmp_path / "beside")
    stored_vocab(beside, [load_lm(f"./{n}", dtype="float32") for n in ("one", "two")], VocabConfig(k=8))
    for name in ("stability", "stable_vocab"):
        monkeypatch.setattr(effects_study, name, lambda *a, **kw: pytest.fail("compared again"))
    run_effects(beside.path, few, data=".", progress=False)
    for kind in ("effect_tokens", "effect_agreement", "effect"):
        assert [c["result"] for c in beside.cells(kind)] == [c["result"] for c in alone.cells(kind)] != []


def test_a_folder_without_the_study_is_refused(tmp_path):
    with pytest.raises(InputError, match="hpt study strata"):
        read_strata(Store(tmp_path), "auc")
    with pytest.raises(InputError, match="hpt study effects"):
        read_tokens(Store(tmp_path))
    with pytest.raises(InputError, match="hpt study effects"):
        read_effects(Store(tmp_path), EFFECTS.parts[0])


def test_the_command_runs_a_study(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hpt_nb.strata_study.SMALL", RANDOM)
    monkeypatch.setattr("hpt_nb.effects_study.SMALL", EFFECTS)
    assert (
        main(["study", "strata", "--small", "--data", ".", "--out", str(tmp_path / "s"), "--quiet", "--device", "cpu"])
        == 0
    )
    assert "1 strata_prompts, 21 strata in" in capsys.readouterr().out
    assert (
        main(["study", "effects", "--small", "--prepare", "--data", ".", "--out", str(tmp_path / "e"), "--quiet"]) == 0
    )
    assert "1 effect_tokens, 12 effect_agreement, 0 effect in" in capsys.readouterr().out
    assert main(["study", "other", "--out", str(tmp_path / "x")]) == 2


def test_both_rooms_correct_from_the_same_reliability_on():
    from hpt_nb.stats import LEAST_RELIABILITY, corrected

    assert premise.LEAST == LEAST_RELIABILITY
    g = np.random.default_rng(0)
    truth, logp = g.normal(size=200), lambda x: np.stack([-x / 2, x / 2], -1)
    a, b = (
        premise.measured(
            "shift", logp(truth[:, None] + g.normal(size=(200, 12))), np.zeros((12, 2)), [0, 1] * 6, splits=1
        )
        for _ in range(2)
    )
    found = {k: v[0] for k, v in premise.agreement_of(a, b, premise.token_draws(200, 0)).items()}
    assert found["corrected"] == pytest.approx(
        corrected(found["r"], found["reliability_a"], found["reliability_b"]), rel=1e-5
    )
