"""The classifier in scikit-learn's pipelines and searches, and without it; label words by command; data as users
have it."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hpt_nb import base, vocabularies
from hpt_nb.classifier import HardPromptClassifier
from hpt_nb.cli import main
from hpt_nb.prompts import Prompt
from hpt_nb.store import InputError
from hpt_nb.tasks import load_task
from tiny import tiny_lm
from tiny_run import make_place

TEXTS = [f"{'the film was good and great' if i % 2 else 'the plot was bad and boring'} {i}" for i in range(24)]
LABELS = ["pos" if i % 2 else "neg" for i in range(24)]
SMALL = dict(
    label_words={"neg": " bad", "pos": " great"}, steps=2, batch=2, n_tokens=2, seeds=(0,), s=40, k=8, dtype="float32"
)


@pytest.fixture(scope="module")
def lms():
    return [tiny_lm("llama3"), tiny_lm("gpt2", 1)]


def test_fit_predict_save(lms, tmp_path):
    made = HardPromptClassifier(lms, **SMALL).fit(TEXTS, np.array(LABELS))
    assert made.classes_.tolist() == ["neg", "pos"] and made.candidates_[0]["prompt"] == ""
    assert made.predict_proba(pd.Series(TEXTS)).argmax(1).tolist() == [
        ["neg", "pos"].index(y) for y in made.predict(pd.DataFrame(dict(t=TEXTS)))
    ]
    back = Prompt.load(made.prompt_.save(tmp_path / "p.json"))
    assert back.classify(lms[0], TEXTS, True)["class"].tolist() == made.predict(TEXTS).tolist()


def test_a_copy_shares_loaded_models(lms):
    made = HardPromptClassifier(lms, **SMALL)
    assert made.__sklearn_clone__().models is lms and made.get_params()["n_tokens"] == 2


def test_scikit_learn_takes_it(lms):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    made = HardPromptClassifier(lms, **SMALL)
    assert clone(made).models is lms
    pipe = make_pipeline(FunctionTransformer(lambda texts: [t.lower() for t in texts]), made).fit(TEXTS, LABELS)
    assert set(pipe.predict(TEXTS)) <= {"neg", "pos"} and 0 <= pipe.score(TEXTS, LABELS) <= 1
    search = GridSearchCV(made, dict(n_tokens=[1, 2]), cv=2).fit(TEXTS, LABELS)
    assert search.best_params_["n_tokens"] in (1, 2) and search.best_estimator_.predict_proba(TEXTS).shape == (24, 2)


def test_fits_of_one_pair_of_models_share_its_vocabulary(lms, tmp_path, monkeypatch):
    """A grid search fits dozens of times; neighbourhoods are compared once, and a cache that takes nothing is no
    hindrance."""
    scored, score = [], vocabularies.stable_vocab
    monkeypatch.setattr(vocabularies, "stable_vocab", lambda *a, **k: scored.append(a) or score(*a, **k))
    monkeypatch.setenv("HPT_CACHE", str(tmp_path / "cache"))
    first = HardPromptClassifier(lms, **SMALL).fit(TEXTS, LABELS)
    again = HardPromptClassifier(lms[::-1], **SMALL | dict(n_tokens=1)).fit(TEXTS, LABELS)
    assert len(scored) == 1 and first.candidates_ and again.candidates_
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HPT_CACHE", str(tmp_path / "file"))
    assert HardPromptClassifier(lms, **SMALL).fit(TEXTS, LABELS).candidates_ == first.candidates_ and len(scored) == 2


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    d, old = make_place(tmp_path_factory.mktemp("data")), os.getcwd()
    os.chdir(d)
    yield d
    os.chdir(old)


def test_labels_by_command(place, capsys):
    assert (
        main(
            ["labels", "--task", "mine.toml", "--models", "./one", "./two", "--words", "the,good", "--json", "--quiet"]
        )
        == 0
    )
    rows = json.loads(capsys.readouterr().out)
    assert [r["words"] for r in rows] == [[" bad", " great"], [" the", " good"]] * 2
    assert main(["labels", "--task", "mine.toml", "--models", "./one", "--words", "the,good", "--quiet"]) == 0
    assert "best mean AUC" in capsys.readouterr().out
    assert main(["labels", "--task", "mine.toml", "--models", "./one", "--words", "the", "--quiet"]) == 2
    assert "need one for each of the 2 classes" in capsys.readouterr().err


def test_one_file_with_semicolons(place, capsys):
    Path("all.csv").write_text("text;label\n" + "".join(f"{t};{i % 2}\n" for i, t in enumerate(TEXTS)))
    Path("all.toml").write_text('suffix = ". It was"\nlabels = [" bad", " great"]\n[data]\nfile = "all.csv"\n')
    assert main(["eval", "./one", "--task", "all.toml", "--quiet"]) == 0
    said = capsys.readouterr()
    assert "of 4 right" in said.out and "separated by semicolons" in said.err and "with seed 0" in said.err
    assert load_task("all.toml").validation == load_task("all.toml", seed=3).validation


def test_from_a_prompt_of_ones_own(place, capsys):
    "The start is a candidate, and stays unless something is better; rivals, no prompt and constants stand in the file."
    argv = [
        "transferable",
        "--task",
        "mine.toml",
        "--models",
        "./one",
        "./two",
        "--start",
        " the good film",
        "--against",
        " so good",
        "--steps",
        "2",
        "--seeds",
        "0",
        "--holdout",
        "8",
        "--k",
        "8",
        "--top",
        "40",
        "--dtype",
        "float32",
        "--quiet",
        "--out",
        "mine",
    ]
    assert main(argv) == 0
    said = capsys.readouterr().out
    body = json.loads(Path("mine/prompt.json").read_text(encoding="utf-8"))
    first = body["candidates"][0]
    assert first["prompt"] == " the good film" and max(c["mean"] for c in body["candidates"]) == next(
        c["mean"] for c in body["candidates"] if c["chosen"]
    )
    if body["prompt"] != first["prompt"]:
        assert next(c["mean"] for c in body["candidates"] if c["chosen"]) > first["mean"]
    assert body["method"] == "joint-swaps" and body["settings"]["objective"] == "centred"
    rows = {s["prompt"] for s in body["audit"]["scores"]}
    assert {"no prompt", " so good"} <= rows and set(body["calibration"]) == {"one", "two"}
    assert (
        body["changes"]["path"][0]["text"] == " the good film" and body["changes"]["path"][-1]["text"] == body["prompt"]
    )
    page = Path("mine/worth.html").read_text(encoding="utf-8")
    assert "From the start to the end" in page and " so good" in said and "advice: " in said
    kept = Prompt.load("mine")
    assert kept.classify("./one", ["a good film"], calibrated=True)["class"][0] in ("bad", "great")


@pytest.mark.parametrize(
    "more, says",
    [
        (["--start", "  "], "start ' ': no part of it is one token in each of one and two"),
        (["--start", " the good film", "--set", "fresh_n=1000"], "need 1048 texts per round, but there are 32"),
        (["--start", " the good film", "--set", "fresh_n=1000", "--dry-run"], "need 1048 texts per round"),
        (["--deny", ".*"], "tokens is left by deny"),
        (["--set", "start= so"], "--set start= so: that is no setting of a method"),
        (["--set", "out=b"], "the command has an option of its own for it"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_search_that_cannot_begin_leaves_nothing(place, more, says, capsys):
    "It is refused before the models' vocabularies are compared, which takes minutes, and no folder is made."
    argv = ["transferable", "--task", "mine.toml", "--models", "./one", "./two", "--k", "8", "--quiet", "--out", "no"]
    assert main([*argv, *more]) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and said.out == "" and not Path("no").exists()


def test_loaded_models_in_transferable(place, caplog):
    "Loaded models as well as names, and lists of tokens; a finished call knows itself, whatever its lists."
    from hpt_nb.models import load_lm
    from hpt_nb.practice import transferable
    from hpt_nb.selection import token_rules

    small = dict(steps=2, batch=2, n_tokens=2, holdout_n=8, k=8, s=40, seeds=(0,), dtype="float32")
    ask = dict(out="loaded", rules=(token_rules(deny=".*e", ascii=True), True), **small)
    models = [load_lm("./one"), "./two"]
    with caplog.at_level("INFO", "hpt_nb"):
        got = transferable("mine.toml", models, progress=True, **ask)
        assert "comparing vocabularies" in caplog.text or "tuning 0 s" in caplog.text
        assert "finished before" not in caplog.text
        again = transferable("mine.toml", models, progress=True, **ask)
        assert "finished before" in caplog.text
    assert {s["model"] for s in got["scores"]} == {"one", "two"} and again["prompt"] == got["prompt"]
    assert got["vocabulary"]["rules"] == dict(deny=[".*e"], ascii=True, without=["bad", "great"])
    kept = HardPromptClassifier(models, rules=token_rules(allow="[a-d]"), **SMALL).fit(TEXTS, LABELS).candidates_
    assert set("".join(c["prompt"] for c in kept)) <= set(" abcd")


def test_bad_data_is_one_line(place):
    with pytest.raises(InputError, match="text 1 is None"):
        HardPromptClassifier(["./one"], steps=0).fit(["a", None], ["x", "y"])
    with pytest.raises(InputError, match="no word for class 'pos'"):
        HardPromptClassifier(["./one"], label_words={"neg": " bad"}, steps=0).fit(TEXTS, LABELS)


@pytest.mark.parametrize(
    "labels, settings, says",
    [
        ([None, *LABELS[1:]], {}, "label 0 is None"),
        ([float("nan"), *[i % 2 for i in range(23)]], {}, "label 0 is nan"),
        ([1, "1"] * 12, {}, "some labels are texts and some are not"),
        (LABELS, dict(seeds=3), "seeds=3; need a list"),
        (LABELS, dict(random_state="x"), "random_state='x'"),
        (LABELS, dict(random_state=np.random.RandomState(0)), "random_state="),
        (LABELS, dict(calibrate="no"), "calibrate='no'"),
        (LABELS, dict(label_words=[" pos", " neg"]), "own names in another order"),
        (LABELS, dict(label_words={" pos", " neg"}), "need one word for each of the 2 classes"),
        (None, {}, "labels of shape (); need one for each text"),
        ([[y] for y in LABELS], {}, "labels of shape (24, 1); need one for each text"),
    ],
    ids=lambda v: v[:30] if isinstance(v, str) else type(v).__name__,  # a set has no order
)
def test_what_cannot_be_fitted_is_one_line(lms, labels, settings, says):
    with pytest.raises(InputError, match=re.escape(says)) as e:
        HardPromptClassifier(lms, **SMALL | dict(steps=0) | settings).fit(TEXTS, labels)
    assert "\n" not in str(e.value)


def test_a_score_needs_a_label_for_each_text(lms):
    "One label was held against every text."
    made = HardPromptClassifier(lms, **SMALL | dict(steps=0)).fit(TEXTS, LABELS)
    for texts, labels in ((TEXTS[:2], LABELS[:1]), ([], [])):
        with pytest.raises(ValueError):  # of scikit-learn where it is installed; an InputError is one
            made.score(texts, labels)


def test_texts_with_two_labels_are_said(lms, capsys, monkeypatch):
    monkeypatch.setattr(base, "_SAID", {})
    made = HardPromptClassifier(lms, **SMALL | dict(steps=0))
    made.fit([*TEXTS, "Odd!", "odd"], [*LABELS, "neg", "pos"])
    assert "2 of 26 texts are dropped: they are given with two labels, such as 'Odd!'" in capsys.readouterr().err
    with pytest.raises(InputError, match="no text is left to tune on"):
        made.fit(TEXTS + TEXTS, LABELS + LABELS[::-1])
