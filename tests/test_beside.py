"""Ours beside the paper: a made-up run under the paper's model names, from its results folder to the page."""

import math
import re

import numpy as np
import pandas as pd
import pytest

from hpt_nb import report
from hpt_nb.beside import beside_printed, bold_again, bold_said
from hpt_nb.paper import SEEDS, paper_values, printed
from hpt_nb.stats import welch
from test_report import fill

GPT2, OPT, XL = "openai-community/gpt2-large", "facebook/opt-1.3b", "openai-community/gpt2-xl"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "The paper's first table with one of its two counterparts and one of its four targets."
    return fill(
        tmp_path_factory.mktemp("run") / "run",
        tasks=("sst2",),
        pairs=((GPT2, OPT),),
        extra_targets=(XL,),
        seeds=(0, 1, 2),
    )


@pytest.fixture(scope="module")
def df(run):
    return report.results_frame(run)


def counts(run, row, target, mode):
    "Percentages of a row's seeds, straight from the files."
    cells = [
        c
        for c in run.cells("eval")
        if (c["config"]["row"], c["config"]["target"], c["config"]["mode"]) == (row, target, mode)
    ]
    return [100 * c["result"]["correct"] / c["result"]["n"] for c in cells]


def test_each_cell_that_both_have_stands_there_once(run, df):
    both = beside_printed(report.accuracy_stats(df, "sst2", GPT2), "sst2", GPT2)
    rows = ["Empty", "Random", "PEZ", "PEZ-pruned", "CommonVocab-pruned", "Ours"]
    assert sorted(zip(both.row, both.place)) == sorted(
        (r, p) for r in rows for p in ("Original", "gpt2-xl")
    )  # the counterpart is no target of the paper's
    theirs = paper_values("sst2", GPT2).set_index(["row", "counterpart", "place"])
    for r in both.itertuples():
        own = counts(run, r.row, GPT2 if r.place == "Original" else XL, "ids" if r.place == "Original" else "text")
        printed_cell = theirs.loc[r.row, r.counterpart, r.place]
        assert r.points == pytest.approx(np.mean(own) - printed_cell["mean"])
        if r.row == "Empty":
            assert math.isnan(r.low) and math.isnan(r.high)
        else:
            found = welch(np.mean(own), np.std(own, ddof=1), len(own), printed_cell["mean"], printed_cell["sd"], SEEDS)
            assert (r.low, r.high) == pytest.approx((found.low, found.high))


def test_bold_again_is_counted_by_hand(run, df):
    both = beside_printed(report.accuracy_stats(df, "sst2", GPT2), "sst2", GPT2)
    again = sum(
        np.mean(counts(run, "Ours", *where)) > np.mean(counts(run, "PEZ", *where))
        for where in ((GPT2, "ids"), (XL, "text"))
    )
    f = bold_again([both])
    assert (f["printed"], f["run"], f["bold_run"], f["again"]) == (
        len(printed()),
        12,
        2,
        again,
    )  # both are bold in the paper
    swapped = both.assign(bold=[None if b is None else not b for b in both.bold])
    assert bold_again([swapped])["again"] == 2 - again


def test_the_page_opens_with_it(run, df, tmp_path):
    html = report.write_report(run.path, tmp_path).read_text(encoding="utf-8")
    said = report.paper_said(df)[0]
    assert said.startswith(f"Of the paper's {int(printed().bold.sum())} bold cells") and "2 were run here" in said
    first = re.search(r"<header.*?</header>", html, re.S)[0]
    assert said in re.sub("<.*?>|&#x27;|&#39;", lambda m: "'" if m[0][0] == "&" else "", first)
    assert "12 of the 40 accuracies that the paper prints for sst2 from gpt2-large were run here" in html.replace(
        "&#x27;", "'"
    )
    assert "Scored on 40 texts here, on 872 in the paper." in html and "Welch" in html
    table = html.split("Ours and the paper")[-1].split("</table>")[0]
    assert len(re.findall("<tr>", table)) == 1 + 12


def test_ways_of_tuning_are_counted_apart(df):
    two = pd.concat([df, df[~report.fixed_rows(df.row)].assign(method="pez-reprojected")], ignore_index=True)
    assert [s.split(":")[0] for s in report.paper_said(two)] == ["pez, 30 steps", "pez-reprojected, 30 steps"]


def test_other_models_are_not_held_against_the_paper(tmp_path):
    other = report.results_frame(fill(tmp_path / "run", tasks=("sst2",), pairs=(("toy-a", "toy-b"),)))
    assert report.paper_said(other) == [] and not len(report.beside_paper(other, "sst2", "toy-a"))


def test_without_a_baseline_nothing_is_bold_again(df):
    part = beside_printed(report.accuracy_stats(df[df.row != "PEZ"], "sst2", GPT2), "sst2", GPT2)
    f = bold_again([part])
    assert (f["run"], f["bold_run"], f["again"]) == (10, 0, 0) and "none was run here with a Baseline" in bold_said(f)
