"""Pages and lines say what was used, not what was asked for; what was cut or left out is counted where the numbers
stand; a figure shows every script."""

import base64
import json
import os
import re
import warnings
from html import unescape
from pathlib import Path

import pytest

from hpt_nb import report
from hpt_nb.cli import main
from hpt_nb.glyphs import drawn_text
from hpt_nb.store import Store
from tiny_run import PRESET, make_place, plain_pages

ASKED = PRESET.split('[[source]]\nmodel = "./two"')[0] + "[vocab]" + PRESET.split("[vocab]")[1]
ASKED = (
    ASKED.replace("seeds = [0, 1]", 'rows = ["Empty", "PEZ", "Ours"]\nseeds = [0]')
    .replace("steps = 30", "steps = 6")
    .replace("eval_every = 10", "eval_every = 100")
    .replace("holdout_n = 8", "holdout_n = 5000")
    .replace("k = 8", "k = 8\nh = 8192")
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run of 6 steps that asks to be judged every 100, on 5,000 texts where 8 are, with a sample larger than the
    vocabulary; texts are cut at 3 tokens, and two are dropped."""
    d, old = make_place(tmp_path_factory.mktemp("used"), ASKED), os.getcwd()
    os.chdir(d)
    (d / "mine.toml").write_text(
        (d / "mine.toml").read_text().replace("[data]", "max_text_tokens = 3\nholdout = 8\n[data]")
    )
    with open(d / "train.csv", "a") as f:
        f.write("it rains.,0\nit rains?,1\nthe film was good and great dev 1,1\n")
    with pytest.MonkeyPatch.context() as m:
        plain_pages(m)
        assert main(["run", "preset.toml", "--out", "ran", "--quiet"]) == main(["report", "ran", "--out", "site"]) == 0
    yield d
    os.chdir(old)


def rows_of(page):
    return dict(re.findall(r"<tr><td>([^<]+)</td><td>([^<]*)</td><td>[^<]*</td></tr>", page))


def test_the_page_says_what_was_used(place):
    page = Path("site/index.html").read_text(encoding="utf-8")
    said = {unescape(k): v for k, v in rows_of(page).items()}
    assert (
        said["Texts it is chosen on"] == "8"
        and said["Kept prompt chosen every (steps)"] == "6"
        and said["Sampled tokens h"] == "all (exact)"
        and said["Samples L"] == "-"
        and said["Prompt tokens"] == "4"
    )
    assert "those of more than 3 tokens were cut: 24 on one, 24 on two" in page
    assert "Left out of the task&#x27;s texts: 2 with two labels, 1 also in another split" in page


def test_an_older_cell_that_does_not_say_is_judged_by_its_accuracies(place, tmp_path):
    "5/8 of 5,000 is a whole number of texts, 1/3 is not."
    for cell in Store("ran").cells("tune")[:1]:
        for holdout, want in (([0.625], "5000"), ([1 / 3, 0.5], "fewer than 5000"), ([], "5000")):
            old = dict(
                cell,
                meta={k: v for k, v in cell["meta"].items() if k != "ran"},
                result=cell["result"]
                | dict(curve=dict(step=[6] * len(holdout), loss=[0.0] * len(holdout), holdout=holdout)),
            )
            s = Store(tmp_path / want / str(len(holdout)))
            s.put("tune", old["config"], old["result"], old["meta"])
            assert report.tunes_frame(s).chosen_on.tolist() == [want]


def test_a_command_says_what_it_uses(place, capsys):
    tune = [
        "tune",
        "./one",
        "--task",
        "mine.toml",
        "--batch",
        "2",
        "--tokens",
        "3",
        "--quiet",
        "--dtype",
        "float32",
        "--out",
        "t",
    ]
    assert main([*tune, "--steps", "2"]) == 0
    err = capsys.readouterr().err
    assert (
        "prompts are chosen on all 8 holdout texts, since there are no 5000" in err
        and "judged once, after the last of 2 steps, not every 100" in err
        and "8 of 8 holdout texts are longer than 3 tokens and cut" in err
    )
    assert main([*tune, "--steps", "2", "--eval-every", "1", "--holdout", "8"]) == 0
    err = capsys.readouterr().err
    assert "chosen on" not in err and "judged once" not in err
    assert Store("t").cells("tune")[0]["meta"]["ran"]["chosen_on"] == 8
    assert (
        main(["eval", "./one", "--task", "mine.toml", "--json"]) == 0
        and json.loads(capsys.readouterr().out)["cut"] == 24
    )
    assert (
        main(["eval", "./one", "--task", "mine.toml", "--quiet"]) == 0
        and "; 24 texts cut at 3 tokens" in capsys.readouterr().out
    )
    assert (
        main(
            [
                "transferable",
                "--task",
                "mine.toml",
                "--models",
                "./two",
                "./one",
                "--steps",
                "2",
                "--batch",
                "2",
                "--tokens",
                "3",
                "--k",
                "8",
                "--top",
                "40",
                "--seeds",
                "0",
                "--quiet",
                "--dtype",
                "float32",
                "--out",
                "made",
            ]
        )
        == 0
    )
    out, body = capsys.readouterr().out, json.loads(Path("made/prompt.json").read_text(encoding="utf-8"))
    assert "texts longer than 3 tokens were cut: 24 of 24 on two, 24 of 24 on one" in out
    assert (
        body["chosen_on"] == 8
        and body["scored_on"]["cut"] == {"two": 24, "one": 24}
        and body["dropped"] == {"conflicting labels": 2, "in another split": 1}
    )


CUT = {  # a command, and where it counts the texts that it cuts
    "predict": (["predict", "dev.csv", "--model", "./one", "--out", "p.csv"], "24 longer than the prompt's task reads"),
    "labels": (["labels", "--models", "./one", "--limit", "8"], "than the task reads, and cut: 8 on one"),
    "effects": (
        ["effects", "./one", "./two", "--tokens", "3", "--texts", "4", "--out", "e.parquet"],
        "one: 4 of 4 texts are longer than 3 tokens and cut",
    ),
    "audit": (["audit", "--models", "./one", "--limit", "8"], "8 of 8 texts are longer than 3 tokens and cut"),
    "a batch": (
        ["tune", "./one", "--steps", "1", "--tokens", "2", "--batch", "999", "--holdout", "8", "--out", "t9"],
        "each step reads 999 texts, but there are only 3",
    ),
    "a sample": (
        ["stability", "./one", "./two", "--k", "4", "--sample", "999", "--out", "s.parquet"],
        "samples of 999",
    ),
}


@pytest.mark.parametrize("what", CUT)
def test_each_command_counts_what_it_did_not_do_as_asked(place, capsys, what):
    argv, says = CUT[what]
    task = [] if argv[0] == "stability" else ["--task", "mine.toml"]
    assert main([*argv, *task, "--quiet"]) == 0
    said = capsys.readouterr()
    assert says in said.out + said.err, said


# ---- figures ----

SCRIPTS = {
    "Latin": "caf\u00e9",
    "Greek": "\u03b1\u03b2\u03b3",
    "Cyrillic": "\u0434\u0430",
    "Arabic": "\u0633\u0644\u0627\u0645",
    "Chinese": "\u6771\u4eac",
    "Japanese": "\u3042\u304f\u3073",
    "Korean": "\uc11c\uc6b8",
    "Thai": "\u0e44\u0e17\u0e22",
    "Devanagari": "\u0939\u093f\u0928\u094d\u0926\u0940",
    "Bengali": "\u09ac\u09be\u0982",
    "Tamil": "\u0ba4\u0bae\u0bbf\u0bb4\u0bcd",
    "Georgian": "\u10e5\u10d0\u10e0",
    "Ethiopic": "\u12a0\u121b",
    "emoji": "\U0001f9d1\U0001f44e",
    "astral": "\U00020000",
    "mixed": "a \u6771 \u0434",
}


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)
def test_a_figure_shows_every_script(text):
    "As shapes that the font has, and else as code points; no box, and no warning for each."

    def draw(ax):
        ax.plot([0, 1], label=f"{text} legend")
        ax.set_title(f"{text} title")
        ax.set_xticks([0], [f"{text} tick"])
        ax.set_xlabel(f"{text} label")
        ax.text(0.5, 0.5, f"{text} text")

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        html = report.figure_html([draw], "x")
    svg = base64.b64decode(html.split("base64,")[1].split('"')[0]).decode()
    assert not [w for w in seen if "missing from" in str(w.message)]
    for place in ("legend", "title", "tick", "label", "text"):  # what was drawn stands beside its shapes
        assert f"<!-- {drawn_text(text)} {place} -->" in svg
