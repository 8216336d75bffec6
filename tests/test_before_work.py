"""What can be refused is refused before the work: places that cannot be written, folders of other results; and as
many classes as there are."""

import json
import os
from pathlib import Path

import pytest

from hpt_nb.arrays import kept_labels, label_numbers
from hpt_nb.cli import main
from hpt_nb.experiments import model_size
from hpt_nb.models import load_lm
from hpt_nb.experiments import count_weights
from hpt_nb.scoring import evaluate, label_logprobs
from hpt_nb.soft import evaluate_vectors
from hpt_nb.store import Store
from hpt_nb.tasks import Split, Task
from tiny import tiny_gguf, tiny_lm
from tiny_run import PRESET, make_place

SMALL = ["--steps", "2", "--batch", "2", "--tokens", "3", "--holdout", "8", "--quiet", "--dtype", "float32"]
FEW = PRESET.split('[[source]]\nmodel = "./two"')[0] + "[vocab]" + PRESET.split("[vocab]")[1]
FEW = (
    FEW.replace("seeds = [0, 1]", 'rows = ["Empty", "PEZ", "Ours"]\nseeds = [0]')
    .replace("steps = 30", "steps = 4")
    .replace("eval_every = 10", "eval_every = 2")
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    d, old = make_place(tmp_path_factory.mktemp("before"), FEW), os.getcwd()
    os.chdir(d)
    (d / "file").write_text("")
    assert main(["run", "preset.toml", "--out", "ran", "--quiet"]) == 0
    assert main(["tune", "./one", "--task", "mine.toml", *SMALL, "--out", "tuned"]) == 0
    assert (
        main(
            [
                "transferable",
                "--task",
                "mine.toml",
                "--models",
                "./two",
                "./one",
                *SMALL,
                "--k",
                "8",
                "--top",
                "40",
                "--seeds",
                "0",
                "--out",
                "made",
            ]
        )
        == 0
    )
    yield d
    os.chdir(old)


def tree(folder):
    return {p: p.stat().st_mtime_ns for p in Path(folder).rglob("*") if p.is_file()}


@pytest.fixture
def idle(monkeypatch):
    "No work may begin."

    def begun(*a, **k):
        raise AssertionError("work has begun")

    for name in (
        "hpt_nb.vocab.ids_by_text",
        "hpt_nb.pez.run_pass",
        "hpt_nb.scoring.PrefixScorer.logits",
        "hpt_nb.report.results_frame",
    ):
        monkeypatch.setattr(name, begun)


def refused(capsys, says, *argv):
    before = tree(".")
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.count("\n") == 1 and says in err, (code, out, err)
    assert tree(".") == before


# ---- places ----

PLACES = [
    ("file/x", "something else stands there"),
    ("n" * 300, "shorter name"),
    ("new/" + "n" * 300 + "/x", "shorter name"),
]
COMMANDS = {
    "vocab": (["vocab", "./one", "./two", "--out"], ".parquet"),
    "stability": (["stability", "./one", "./two", "--k", "8", "--out"], ".parquet"),
    "tune": (["tune", "./one", "--task", "mine.toml", *SMALL, "--out"], ""),
    "run": (["run", "preset.toml", "--quiet", "--out"], ""),
    "report": (["report", "ran", "--out"], ""),
    "transferable": (["transferable", "--task", "mine.toml", "--models", "./two", "./one", *SMALL, "--out"], ""),
    "export json": (["export", "made", "--to", "json", "--out"], ".json"),
    "export peft": (["export", "made", "--to", "peft", "--out"], ""),
    "export python": (["export", "made", "--to", "python", "--out"], ".py"),
    "export lm-eval": (["export", "made", "--to", "lm-eval", "--out"], ""),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("out, says", PLACES, ids=["in a file", "a long name", "in a long name"])
def test_a_place_that_cannot_be_written(place, capsys, idle, command, out, says):
    argv, suffix = COMMANDS[command]
    refused(
        capsys,
        "cannot be read"
        if command in ("tune", "transferable") and out.startswith("n" * 9)
        else "is a file"
        if command in ("tune", "transferable") and out.startswith("file")
        else says,
        *argv,
        out + suffix,
    )


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="for root, permissions are no hindrance")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_may_not_be_written(place, tmp_path, capsys, idle, command):
    tmp_path.chmod(0o555)
    argv, suffix = COMMANDS[command]
    try:
        refused(capsys, "name a folder that you can write to", *argv, tmp_path / ("new" + suffix))
    finally:
        tmp_path.chmod(0o755)


# ---- folders of other results ----


def preset(name, *changes):
    text = FEW
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    Path(name).write_text(text)
    return name


@pytest.mark.parametrize(
    "change, says",
    [
        (("steps = 4", "steps = 6"), "steps is 4 in the results, 6"),
        (("batch = 4", "batch = 2"), "batch is 4"),
        (("n_tokens = 4", "n_tokens = 3"), "n_tokens is 4"),
        (("holdout_n = 8", "holdout_n = 4"), "holdout_n is 8"),
        (("k = 8", "k = 4"), "k is 8"),
        (("s = 40", "s = 30"), "vocabulary size s is 40"),
        (('dtype = "float32"', 'dtype = "bfloat16"'), "dtype is 'float32'"),
        (("[vocab]", "[scoring]\nn = 12\n[vocab]"), "mine: 24 texts are scored in the results, 12 now"),
        (("[vocab]", '[scoring]\ndtype = "bfloat16"\n[vocab]'), "dtype is 'float32'"),
        (("batch = 4", "lr = 0.1\nbatch = 4"), "lr is 0.3"),
    ],
)
def test_a_run_into_the_results_of_another_is_refused(place, capsys, idle, change, says):
    refused(capsys, says, "run", preset("other.toml", change), "--quiet", "--out", "ran")


def test_a_run_whose_texts_are_others_is_refused(place, capsys, idle):
    Path("other").mkdir(exist_ok=True)
    Path("other/mine.toml").write_text(
        Path("mine.toml")
        .read_text()
        .replace('"train.csv"', '"../train.csv"')
        .replace('"dev.csv"', '"../dev.csv"')
        .replace("It was", "All in all it was")
    )
    refused(
        capsys,
        "the texts, labels or template of mine are different in the results",
        "run",
        preset("other.toml", ("mine.toml", "other/mine.toml")),
        "--quiet",
        "--out",
        "ran",
    )


def test_a_run_that_adds_to_its_own_results_goes_on(place, capsys, plain_pages):
    "The same again; more seeds; a method more; fewer rows: a report can be made of all of it."
    assert main(["run", "preset.toml", "--out", "ran", "--quiet"]) == 0
    for change in (("seeds = [0]", "seeds = [0, 1]"), ('rows = ["Empty", "PEZ", "Ours"]', 'rows = ["Empty", "PEZ"]')):
        assert main(["run", preset("more.toml", change), "--out", "ran", "--quiet"]) == 0, capsys.readouterr().err
    assert main(["run", preset("more.toml", ("seeds = [0]", "seeds = [0, 1]")), "--out", "ran", "--quiet"]) == 0
    assert main(["report", "ran", "--out", "site"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, says",
    [
        (["run", "preset.toml", "--quiet", "--out", "tuned"], "they are of hpt tune"),
        (["run", "preset.toml", "--quiet", "--out", "made"], "of hpt transferable"),
        (["tune", "./one", "--task", "mine.toml", *SMALL, "--out", "made"], "holds the prompt of hpt transferable"),
        (["tune", "./one", "--task", "mine.toml", *SMALL, "--out", "ran"], "holds the results of hpt run"),
        (
            ["transferable", "--task", "mine.toml", "--models", "./two", "./one", *SMALL, "--out", "ran"],
            "holds results of hpt run or hpt tune",
        ),
        (
            ["transferable", "--task", "mine.toml", "--models", "./two", "./one", *SMALL, "--out", "tuned"],
            "holds results of hpt run or hpt tune",
        ),
        (
            ["transferable", "--task", "mine.toml", "--models", "./one", "./two", *SMALL, "--out", "made"],
            "the prompt of another task or model, tuned on two",
        ),
    ],
    ids=lambda v: " ".join(v[:1]) if isinstance(v, list) else v,
)
def test_a_folder_of_another_command(place, capsys, monkeypatch, argv, says):
    for name in ("hpt_nb.vocab.ids_by_text", "hpt_nb.pez.run_pass"):
        monkeypatch.setattr(name, lambda *a, **k: pytest.fail("work has begun"))
    refused(capsys, says, *argv)


# ---- as many classes as there are ----


def words_for(lm, n):
    "Label words with a first token of their own each."
    out = []
    for i, b in sorted(lm.token_bytes.items()):
        word = b.decode(errors="ignore")
        if (
            word.strip()
            and not word.strip().isdecimal()
            and word.isprintable()
            and word.encode() == b
            and lm.encode(word)[:1] == [i]
            and word.strip() not in {w.strip() for w in out}
        ):
            out.append(word)
    return out[:n]


@pytest.mark.parametrize("classes", [2, 36, 37, 60, 140])
def test_any_number_of_classes_is_scored_and_kept(classes):
    lm = tiny_lm("gpt2", 1)
    words = words_for(lm, classes)
    assert len(words) == classes
    split = Split([f"text {i}" for i in range(classes)], range(classes))
    task = Task("many", " It was", words, split, split, split)
    logp = label_logprobs(lm, task, split.texts)
    want = logp.argmax(-1).tolist()
    for got in (evaluate(lm, task, split), evaluate_vectors(lm, task, split, lm.embeddings[lm.encode(" the")])):
        assert isinstance(got["predictions"], str) == (classes <= 36) and label_numbers(got["labels"]).tolist() == list(
            range(classes)
        )
        assert got["correct"] == sum(p == y for p, y in zip(label_numbers(got["predictions"]), range(classes)))
    assert label_numbers(evaluate(lm, task, split)["predictions"]).tolist() == want
    json.dumps(kept_labels(want, classes))


def test_a_run_of_forty_classes_from_data_to_page(tmp_path, monkeypatch, capsys, plain_pages):
    monkeypatch.chdir(tmp_path)
    a, b = tiny_lm("gpt2", 1), tiny_lm("gpt2", 2)
    for name, lm in (("a", a), ("b", b)):
        lm.model.save_pretrained(name), lm.tokenizer.save_pretrained(name)
    words = words_for(a, 40)
    for stem, n in (("train", 160), ("val", 80)):
        Path(f"{stem}.jsonl").write_text(
            "".join(
                json.dumps(dict(text=f"{stem} of class {i % 40} number {i}", label=i % 40)) + "\n" for i in range(n)
            )
        )
    Path("t.toml").write_text(
        f'name = "t"\nsuffix = " It was"\nlabels = {json.dumps(words)}\nholdout = 40\n[data]\n'
        'train = "train.jsonl"\nvalidation = "val.jsonl"\n'
    )
    Path("p.toml").write_text(
        'name = "p"\ntasks = ["t.toml"]\nseeds = [0]\nrows = ["Empty", "PEZ"]\n[[source]]\nmodel = "./a"\n'
        'targets = ["./b"]\n[tuning]\nsteps = 2\neval_every = 2\nbatch = 4\nn_tokens = 4\nholdout_n = 40\n'
        'dtype = "float32"\n'
    )
    assert main(["run", "p.toml", "--out", "ran", "--quiet"]) == 0, capsys.readouterr().err
    assert all(
        len(c["result"]["labels"]) == 80 and isinstance(c["result"]["labels"], list) for c in Store("ran").cells("eval")
    )
    assert main(["report", "ran", "--out", "site"]) == 0, capsys.readouterr().err
    assert main(["eval", "./a", "--task", "t.toml", "--json"]) == 0


# ---- a dry run knows what the run does ----


def test_a_gguf_s_size_is_that_of_the_model_that_is_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HPT_CACHE", str(tmp_path / "cache"))
    path = tiny_gguf(tmp_path / "m.gguf")
    assert model_size(str(path)) == count_weights(load_lm(str(path)).model)


def test_a_dry_run_of_a_gguf(place, tmp_path, capsys):
    tiny_gguf(Path("m.gguf"))
    assert (
        main(["run", preset("g.toml", ('model = "./one"', 'model = "m.gguf"')), "--dry-run", "--rates", "1,1"]) == 0
    ), capsys.readouterr().err
    assert "m.gguf" in capsys.readouterr().out


# ---- what cannot be asked: a start and what it takes the place of; what is there when a command is stopped ----


@pytest.mark.parametrize("more", [["--tokens", "7"], ["--init", "random"], ["--set", "n_tokens=7"]], ids=" ".join)
@pytest.mark.parametrize("command", ["tune", "transferable"])
def test_a_start_is_as_long_as_its_text(place, capsys, idle, command, more):
    argv, _ = COMMANDS[command]
    argv = [w for i, w in enumerate(argv) if w != "--tokens" and (i == 0 or argv[i - 1] != "--tokens")]
    if command == "transferable" and more[0] == "--init":
        more = ["--set", "init=random"]
    refused(capsys, "and start=' the film'", *argv, "new", "--start", " the film", *more)


STOPPED = [  # a command, at which of its files it is stopped, what is said then
    (["export", "made", "--to", "lm-eval", "--out", "harness"], 2, "not all was written; there is harness/hpt_task.py"),
    (
        ["export", "made", "--to", "peft", "--out", "peft"],
        2,
        "not all was written; there is peft/adapter_model.safetensors",
    ),
    (["export", "made", "--to", "json", "--out", "s.json"], 1, "nothing was written"),
    (["init", "own"], 3, "there is own/"),
    (["init", "other"], 1, "nothing was written"),
    (["run", "preset.toml", "--dry-run", "--rates", "1,1"], 0, "nothing was written"),
]


@pytest.mark.parametrize("argv, nth, says", STOPPED, ids=lambda v: " ".join(v[:4]) if isinstance(v, list) else None)
def test_a_stopped_command_says_what_is_there(place, capsys, monkeypatch, argv, nth, says):
    from hpt_nb import files

    own, seen = files._write_once, []

    def write(path, data):
        seen.append(path)
        if len(seen) == nth:
            raise KeyboardInterrupt
        return own(path, data)

    def planned(*a, **k):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_write_once", write)
    if not nth:
        monkeypatch.setattr("hpt_nb.forecast.dry_run", planned)
    assert main(argv) == 130
    err = capsys.readouterr().err
    assert "hpt: stopped; " in err and says in err
    assert len(seen) == nth and all(Path(p).is_file() for p in seen[:-1])


def test_a_pass_without_a_checkpoint_promises_none():
    "Stopped twice, before anything could be kept."
    from types import SimpleNamespace
    from hpt_nb.cli import _kept
    from hpt_nb.loop import _Asked

    new = SimpleNamespace(step=0, cfg=SimpleNamespace(steps=9))
    taken_up = SimpleNamespace(step=4, cfg=new.cfg)
    said = [_kept(["tune"], SimpleNamespace(kept=_Asked(p, False).kept)) for p in (new, taken_up)]
    assert [s.split("; run")[0] for s in said] == [
        "finished cells are kept",
        "finished cells and the pass up to step 4 of 9 are kept",
    ]
