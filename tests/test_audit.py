"""What a prompt is worth, and using it: the commands as a user calls them, and the same answers from every way out."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hpt_nb.auditing import audit
from hpt_nb.cli import main
from hpt_nb.models import load_lm
from hpt_nb.labelling import compare_labels
from hpt_nb.practice import transferable
from hpt_nb.prompts import Prompt
from hpt_nb.scoring import label_logprobs
from hpt_nb.store import InputError
from hpt_nb.tasks import Task, load_task
from forked import run as run_copy
from tiny_run import make_place

TASK = ["--task", "mine.toml"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    d, old = make_place(tmp_path_factory.mktemp("audit")), os.getcwd()
    os.chdir(d)
    pd.DataFrame(
        dict(
            body=["the film was great", "a bad plot", "boring and good", "12 people left"],
            kind=["great", "bad", "great", "bad"],
        )
    ).to_csv("texts.csv", index=False)
    pd.DataFrame(dict(text=["the film was great", "", None])).to_csv("gaps.csv", index=False)
    Path("prompts.txt").write_text(" the good film\n the bad film\n")
    Path("empty.txt").write_text("\n")
    Path("twice.txt").write_text(" x\n x\n")
    Path("twice.json").write_text('{"a": " x", "a": " y"}')
    Path("new.json").write_text(json.dumps(dict(prompt="x", schema=9, task={})))
    Path("named.json").write_text('{"mine": "x", "mine": "y"}')
    task, lm = load_task("mine.toml"), load_lm("./one")
    Prompt.of(" the good film", task, lm).save("kept.json")
    body = json.loads(Path("kept.json").read_text())
    edits = dict(
        classes=dict(task=body["task"] | dict(classes=["one", "two", "three"])),
        alike=dict(task=body["task"] | dict(classes=["one", "one"])),
        place=dict(task=body["task"] | dict(prompt_at="above")),
        length=dict(task=body["task"] | dict(max_text_tokens=-1)),
        words=dict(calibration={"one": body["calibration"]["one"] | dict(means=["a", "b"])}),
        nan=dict(calibration={"one": body["calibration"]["one"] | dict(means=[float("nan"), 0.0])}),
        none=dict(prompt=None),
    )
    for name, edit in edits.items():
        Path(f"{name}.json").write_text(json.dumps(body | edit))
    yield d
    os.chdir(old)


def test_audit_by_command(place, capsys):
    "Its numbers are those of a plain reading; text, JSON and page say the same."
    argv = [
        "audit",
        *TASK,
        "--models",
        "./one",
        "./two",
        "--prompt",
        " so",
        "--prompt-file",
        "prompts.txt",
        "--out",
        "found",
        "--quiet",
    ]
    assert main(argv) == 0
    said = capsys.readouterr().out
    found = json.loads(Path("found/audit.json").read_text(encoding="utf-8"))
    assert set(found["models"]) == {"one", "two"} and list(found["prompts"]) == [
        "no prompt",
        " so",
        " the good film",
        " the bad film",
    ]
    task = load_task("mine.toml")
    y, held = np.array(task.validation.labels), task.subset("holdout", min(200, len(task.holdout))).texts
    for s in found["scores"]:
        lm, prompt = load_lm("./" + s["model"]), None if s["prompt"] == "no prompt" else s["prompt"]
        z, h, b = (
            label_logprobs(lm, task, t, prompt).double().numpy()
            for t in (task.validation.texts, held, ["N/A", "", "[MASK]"])
        )
        assert s["correct"] == (z.argmax(1) == y).sum()
        assert s["calibrated"] == pytest.approx(((z - h.mean(0)).argmax(1) == y).mean())
        assert s["content_free"] == pytest.approx(((np.exp(z) / np.exp(b).mean(0)).argmax(1) == y).mean())
        margin = z[:, 1] - z[:, 0]
        assert s["auc"] == pytest.approx(
            np.mean([(u > v) + (u == v) / 2 for u in margin[y == 1] for v in margin[y == 0]]), abs=1e-3
        )
        assert f"{100 * s['accuracy']:.1f}" in said
    page = Path("found/index.html").read_text(encoding="utf-8")
    assert (
        all(x in page and x in said for x in ("no prompt", "calibrated", "macro-F1"))
        and "http" not in page.split("<body>")[1]
    )
    assert main([*argv, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {k: again[k] for k in ("scores", "gains", "choice")} == {k: found[k] for k in ("scores", "gains", "choice")}


def test_auc_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    from hpt_nb.calibration import auc

    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(200, 2)), rng.integers(0, 2, 200)
    assert auc(z, y) == pytest.approx(metrics.roc_auc_score(y, z[:, 1] - z[:, 0]))


def test_python_of_a_prompt_whose_task_was_a_table(place, capsys):
    "There is no task file to name: what the prompt keeps of its task is enough, and gives the same source."
    argv = ["export", "kept.json", "--to", "python", "--model", "./one"]
    assert main([*argv, "--out", "alone.py"]) == 0 and main([*argv, *TASK, "--out", "named.py"]) == 0
    assert Path("alone.py").read_text(encoding="utf-8") == Path("named.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("how", [[], ["--calibrated"]])
def test_every_way_out_gives_the_same(place, capsys, how):
    "Command, object, and exported Python, raw and calibrated, on every text."
    texts = pd.read_csv("texts.csv").body.tolist()
    kept = Prompt.load("kept.json")
    want = kept.classify(load_lm("./one"), texts, calibrated=bool(how))
    assert (
        main(
            [
                "predict",
                "texts.csv",
                "--prompt-file",
                "kept.json",
                "--model",
                "./one",
                "--text",
                "body",
                "--label",
                "kind",
                *how,
                "--out",
                "out.csv",
                "--quiet",
            ]
        )
        == 0
    )
    said, table = capsys.readouterr().out, pd.read_csv("out.csv")
    assert table["class"].tolist() == want["class"].tolist() and np.allclose(
        table["p(great)"], want["p(great)"], atol=1e-9
    )
    assert f"{sum(want['class'] == table.kind)} right" in said and ("kept with the prompt" in said) == bool(how)
    assert main(["export", "kept.json", "--to", "python", *TASK, "--model", "./one", "--out", "mine.py"]) == 0
    source, there = Path("mine.py").read_text(encoding="utf-8"), {}
    assert str(place) not in source
    exec(source, there)
    rows = pd.DataFrame(there["classify"](texts, "one", there["MEANS"]["one"] if how else None))
    assert rows["class"].tolist() == want["class"].tolist() and np.allclose(
        rows["p(great)"], want["p(great)"], atol=1e-5
    )


def test_a_prompt_needs_no_task_file(place, tmp_path):
    "Saved here, loaded in a fresh process elsewhere: the same answers."
    kept, texts = Prompt.load("kept.json"), ["the film was great", "a bad plot"]
    kept.save_pretrained(tmp_path / "repo")
    classify = f"Prompt.from_pretrained('repo').classify({str(place / 'one')!r}, {texts!r}, True)"
    done = run_copy(f"from hpt_nb.prompts import Prompt; print({classify}.to_json())", cwd=tmp_path, check=True)
    assert json.loads(done.stdout) == json.loads(kept.classify(load_lm("./one"), texts, True).to_json())


def test_forms_that_lose_the_constants_say_so(place, capsys):
    assert main(["export", "kept.json", "--to", "lm-eval", *TASK, "--model", "./one", "--out", "harness"]) == 0
    assert "does not carry the prompt's calibration constants" in capsys.readouterr().err


def test_eval_says_when_one_class_takes_nearly_all(place, capsys):
    "Tiny random models lean; a plain count decides what is to be said."
    task = load_task("mine.toml")
    for model in ("./one", "./two"):
        for prompt in ("", " great great great", " bad bad bad"):
            assert main(["eval", model, *TASK, "--prompt", prompt, "--quiet"]) == 0
            said = capsys.readouterr().out
            guess = label_logprobs(load_lm(model), task, task.validation.texts, prompt or None).argmax(1).tolist()
            top = max(guess.count(c) for c in (0, 1)) / len(guess)
            assert ("was predicted for" in said) == (top >= 0.9), (model, prompt, top)


@pytest.mark.parametrize(
    "argv, says",
    [
        (["audit", *TASK, "--models", "./one", "--prompt-file", "empty.txt"], "no prompt in it"),
        (["audit", *TASK, "--models", "./one", "--prompt-file", "twice.txt"], "' x' is given twice"),
        (
            ["audit", *TASK, "--models", "./one", "--prompt", " the bad film", "--prompt-file", "prompts.txt"],
            "is given twice",
        ),
        (["audit", *TASK, "--models", "./one", "--prompt", ""], "is empty"),
        (["audit", *TASK, "--models", "./one", "--prompt-file", "new.json"], "a prompt of version 9"),
        (["audit", *TASK, "--models", "./one", "--prompt-file", "named.json"], "holds the key 'mine' twice"),
        (["audit", *TASK, "--models", "./one", "--prompt-file", "classes.json"], "need a name for each"),
        (
            ["predict", "gaps.csv", "--prompt-file", "classes.json", "--model", "./one", "--out", "x.csv"],
            "classes.json",
        ),
        (["export", "classes.json", "--to", "python", "--out", "x.py"], "need a name for each"),
        (["audit", *TASK, "--models", "./one", "--prompt-file", "gone.txt"], "cannot be read"),
        (["audit", *TASK, "--models", "./one", "--prompt-file", "twice.json"], "holds the key 'a' twice"),
        (["labels", *TASK, "--models", "./one", "--words", ","], "0 of them, and 2 that are empty; need one for each"),
        (["labels", *TASK, "--models", "./one", "--words", "a"], "1 of them; need one for each of the 2 classes"),
        (["audit", *TASK, "--models", "./one", "./one"], "one is named twice"),
        (["audit", *TASK, "--models", "./one", "--limit", "1"], "of one class"),
        (
            ["predict", "texts.csv", *TASK, "--model", "./one", "--out", "x.csv"],
            "texts.csv: no column 'text' (columns: body, kind)",
        ),
        (
            ["predict", "texts.csv", *TASK, "--model", "./one", "--text", "body", "--label", "body", "--out", "x.csv"],
            "unknown label",
        ),
        (["predict", "gaps.csv", *TASK, "--model", "./one", "--out", "x.csv"], "row 2 has no text"),
        (["predict", "texts.csv", *TASK, "--model", "./one", "--text", "body", "--out", "x.xls"], "ends in .csv"),
        (["predict", "texts.csv", "--model", "./one", "--text", "body", "--out", "x.csv"], "no --task"),
        (
            [
                "predict",
                "texts.csv",
                "--prompt-file",
                "new.json",
                "--model",
                "./one",
                "--text",
                "body",
                "--out",
                "x.csv",
            ],
            "a prompt of version 9",
        ),
        (
            [
                "predict",
                "texts.csv",
                *TASK,
                "--prompt",
                "a",
                "--prompt-file",
                "kept.json",
                "--model",
                "./one",
                "--out",
                "x.csv",
            ],
            "exclude each other",
        ),
        (["export", "new.json", "--to", "python", "--out", "x.py"], "a prompt of version 9"),
        (
            ["predict", "texts.csv", "--prompt-file", "kept.json", "--model", "./one", "--text", "body"]
            + ["--out", "texts.csv"],
            "--out texts.csv: that is the table itself",
        ),
        *(
            (
                ["predict", "texts.csv", "--prompt-file", f"{name}.json", "--model", "./one", "--text", "body"]
                + ["--calibrated", "--out", "x.csv"],
                f"{name}.json: {says}",
            )
            for name, says in dict(
                alike="two classes are called 'one'",
                place="prompt_at is 'above'; need before",
                length="max_text_tokens is -1",
                words="the calibration constants for one are ['a', 'b']",
                nan="the calibration constants for one are [nan, 0.0]",
                none="its prompt is None",
            ).items()
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_bad_input_is_one_line(place, argv, says, capsys):
    assert main([*argv, "--quiet"] if argv[0] != "export" else argv) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and said.out == "" and not list(Path(".").glob("x.*"))


def test_empty_texts_are_passed_over_on_request(place, capsys):
    assert (
        main(["predict", "gaps.csv", *TASK, "--model", "./one", "--skip-empty", "--out", "filled.csv", "--quiet"]) == 0
    )
    assert "skipped" in capsys.readouterr().out
    assert pd.read_csv("filled.csv")["class"].isna().tolist() == [False, True, True][: len(pd.read_csv("filled.csv"))]


def test_loaded_models_are_taken_as_they_are(place):
    task, lm = load_task("mine.toml"), load_lm("./one")
    assert audit(task, lm, " so")["scores"] == audit("mine.toml", ["./one"], [" so"])["scores"]


def test_a_long_audit_is_seen_to_move(place):
    "The bar moves many times a prompt, by no more texts than a short pass holds, and reaches its end."
    texts = [f"a {'great' if k % 2 else 'bad'} film, number {k}" for k in range(600)]
    table = pd.DataFrame(dict(text=texts, label=["bad", "great"] * 300))
    task, moves = Task.from_pandas(table, words={"bad": " bad", "great": " great"}), []
    found = audit(task, [load_lm("./one")], " so", on_score=moves.append)
    a_prompt = found["n"] + found["unlabelled"]["n"] + len(found["content_free"])
    assert sum(moves) == 2 * a_prompt
    assert max(moves) <= a_prompt / 4


ONE = "./one"


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda task, kept: audit(task, ONE, 3), "prompts=3; need a prompt's text, a list of them"),
        (lambda task, kept: audit(task, ONE, {"mine": None}), "prompt 'mine' is None; need a prompt's text"),
        (lambda task, kept: audit(task, None), "models=None; need a list"),
        (lambda task, kept: audit(None, ONE), "task is a NoneType; need a Task, a task's name or the path of its file"),
        (lambda task, kept: audit(pd.DataFrame(), ONE), "Task.from_pandas makes a task of a table"),
        (lambda task, kept: compare_labels(task, 3), "models=3; need a list"),
        (lambda task, kept: compare_labels(task, ONE, [3]), "label words 3; need a list of words, or a text"),
        (lambda task, kept: transferable(pd.DataFrame(), [ONE, "./two"], out="x.d"), "Task.from_pandas makes"),
        (lambda task, kept: transferable(task, ONE, out="x.d"), "models='./one'; need a list"),
        (lambda task, kept: transferable(task, [ONE, "./two"], out="x.d", rules="a"), "rules='a'; need a TokenRules"),
        (lambda task, kept: kept.classify(ONE, pd.DataFrame(dict(text=["a", "b"]))), "texts are a DataFrame; need"),
        (lambda task, kept: kept.classify(ONE, {"a", "b"}), "texts are a set; need a string, or a list"),
        (lambda task, kept: kept.classify(ONE, None), "texts are a NoneType; need a string"),
        (lambda task, kept: Prompt.of([1.5], task, ONE), "prompt [1.5]; need a text, or a list of ids"),
        (lambda task, kept: Prompt.of(" a", task, None), "models=None; need a list"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_is_no_such_thing_is_one_line(place, call, says):
    "Nothing of the wrong kind is a traceback, and nothing is taken for something else."
    with pytest.raises(InputError) as e:
        call(load_task("mine.toml"), Prompt.load("kept.json"))
    assert says in str(e.value) and "\n" not in str(e.value) and not Path("x.d").exists()


def test_one_text_does_not_calibrate_itself(place, capsys):
    "It lies at its own mean: every class was as likely, and the first was named."
    with pytest.raises(InputError, match="one text cannot calibrate itself"):
        Prompt.load("kept.json").classify(ONE, "a good film", calibrated="texts")
    pd.DataFrame(dict(text=["a good film", None])).to_csv("single.csv", index=False)
    argv = ["predict", "single.csv", "--prompt-file", "kept.json", "--model", "./two", "--skip-empty", "--calibrated"]
    assert main([*argv, "--out", "x.csv", "--quiet"]) == 2
    assert "one text cannot calibrate itself" in capsys.readouterr().err and not Path("x.csv").exists()
    assert main([*argv, *TASK, "--out", "one.csv", "--quiet"]) == 0  # the task's holdout calibrates


def test_one_text_to_calibrate_on_is_one_text(place):
    "A text was taken letter by letter."
    assert Prompt.load("kept.json").calibrate(ONE, "a good film").calibration["one"]["texts"] == 1
