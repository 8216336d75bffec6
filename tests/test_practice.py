"""From a labelled file to a prompt, as somebody does it who has a table, some model folders, and no knowledge of
notebooks."""

import json
import os
import re
from pathlib import Path

import pandas as pd
import pytest

from hpt_nb.cli import main
from hpt_nb.experiments import Models
from hpt_nb.practice import summary, transferable
from hpt_nb.scoring import evaluate
from hpt_nb.store import InputError, Store, status
from hpt_nb.tasks import load_task
from hpt_nb.transfer import certify
from tiny import tiny_lm

# a table as a spreadsheet writes it: three classes by name, a semicolon in a text, an umlaut, a column that nobody
# needs
SENTENCES = {
    "sports": "the team won the game",
    "money": "the bank lost some money",
    "weather": "rain; and storms in Z\u00fcrich",
}
TASK = """name = "my mails"
suffix = " This is about"
labels = [" sport", " money", " the"]
max_text_tokens = 40
[data]
train = "mails.csv"
validation = "check.csv"
text = "body"
label = "kind"
classes = ["sports", "money", "weather"]
"""
SMALL = [
    "--steps",
    "4",
    "--batch",
    "2",
    "--tokens",
    "3",
    "--holdout",
    "9",
    "--k",
    "8",
    "--top",
    "40",
    "--seeds",
    "0,1",
    "--dtype",
    "float32",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder of a user's own: a table with three classes, a task file, three model folders."
    d = tmp_path_factory.mktemp("user")
    for name, arch, seed in (("small", "llama3", 0), ("other", "gemma3", 1), ("big", "gpt2", 2)):
        lm = tiny_lm(arch, seed)
        lm.model.save_pretrained(d / name), lm.tokenizer.save_pretrained(d / name)
    for file, n in (("mails", 60), ("check", 30)):
        kinds = [list(SENTENCES)[i % 3] for i in range(n)]
        pd.DataFrame(
            dict(id=range(n), body=[f"{SENTENCES[k]} {file} {i}" for i, k in enumerate(kinds)], kind=kinds)
        ).to_csv(d / f"{file}.csv", index=False, encoding="utf-8-sig")
    (d / "mine.toml").write_text(TASK, encoding="utf-8")
    old = os.getcwd()
    os.chdir(d)
    yield d
    os.chdir(old)


def command(*argv):
    return ["transferable", "--task", "mine.toml", "--models", "small", "other", *argv]


def test_a_new_user_goes_all_the_way(place, capsys):
    """Tune, read the summary, score the prompt by hand, take it away: each command as the README has it, and each
    number again from its parts."""
    assert main([*command("--target", "big", *SMALL)]) == 0
    said = capsys.readouterr()
    body = json.loads(Path("runs/transferable-my_mails/prompt.json").read_text(encoding="utf-8"))
    assert "about" in said.err and "on this machine" in said.err  # how long it takes is said first
    assert (
        repr(body["prompt"]) in said.out
        and "not seen" in said.out
        and "runs/transferable-my_mails/prompt.json" in said.out
    )
    assert said.out.count("warning: ") == len(body["warnings"]) and any(
        "only 9 holdout texts" in w for w in body["warnings"]
    )
    assert [(s["model"], s["role"], s["mode"]) for s in body["scores"]] == [
        ("small", "source", "ids"),
        ("small", "source", "text"),
        ("other", "model", "text"),
        ("big", "target", "text"),
    ]
    assert body["task"]["labels"] == [" sport", " money", " the"] and body["provenance"]["torch"]
    for s in body["scores"][1:]:
        assert main(["eval", s["model"], "--task", "mine.toml", "--prompt", body["prompt"], "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["correct"] == s["correct"]
        assert main(["eval", s["model"], "--task", "mine.toml", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(s["none"])
    assert main(["export", "runs/transferable-my_mails", "--to", "python", "--out", "mine.py"]) == 0
    there = {}
    exec(Path("mine.py").read_text(encoding="utf-8"), there)
    assert there["classify"](["the team won"], "small")[0]["class"] in ("sports", "money", "weather")
    assert main(["status", "runs/transferable-my_mails"]) == 0


def test_numbers_are_those_of_the_parts(place):
    "Choice by the mean of the holdouts as text; the certificate of each model; untuned prompts of the vocabulary."
    from hpt_nb.models import load_lm

    made = Path("runs/transferable-my_mails/prompt.json")
    if not made.is_file():  # where this test runs alone
        assert main([*command("--target", "big", *SMALL)]) == 0
    body, task = json.loads(made.read_text(encoding="utf-8")), load_task("mine.toml")
    lms = {n: load_lm(n) for n in ("small", "other", "big")}
    held = task.subset("holdout", 9)
    for c in body["candidates"]:
        assert c["holdout"] == {
            n: pytest.approx(evaluate(lms[n], task, held, c["prompt"])["accuracy"]) for n in ("small", "other")
        }
        assert c["mean"] == pytest.approx(sum(c["holdout"].values()) / 2)
    assert (
        max(body["candidates"], key=lambda c: c["mean"])["mean"]
        == next(c for c in body["candidates"] if c["chosen"])["mean"]
    )
    for cert in body["certificates"]:
        lm = lms[cert["model"]["name"]]
        want = certify(lm, cert["ids"] if lm.name == "small" else body["prompt"])
        assert {k: cert[k] for k in want} == want
    cells = [c for c in Store("runs/transferable-my_mails").cells("eval") if c["config"]["row"] == "Untuned"]
    assert len(cells) == 3 * 4 and all(
        len(c["config"]["prompt_ids"]) == 3 for c in cells if c["config"]["mode"] == "ids"
    )


def test_a_stopped_call_goes_on(place, monkeypatch):
    "Stopped while it scores: what was done is kept, and the result is that of an unbroken call."
    from hpt_nb import practice, prompt_worth

    ask = dict(
        models=["small", "other"],
        targets=["big"],
        steps=4,
        batch=2,
        n_tokens=3,
        holdout_n=9,
        k=8,
        s=40,
        seeds=(0, 1),
        dtype="float32",
        progress=False,
    )
    real, calls = prompt_worth.score_prompt, []

    def stop(*a):
        if len(calls) == 7:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*a)

    monkeypatch.setattr(prompt_worth, "score_prompt", stop)
    with pytest.raises(KeyboardInterrupt):
        transferable("mine.toml", out="stopped", **ask)
    assert (
        not Path("stopped/prompt.json").exists()
        and len(Store("stopped").cells("tune")) == 2
        and not set(status(Store("stopped")).state) <= {"done"}
    )
    monkeypatch.setattr(prompt_worth, "score_prompt", real)
    monkeypatch.setattr(
        practice, "tuned_prompts", lambda *a, _whole=practice.tuned_prompts: _whole(*a[:-2], on_step=pytest.fail)
    )
    got, want = (
        transferable("mine.toml", out="stopped", **ask),
        json.loads(Path("runs/transferable-my_mails/prompt.json").read_text(encoding="utf-8")),
    )
    assert json.loads(json.dumps(got["scores"])) == want["scores"] and got["prompt"] == want["prompt"]


@pytest.mark.parametrize("method", ["joint", "joint-choice", "mixed", "gcg"])
def test_other_methods(place, method):
    ask = dict(gcg=dict(n_candidates=4), mixed=dict(n_candidates=4)).get(method, {})
    got = transferable(
        "mine.toml",
        ["small", "other", "big"] if method != "mixed" else ["small", "other"],
        out=f"by-{method}",
        method=method,
        steps=2,
        batch=2,
        n_tokens=3,
        holdout_n=9,
        k=8,
        s=40,
        seeds=(0,),
        dtype="float32",
        progress=False,
        **ask,
    )
    assert got["method"] == method and len(got["vocabulary"]["models"]) >= 2 and "no target was named" in summary(got)
    vocab = set(Store(f"by-{method}").cells("tune")[0]["result"]["tokens"])
    assert len(got["tokens"]) == 3 and set(got["tokens"]) == vocab


@pytest.mark.parametrize(
    "argv, says",
    [
        (["--models", "small"], "1 model given; need at least two"),
        (["--models", "small", "small"], "small is named twice"),
        (["--models", "small", "other", "--target", "other"], "other is named twice"),
        (["--models", "small", "gone/"], "gone"),
        (["--models", "small", "other", "--target", "./gone"], "./gone: no such file or folder"),
        (["--models", "small", "other", "--steps", "0"], "argument --steps: '0'"),
        (["--models", "small", "other", "--method", "soft"], "not a text that another can read"),
        (["--models", "small", "other", "--seeds", "1,1"], "names a seed twice"),
        (["--models", "small", "other", "--set", "judge_n=3"], "no setting 'judge_n'"),
        (["--models", "small", "other", "--out", "mine.toml"], "mine.toml is a file"),
        (["--models", "small", "other", "--tokens", "600"], "tokens, and "),
        (["--models", "small", "other", "--k", "100000"], "100000"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_bad_input_is_one_line(place, argv, says, capsys):
    before = sorted(os.listdir())
    assert (
        main(
            [
                "transferable",
                "--task",
                "mine.toml",
                *(["--out", "bad"] if "--out" not in argv else []),
                "--quiet",
                *argv,
            ]
        )
        == 2
    )
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and said.out == ""
    assert sorted(os.listdir()) == before


def test_wrong_tables_are_one_line(place, capsys):
    "The stumbles of a first task file: a class that is not listed, a column by another name, a comma too few."
    for old, new, says in (
        ('classes = ["sports", "money", "weather"]', "", "unknown label"),
        ('text = "body"', 'text = "text"', "no column 'text' (columns: id, body, kind)"),
        ('labels = [" sport"', 'labels = [" money"', "stands for two classes"),
        ('name = "my mails"', "name = my mails", "not valid TOML"),
        ("check.csv", "chek.csv", "no such file"),
    ):
        Path("wrong.toml").write_text(TASK.replace(old, new), encoding="utf-8")
        assert main(["transferable", "--task", "wrong.toml", "--models", "small", "other", "--out", "bad"]) == 2
        said = capsys.readouterr()
        assert says in said.err and said.err.count("\n") == 1 and not Path("bad").exists()


def test_models_may_come_loaded(place):
    "The library takes models that are in memory, by a loader."
    held = {"a": tiny_lm("llama3", 0, name="a"), "b": tiny_lm("gemma3", 1, name="b")}
    got = transferable(
        "mine.toml",
        ["a", "b"],
        out="loaded",
        loader=Models(load=lambda name, dtype="float32": held[name]),
        steps=2,
        batch=2,
        n_tokens=3,
        holdout_n=9,
        k=8,
        s=40,
        seeds=(0,),
        dtype="float32",
        progress=False,
    )
    assert re.match(r"prompt: ", summary(got))
    with pytest.raises(InputError, match="limit=0; need at least 1"):
        transferable("mine.toml", ["a", "b"], out="loaded", limit=0)
