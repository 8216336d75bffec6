"""What comes from outside may be wrong in any way: exit code 2 or `InputError`, one line that says what was seen and
what to do, no traceback, nothing half-written.

Each case is a row: its name, the files it needs, the command line or the call, and a word that the line must hold."""

import json
import os
import shutil

import pandas as pd
import pytest
import torch

from hpt_nb.cli import main
from hpt_nb.store import InputError, Store
from tiny import tiny_lm
from tiny_run import PRESET, TASK, make_place


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "Where the good files are; each case works in a copy of its own."
    d = make_place(tmp_path_factory.mktemp("good"))
    gpt = tiny_lm("gpt2", 2)
    gpt.model.save_pretrained(d / "gpt"), gpt.tokenizer.save_pretrained(d / "gpt")
    assert main(["vocab", str(d / "one"), str(d / "two"), "--out", str(d / "v.parquet")]) == 0
    return d


@pytest.fixture
def here(home, tmp_path, monkeypatch):
    "A copy of the good files, as the current folder. Models are links: no case may write into them."
    for p in home.iterdir():
        if p.is_dir():
            (tmp_path / p.name).symlink_to(p)
        else:
            shutil.copy(p, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def own_model(here, name="bad"):
    "A model's folder that a case may spoil."
    shutil.copytree(here / "one", here / name)
    return here / name


def task(**change):
    "The good task file with some values replaced (None: the line is left out), at the top or under [data]."
    lines = []
    for line in TASK.splitlines():
        key = line.split(" = ")[0]
        lines += [line] if key not in change else [] if change[key] is None else [f"{key} = {change[key]}"]
    return (
        "\n".join(
            [
                f"{k} = {v}"
                for k, v in change.items()
                if v is not None
                and not any(x.startswith(f"{k} = ") for x in TASK.splitlines())
                and k not in ("revision", "classes")
            ]
            + lines
            + [f"{k} = {v}" for k, v in change.items() if k in ("revision", "classes")]
        )
        + "\n"
    )


def preset(old, new):
    assert old in PRESET
    return PRESET.replace(old, new)


EVAL, RUN = ("eval", "./one", "--task", "mine.toml"), ("run", "bad.toml", "--out", "x", "--quiet")
TUNE = (
    "tune",
    "./one",
    "--task",
    "mine.toml",
    "--out",
    "x",
    "--steps",
    "2",
    "--eval-every",
    "1",
    "--batch",
    "2",
    "--tokens",
    "2",
    "--holdout",
    "4",
    "--quiet",
)
LONG = "n" * 300
BAD = ("eval", "./one", "--task", "bad.toml")

# ---- arguments: (name, command line, what the line says) ----

ARGUMENTS = [
    ("no command", (), "COMMAND"),
    ("unknown command", ("dance",), "dance"),
    ("nothing to evaluate", ("eval",), "MODEL"),
    ("no task", ("eval", "./one"), "--task"),
    ("unknown split", (*EVAL, "--split", "test"), "test"),
    ("limit 0", (*EVAL, "--limit", "0"), "at least 1"),
    ("limit below 0", (*EVAL, "--limit=-3"), "at least 1"),
    ("limit with a fraction", (*EVAL, "--limit", "1.5"), "whole number"),
    ("limit in words", (*EVAL, "--limit", "ten"), "ten"),
    ("limit as a superscript", (*EVAL, "--limit", "²"), "²"),
    ("dtype of whole numbers", (*EVAL, "--dtype", "int8"), "int8"),
    ("unknown format", (*EVAL, "--format", "theirs"), "theirs"),
    ("unknown format to tune in", (*TUNE, "--format", "theirs"), "theirs"),
    ("unknown option", (*EVAL, "--fast"), "--fast"),
    ("half a character in the prompt", (*EVAL, "--quiet", "--prompt", "good \udcff"), "\\udcff"),
    ("one model for a common vocabulary", ("vocab", "./one", "--out", "n.parquet"), "at least 2"),
    ("vocabulary as csv", ("vocab", "./one", "./two", "--out", "n.csv"), ".parquet"),
    ("no place for the vocabulary", ("vocab", "./one", "./two"), "--out"),
    ("a folder in its place", ("vocab", "./one", "./two", "--out", "folder.parquet"), "folder"),
    ("a file where its folder should be", ("vocab", "./one", "./two", "--out", "dev.csv/n.parquet"), "dev.csv"),
    ("a name too long for any disk", ("vocab", "./one", "./two", "--out", LONG + ".parquet"), "shorter"),
    ("no neighbours", ("stability", "./one", "./two", "--k", "0", "--out", "n.parquet"), "--k"),
    ("more neighbours than tokens", ("stability", "./one", "./two", "--k", "99999", "--out", "n.parquet"), "99999"),
    ("exact and sampled", ("stability", "./one", "./two", "--exact", "--sample", "9", "--out", "n.parquet"), "exclude"),
    ("no samples", ("stability", "./one", "./two", "--repeats", "0", "--out", "n.parquet"), "--repeats"),
    ("unknown tokens", ("vocab", "./one", "./two", "--tokens", "word", "--out", "n.parquet"), "word"),
    ("unknown tokens to score", ("stability", "./one", "./two", "--tokens", "all", "--out", "n.parquet"), "all"),
    (
        "words too few for k",
        ("stability", "./one", "./two", "--tokens", "words", "--k", "300", "--out", "n.parquet"),
        "k=300 neighbours requested from",
    ),
    ("a seed in words", ("stability", "./one", "./two", "--seed", "x", "--out", "n.parquet"), "--seed"),
    ("seeds: none", (*TUNE, "--seeds", ""), "--seeds"),
    ("seeds: twice the same", (*TUNE, "--seeds", "0,1,0"), "twice"),
    ("seeds: other signs", (*TUNE, "--seeds", "0;1"), "0;1"),
    ("seeds: a fraction", (*TUNE, "--seeds", "1.5"), "1.5"),
    ("seeds: too large for a generator", (*TUNE, "--seeds", str(10**30)), str(10**30)),
    ("no steps", (*TUNE, "--steps", "0"), "--steps"),
    ("no batch", (*TUNE, "--batch", "0"), "--batch"),
    ("lr 0", (*TUNE, "--lr", "0"), "lr"),
    ("lr below 0", (*TUNE, "--lr=-1"), "lr"),
    ("lr not a number", (*TUNE, "--lr", "nan"), "lr"),
    ("lr infinite", (*TUNE, "--lr", "inf"), "lr"),
    ("lr in words", (*TUNE, "--lr", "high"), "high"),
    ("unknown start", (*TUNE, "--init", "zeros"), "zeros"),
    ("unknown method", (*TUNE, "--method", "magic"), "magic"),
    ("best of no vocabulary", (*TUNE, "--top", "5"), "--vocab"),
    ("best of a vocabulary without scores", (*TUNE, "--vocab", "v.parquet", "--top", "5"), "no scores"),
    ("no such vocabulary", (*TUNE, "--vocab", "none.parquet"), "none.parquet"),
    ("text as a vocabulary", (*TUNE, "--vocab", "dev.csv"), "dev.csv"),
    ("another model's vocabulary", ("tune", "./gpt", *TUNE[2:], "--vocab", "v.parquet"), "gpt"),
    ("results into a file", (*TUNE[:5], "dev.csv", *TUNE[6:]), "dev.csv"),
    ("no such model", ("eval", "./none", "--task", "mine.toml"), "./none"),
    ("no such hub model", ("eval", "nobody/nothing", "--task", "mine.toml"), "nobody/nothing"),
    ("a hub id that cannot be", ("eval", "a/b/c d", "--task", "mine.toml"), "a/b/c d"),
    ("no model's name", ("eval", "", "--task", "mine.toml"), "config.json"),
    ("an escape as a model's name", ("eval", "\x1b[31mred", "--task", "mine.toml"), "\\x1b[31mred"),
    ("a model that is a text file", ("eval", "dev.csv", "--task", "mine.toml"), "dev.csv"),
    ("a model's name too long", ("eval", LONG, "--task", "mine.toml"), "nnn"),
    ("a task's name too long", ("eval", "./one", "--task", LONG), "nnn"),
    ("a preset's name too long", ("run", LONG, "--out", "x"), "nnn"),
    ("results in a name too long", (*TUNE[:5], LONG, *TUNE[6:]), "nnn"),
    ("a report of a name too long", ("report", LONG, "--out", "site"), "nnn"),
    ("no such .gguf", ("eval", "none.gguf", "--task", "mine.toml"), "none.gguf"),
    ("no such task", ("eval", "./one", "--task", "sst3"), "sst3"),
    ("a task that is data", ("eval", "./one", "--task", "dev.csv"), "dev.csv"),
    ("a task that is a folder", ("eval", "./one", "--task", "./one"), "one"),
    ("no task's name", ("eval", "./one", "--task", ""), "task"),
    (
        "a prompt longer than the model reads",
        ("eval", "./gpt", "--task", "mine.toml", "--prompt", "film " * 600),
        "512",
    ),
    ("no such preset", ("run", "none", "--out", "x"), "none"),
    ("a preset that is a folder", ("run", "./one", "--out", "x"), "one"),
    ("unknown engine", ("run", "preset.toml", "--out", "x", "--engine", "slurm"), "slurm"),
    ("a run into a file", ("run", "preset.toml", "--out", "dev.csv"), "dev.csv"),
    ("a report of nothing", ("report", "none", "--out", "site"), "none"),
    ("a report of a file", ("report", "dev.csv", "--out", "site"), "dev.csv"),
    ("a report of another folder", ("report", "./one", "--out", "site"), "one"),
    ("a report without a place", ("report", "x"), "--out"),
]

# ---- task files and their data: (name, task file, further files, what the line says) ----

TASKS = [
    ("empty", "", {}, "suffix"),
    ("not TOML", "name : mine", {}, "TOML"),
    ("not text", b"\xff\xfe\0", {}, "UTF-8"),
    ("unknown key", task(suffx='"x"'), {}, "suffx"),
    ("unknown data key", task(revision='""'), {}, "revision"),
    ("no suffix", task(suffix=None), {}, "suffix"),
    ("suffix a number", task(suffix="3"), {}, "suffix"),
    ("no labels", task(labels=None), {}, "labels"),
    ("one label", task(labels='[" bad"]'), {}, "at least 2"),
    ("labels alike", task(labels='[" bad", "bad "]'), {}, "two classes"),
    ("an empty label", task(labels='[" bad", " "]'), {}, "labels"),
    ("labels as text", task(labels='"bad great"'), {}, "labels"),
    ("numbers as labels", task(labels="[0, 1]"), {}, "labels"),
    ("labels that start alike", task(labels='[" great film", " great plot"]'), {}, "start with"),
    ("texts of no tokens", task(max_text_tokens="0"), {}, "max_text_tokens"),
    ("unknown format", task(format='"theirs"'), {}, "need one of ours, released"),
    ("a format that is a number", task(format="1"), {}, "format is 1"),
    (
        "stripped and as given",
        task(format='"released"', strip="true"),
        {},
        "strip = true does not go with format 'released'",
    ),
    ("no room for a text", task(format='"released"', max_text_tokens="3"), {}, "leaves no room for a text"),
    ("a fraction of tokens", task(max_text_tokens="1.5"), {}, "max_text_tokens"),
    ("hold out all", task(holdout="40"), {}, "40 texts to hold out"),
    ("hold out less than none", task(holdout="-1"), {}, "-1"),
    ("no training file", task(train=None), {}, "train"),
    ("no such file", task(train='"gone.csv"'), {}, "gone.csv"),
    ("a file without an ending", task(train='"mine"'), {"mine": "a"}, "mine"),
    ("an empty file", task(train='"e.csv"'), {"e.csv": ""}, "e.csv"),
    ("a head alone", task(train='"e.csv"'), {"e.csv": "text,label\n"}, "no rows"),
    ("no text column", task(text='"review"'), {}, "review"),
    ("no label column", task(label='"stars"'), {}, "stars"),
    (
        "an unknown label",
        task(train='"e.csv"'),
        {"e.csv": "text,label\na,0\nb,1\nc,7\n"},
        "row 3 has the unknown label '7'",
    ),
    ("a row without text", task(train='"e.csv"'), {"e.csv": "text,label\na,0\n ,1\n"}, "row 2 has no text"),
    ("one class alone", task(validation='"e.csv"'), {"e.csv": "text,label\na,1\nb,1\n"}, "at least 2 classes"),
    ("quotes that never end", task(train='"e.csv"'), {"e.csv": 'text,label\n"a,0\nb,1\n'}, "e.csv"),
    ("latin-1", task(train='"e.csv"'), {"e.csv": "text,label\ncaf\u00e9,0\n".encode("latin-1")}, "UTF-8"),
    ("lines that are no JSON", task(train='"e.jsonl"'), {"e.jsonl": '{"text": "a", "label": 0}\n{"text": '}, "line 2"),
    ("lines that are no objects", task(train='"e.jsonl"'), {"e.jsonl": "[1]\n"}, "line 1"),
    ("half a character", task(train='"e.jsonl"'), {"e.jsonl": '{"text": "a\\ud800", "label": 0}\n'}, "surrogate"),
    ("no parquet", task(train='"e.parquet"'), {"e.parquet": b"PAR1 not"}, "e.parquet"),
    ("a table of other columns", task(train='"e.csv"'), {"e.csv": "a,b\n1,2\n"}, "no column 'text'"),
    ("validation in training", task(train='"dev.csv"'), {}, "no text is left"),
    ("classes of another number", task(classes='["a"]'), {}, "classes"),
    ("an escape in a column's name", task(train='"e.csv"'), {"e.csv": "\x1b[31mred,label\na,0\n"}, "\\x1b[31mred"),
    ("an escape in the task's name", task(name='"\\u001b[31mred"', max_text_tokens="0"), {}, "\\x1b[31mred"),
    ("data as text", task().split("[data]")[0] + 'data = "train.csv"\n', {}, "data"),
    ("a list as a file's name", task(train='["train.csv"]'), {}, "train"),
    ("a folder as a file", task(train='"one"'), {}, "one"),
    ("a web address", task(train='"https://example.org/x.csv"'), {}, "example.org"),
]

# ---- presets: (name, preset file, what the line says) ----

PRESETS = [
    ("empty", "", "tasks"),
    ("not TOML", preset("name = ", "name : "), "TOML"),
    ("not text", b"\xff\xfe\0\0", "UTF-8"),
    ("unknown key", preset("[vocab]", "[vocabulary]"), "vocabulary"),
    ("no tasks", preset('tasks = ["mine.toml"]', ""), "tasks"),
    ("tasks as text", preset('["mine.toml"]', '"mine.toml"'), "tasks"),
    ("a task twice", preset('["mine.toml"]', '["mine.toml", "mine.toml"]'), "tasks"),
    ("no such task", preset("mine.toml", "gone.toml"), "gone.toml"),
    ("unknown task", preset("mine.toml", "sst3"), "sst3"),
    ("no source", PRESET.split("[[source]]")[0], "source"),
    (
        "source as a table",
        preset('[[source]]\nmodel = "./one"\ncounterparts = ["./two"]\ntargets = ["./two"]\n[[source]]', "[source]"),
        "[[source]]",
    ),
    ("a source without a model", preset('model = "./one"\n', ""), "model"),
    ("a source twice", preset('model = "./two"', 'model = "./one"'), "twice"),
    ("no counterpart", preset('counterparts = ["./two"]\n', ""), "counterparts"),
    ("a counterpart twice", preset('counterparts = ["./two"]', 'counterparts = ["./two", "./two"]'), "counterparts"),
    ("no such model", preset('model = "./one"', 'model = "./gone"'), "gone"),
    ("unknown row", preset("seeds", 'rows = ["Best"]\nseeds'), "Best"),
    ("unknown method", preset("seeds", 'method = "magic"\nseeds'), "magic"),
    ("seeds as a number", preset("[0, 1]", "2"), "seeds"),
    ("a seed twice", preset("[0, 1]", "[0, 0]"), "seeds"),
    ("a fraction as a seed", preset("[0, 1]", "[0.5]"), "seeds"),
    ("a seed too large for a generator", preset("[0, 1]", f"[0, {2**63}]"), str(2**63)),
    ("true as a seed", preset("[0, 1]", "[true]"), "seeds"),
    ("no seeds", preset("[0, 1]", "[]"), "seeds"),
    ("steps below 0", preset("steps = 30", "steps = -1"), "steps=-1"),
    ("steps as text", preset("steps = 30", 'steps = "30"'), "steps"),
    ("steps with a fraction", preset("steps = 30", "steps = 30.0"), "steps"),
    ("lr below 0", preset("batch = 4", "lr = -0.3"), "lr"),
    ("lr infinite", preset("batch = 4", "lr = inf"), "lr"),
    ("lr not a number", preset("batch = 4", "lr = nan"), "lr"),
    ("unknown start", preset("batch = 4", 'init = "zeros"'), "zeros"),
    ("dtype of whole numbers", preset("float32", "int8"), "int8"),
    ("h in words", preset("k = 8", 'h = "all"'), "h ="),
    ("no neighbours", preset("k = 8", "k = 0"), "k"),
    ("no tokens to search", preset("s = 40", "s = 0"), "s"),
    ("unknown format", preset("seeds", 'format = "theirs"\nseeds'), "need one of ours, released"),
    ("step 0 in words", preset("seeds", 'step0 = "yes"\nseeds'), "need true or false"),
    ("unknown tokens", preset("k = 8", 'tokens = "word"'), "need one of any, words"),
    ("tokens as a number", preset("k = 8", "tokens = 1"), "tokens = 1"),
    ("words too few for s", preset("s = 40", 's = 9999\ntokens = "words"'), "s = 9,999, and ./one and ./two share"),
    (
        "words too few for k",
        preset("k = 8\ns = 40", 'k = 900\ns = 4\ntokens = "words"'),
        "k = 900, and ./one and ./two share",
    ),
    ("more tokens than there are", preset("s = 40", "s = 999999"), "999999"),
    ("texts below 0", PRESET + "[scoring]\nn = -1\n", "n = -1"),
    ("texts in words", PRESET + '[scoring]\nn = "all"\n', "n ="),
    ("a table for another task", PRESET + '[task."other.toml"]\nn = 3\n', "other.toml"),
    ("an unknown key for a task", PRESET + '[task."mine.toml"]\nlr = 3\n', "lr"),
    ("tuning as text", preset("[tuning]", "[other]").split("[other]")[0] + 'tuning = "fast"\n', "tuning"),
    ("a bad size for a task", PRESET + '[task."mine.toml"]\ntuning = { steps = 0 }\n', "steps=0"),
]

_NAME, _LR, _SEED = (
    "cli.main: an OSError is not one line yet",
    "PezConfig takes an infinite lr: need math.isfinite(lr) and lr > 0",
    "a seed outside 64 bits: need -2**63 <= seed < 2**63",
)
KNOWN = {  # a case that fails today -> what would mend it
}


def cases(rows, kind):
    return [
        pytest.param(
            *r[1:],
            id=f"{kind}-{r[0]}",
            marks=pytest.mark.xfail(strict=True, reason=KNOWN[f"{kind}-{r[0]}"]) if f"{kind}-{r[0]}" in KNOWN else (),
        )
        for r in rows
    ]


def refuses(here, capsys, argv, says, keeps_finished=False):
    (here / "folder.parquet").mkdir(exist_ok=True)
    before = tree(here)
    code = main(list(argv))
    out, err = capsys.readouterr()
    lines = [x for x in err.splitlines() if x.strip()]
    assert code == 2 and out == "" and len(lines) == 1 and lines[0].startswith("hpt: ") and "Traceback" not in err, (
        code,
        out,
        err,
    )
    assert says in lines[0] and lines[0].isprintable(), lines[0]
    after = tree(here)
    new = {k: v for k, v in after.items() if k not in before}
    assert {k: after[k] for k in before} == before  # nothing that was there has changed
    if keeps_finished:
        assert all(
            v is None or k.startswith(("x/cells/", "x/files/", "x/plans/", "x/failed/")) for k, v in new.items()
        ) and (not new or Store("x").cells() is not None), new
    else:
        assert new == {}
    return lines[0]


def write(files):
    for name, content in files.items():
        with open(name, "wb") as f:
            f.write(content.encode() if isinstance(content, str) else content)


@pytest.mark.parametrize("argv, says", cases(ARGUMENTS, "argument"))
def test_arguments(here, capsys, argv, says):
    refuses(here, capsys, argv, says)


@pytest.mark.parametrize("text, files, says", cases(TASKS, "task"))
def test_task_files(here, capsys, text, files, says):
    write({"bad.toml": text, **files})
    refuses(here, capsys, BAD, says)


@pytest.mark.parametrize("text, says", cases(PRESETS, "preset"))
def test_presets(here, capsys, text, says):
    write({"bad.toml": text})
    refuses(here, capsys, RUN, says, keeps_finished=True)


# ---- model folders: (name, what is done to a good one, what the line says) ----


def cut(p):
    p.write_bytes(p.read_bytes()[: len(p.read_bytes()) // 2])


def flip(p, at=8):
    b = bytearray(p.read_bytes())
    b[at] ^= 255
    p.write_bytes(b)


def edit(p, **change):
    p.write_text(json.dumps({**json.loads(p.read_text()), **change}))


def pickled(d):
    (d / "model.safetensors").unlink()
    torch.save({"x": 1}, d / "pytorch_model.bin")


def not_finite(d):
    from safetensors.torch import load_file, save_file

    w = load_file(d / "model.safetensors")
    for v in w.values():
        v.fill_(float("nan"))
    save_file(w, d / "model.safetensors", metadata={"format": "pt"})


def lost_weights(d):
    from safetensors.torch import load_file, save_file

    w = load_file(d / "model.safetensors")
    save_file({k: v for k, v in w.items() if "layers.1" not in k}, d / "model.safetensors", metadata={"format": "pt"})


MODELS = [
    ("no configuration", lambda d: (d / "config.json").unlink(), "config.json"),
    ("a configuration cut short", lambda d: cut(d / "config.json"), "bad"),
    ("a configuration that is a list", lambda d: (d / "config.json").write_text("[]"), "bad"),
    ("an unknown architecture", lambda d: edit(d / "config.json", model_type="brain"), "brain"),
    (
        "code of its own",
        lambda d: edit(
            d / "config.json",
            model_type="brain",
            auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
        ),
        "bad",
    ),
    ("an encoder", lambda d: edit(d / "config.json", model_type="bert", architectures=["BertModel"]), "bad"),
    ("no weights", lambda d: (d / "model.safetensors").unlink(), ".safetensors"),
    ("pickled weights", pickled, "pickled"),
    ("weights cut short", lambda d: cut(d / "model.safetensors"), "bad"),
    ("weights with a damaged head", lambda d: flip(d / "model.safetensors"), "bad"),
    ("no bytes of weights", lambda d: (d / "model.safetensors").write_bytes(b""), "bad"),
    ("weights that are not numbers", not_finite, "finite"),
    ("lost weights", lost_weights, "missing"),
    ("weights of another size", lambda d: edit(d / "config.json", hidden_size=64), "bad"),
    ("no tokenizer", lambda d: [p.unlink() for p in d.glob("*token*")], "tokenizer"),
    ("a tokenizer cut short", lambda d: cut(d / "tokenizer.json"), "bad"),
    ("another model's tokenizer", lambda d: shutil.copy(d.parent / "two" / "tokenizer.json", d), "tokenizer"),
    ("no files at all", lambda d: [p.unlink() for p in d.iterdir()], "config.json"),
]


@pytest.mark.parametrize("spoil, says", cases(MODELS, "model"))
def test_model_folders(here, capsys, spoil, says):
    spoil(own_model(here))
    refuses(here, capsys, ("eval", "./bad", "--task", "mine.toml"), says)


@pytest.mark.parametrize(
    "name, content",
    [
        ("short.gguf", b"GGUF\x03\0\0\0"),
        ("text.gguf", b"not a model"),
        ("empty.gguf", b""),
        ("huge.gguf", b"GGUF\x03\0\0\0" + b"\xff" * 64),
        ("split.gguf", b"GGUF\x03\0\0\0" + bytes(16)),
    ],
)
def test_gguf_files(here, capsys, name, content):
    write({name: content})
    refuses(here, capsys, ("eval", name, "--task", "mine.toml"), name)


# ---- results folders: (name, what is done to a good one, what the line says) ----


@pytest.fixture(scope="module")
def finished(home):
    "A finished run of the good preset, small."
    old = os.getcwd()
    os.chdir(home)
    try:
        (home / "few.toml").write_text(
            PRESET.replace('[[source]]\nmodel = "./two"\ncounterparts = ["./one"]\ntargets = ["./one"]\n', "")
            .replace("seeds = [0, 1]", 'rows = ["Empty", "PEZ", "Ours"]\nseeds = [0, 1]')
            .replace("steps = 30", "steps = 10")
        )
        assert main(["run", "few.toml", "--out", "done", "--quiet"]) == 0
    finally:
        os.chdir(old)
    return home / "done"


def first(d, kind):
    return sorted((d / "cells").glob(f"{kind}-*.json"))[0]


def repack(p, **change):
    "Change a cell as a program would that writes our format."
    from hpt_nb.records import record_text

    c = json.loads(p.read_text())
    p.write_text(record_text(c["kind"], c["config"], change.get("result", c["result"]), change.get("meta", c["meta"])))


RESULTS = [
    ("a score cut short", lambda d: cut(first(d, "eval")), "eval-"),
    ("a tuning run cut short", lambda d: cut(first(d, "tune")), "tune-"),
    ("a bit flipped", lambda d: flip(first(d, "eval"), 200), "eval-"),
    ("an empty file", lambda d: first(d, "eval").write_bytes(b""), "eval-"),
    ("another version's", lambda d: edit(first(d, "eval"), schema=0), "schema 0"),
    (
        "a field less",
        lambda d: first(d, "eval").write_text(first(d, "eval").read_text().replace('"meta"', '"data"')),
        "has no meta",
    ),
    ("a foreign file", lambda d: (d / "cells" / "notes.txt").write_text("mine"), "notes.txt"),
    ("a score gone", lambda d: first(d, "eval").unlink(), "hpt run"),
    ("a tuning run gone", lambda d: first(d, "tune").unlink(), "tuning run is gone"),
    ("a copy", lambda d: shutil.copy(first(d, "eval"), d / "cells" / "eval-0123456789ab.json"), "renamed or copied"),
    (
        "counts that disagree",
        lambda d: repack(
            first(d, "eval"), result={**json.loads(first(d, "eval").read_text())["result"], "correct": 999}
        ),
        "999",
    ),
    ("no counts", lambda d: repack(first(d, "eval"), result={}), "correct"),
    ("a vocabulary's file gone", lambda d: [p.unlink() for p in (d / "files").iterdir()], "stable-"),
    ("a vocabulary's file damaged", lambda d: [cut(p) for p in (d / "files").iterdir()], "stable-"),
    (
        "a way out of the folder",
        lambda d: repack(
            first(d, "vocab"),
            result={**json.loads(first(d, "vocab").read_text())["result"], "file": "../../../secret.parquet"},
        ),
        "plain file name",
    ),
    ("no cells", lambda d: shutil.rmtree(d / "cells"), "no scored prompts"),
    ("a file for the cells", lambda d: (shutil.rmtree(d / "cells"), (d / "cells").write_text("")), "cells"),
]


@pytest.mark.parametrize("spoil, says", cases(RESULTS, "results"))
def test_results_folders(here, finished, capsys, spoil, says):
    shutil.copytree(finished, here / "x")
    spoil(here / "x")
    refuses(here, capsys, ("report", "x", "--out", "site"), says)


def test_a_page_over_a_file(here, finished, capsys):
    refuses(here, capsys, ("report", "done", "--out", "dev.csv"), "dev.csv")


# ---- the library: (name, call with (lm, task), what the line says) ----


def library():
    from hpt_nb import models, neighbors, pez, scoring, tasks, vocab

    cfg = dict(steps=2, batch=2, eval_every=1, n_tokens=2, holdout_n=4, progress=False)
    return [
        ("dtype", lambda lm, t: models.load_lm("one", dtype="int8"), "int8"),
        ("device", lambda lm, t: models.load_lm("one", device="tpu:x"), "tpu"),
        ("split", lambda lm, t: t.subset("test", 3), "test"),
        ("size", lambda lm, t: t.subset("train", 0), "0"),
        ("held out", lambda lm, t: tasks.load_task("mine.toml", holdout=10**9), str(10**9)),
        ("prompt ids", lambda lm, t: scoring.label_logprobs(lm, t, ["a"], [10**6]), str(10**6)),
        ("prompt ids below 0", lambda lm, t: scoring.label_logprobs(tiny_lm("gemma3"), t, ["a"], [-1]), "-1"),
        ("half a character", lambda lm, t: scoring.label_logprobs(lm, t, ["a"], "x\ud800"), "ud800"),
        ("half a character in a text", lambda lm, t: scoring.label_logprobs(lm, t, ["x\ud800"], None), "ud800"),
        ("a number as a text", lambda lm, t: scoring.label_logprobs(lm, t, [3.5], None), "3.5"),
        ("no model", lambda lm, t: vocab.common_vocab([]), "at least 2"),
        ("one model", lambda lm, t: vocab.common_vocab([lm]), "at least 2"),
        ("a vocabulary from nowhere", lambda lm, t: vocab.Vocab.load("none.parquet"), "none.parquet"),
        ("a model that a vocabulary lacks", lambda lm, t: vocab.whole_vocab(lm).ids_for("x"), "x"),
        ("a sample larger than all", lambda lm, t: vocab.whole_vocab(lm).sample(10**6, 0), str(10**6)),
        ("a best without scores", lambda lm, t: vocab.whole_vocab(lm).top(3), "no scores"),
        ("nothing to search", lambda lm, t: pez.SearchSpace(lm, []), "at least one"),
        ("ids of another model", lambda lm, t: pez.SearchSpace(lm, [10**6]), "another model"),
        ("unknown method", lambda lm, t: pez.tune(lm, t, method="magic", **cfg), "magic"),
        ("no steps", lambda lm, t: pez.tune(lm, t, **{**cfg, "steps": 0}), "steps=0"),
        ("lr infinite", lambda lm, t: pez.PezConfig(lr=float("inf")), "inf"),
        (
            "a budget off the grid",
            lambda lm, t: pez.tune_runs(
                lm, t, [pez.RunSpec(pez.SearchSpace(lm, [1, 2]))], pez.PezConfig(steps=4, eval_every=2), budgets=[3]
            ),
            "budget 3",
        ),
        ("a foreign checkpoint", lambda lm, t: pez.tune(lm, t, checkpoint="dev.csv", **cfg), "dev.csv"),
        ("more neighbours than tokens", lambda lm, t: neighbors.stable_vocab([lm, lm], k=10**6), str(10**6)),
    ]


@pytest.fixture(scope="module")
def lm_task(home):
    from hpt_nb.tasks import load_task

    return tiny_lm("llama3", 0), load_task(home / "mine.toml")


@pytest.mark.parametrize("call, says", cases(library(), "library"))
def test_library(here, lm_task, call, says):
    before = tree(here)
    with pytest.raises(InputError) as e:
        call(*lm_task)
    assert says in str(e.value) and str(e.value).isprintable() and tree(here) == before


def test_there_are_more_than_sixty():
    rows = [r[0] for t in (ARGUMENTS, TASKS, PRESETS, MODELS, RESULTS, library()) for r in t]
    assert len(rows) > 60 and all(
        len(t) == len({r[0] for r in t}) for t in (ARGUMENTS, TASKS, PRESETS, MODELS, RESULTS, library())
    )
    assert set(KNOWN) <= {
        f"{k}-{r[0]}"
        for k, t in zip(
            ("argument", "task", "preset", "model", "results", "library"),
            (ARGUMENTS, TASKS, PRESETS, MODELS, RESULTS, library()),
        )
        for r in t
    }


def test_the_good_files_are_good(here, finished, capsys, plain_pages):
    "What the cases change is what is wrong with them."
    assert (
        main(["eval", "./one", "--task", "mine.toml", "--json"]) == 0 and json.loads(capsys.readouterr().out)["n"] == 24
    )
    assert main([*TUNE, "--vocab", "v.parquet"]) == 0 and main(["report", "done", "--out", "site"]) == 0
    assert isinstance(pd.read_parquet("v.parquet"), pd.DataFrame)
