"The comparison of methods on a tiny run: whole, half-way, and not begun."

import shutil

import pytest

from hpt_nb.cli import main
from hpt_nb.report import (
    complete_ways,
    method_scores,
    method_table,
    methods_left,
    part_note,
    results_frame,
    soft_table,
    spent_frame,
    tunes_frame,
)
from hpt_nb.store import Store
from tiny_run import PRESET, make_place, plain_pages, short_searches

METHODS = (
    PRESET.split('[[source]]\nmodel = "./two"')[0].replace(
        "seeds = [0, 1]",
        'seeds = [0, 1]\nrows = ["Empty", "Random", "PEZ", "Ours"]\n'
        'methods = ["pez", "gcg", "soft", "joint", "joint-choice"]',
    )
    + """
[vocab]
k = 8
s = 40
[tuning]
steps = 4
batch = 2
n_tokens = 3
eval_every = 2
holdout_n = 4
dtype = "float32"
[method.gcg]
steps = 2
n_candidates = 4
topk = 4
drop_unstable = false
[method.soft]
steps = 4
eval_every = 2
"""
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = make_place(tmp_path_factory.mktemp("methods"), METHODS)
    with pytest.MonkeyPatch.context() as m:
        m.chdir(place)
        plain_pages(m), short_searches(m)
        assert main(["run", "preset.toml", "--out", "out", "--quiet"]) == 0
        assert main(["report", "out", "--out", "site"]) == 0
    return place / "out"


def test_a_whole_run(run):
    store = Store(run)
    ms, lacks = complete_ways(method_scores(results_frame(store), "mine", "one"))
    assert lacks == [] and methods_left(store) == []
    assert set(ms.method) == {"Empty", "Random", "pez", "gcg", "soft", "joint", "joint-choice"}
    assert part_note(ms).startswith("† took part in the tuning itself: two in joint, joint-choice.")
    table = method_table(ms).set_index(["Method", "Vocabulary"])
    for c in store.cells("eval"):  # one number of the table, from its cells
        if c["config"]["row"] == "Empty" and c["config"]["target"] == "two":
            assert table.loc["Empty", ""].two == f"{100 * c['result']['correct'] / c['result']['n']:.1f}"
    assert len(soft_table(ms, tunes_frame(store))) == 4  # two vocabularies, source and target
    assert "Methods, side by side" in (run.parent / "site" / "index.html").read_text()


def test_a_run_costs_its_share_of_its_pass(run):
    store = Store(run)
    spent = spent_frame(tunes_frame(store), {"one": 10, "two": 30})
    for (method, _), g in spent.groupby(["method", "steps"]):
        cells = [c["result"] for c in store.cells("tune") if c["config"]["method"] == method]
        assert {c["forward_tokens"] for c in cells} == {
            round(g.forward_tokens.sum() * cells[0]["runs_in_pass"] / len(cells))
        }
        weights = 20 if method.startswith("joint") else 10  # the mean of two models
        assert g.multiplications.sum() == pytest.approx(weights * (g.forward_tokens + g.backward_tokens).sum())
    cost = spent.groupby("method").forward_tokens.mean()
    assert cost["joint"] > cost["joint-choice"]  # one reads both models at every step


@pytest.mark.parametrize(
    "gone, left",
    [("one score", "mine from one, gcg: 1 of 12 scores are missing"), ("all scores", "scores are missing")],
)
def test_half_a_run_says_what_it_lacks(run, tmp_path, gone, left):
    half = tmp_path / "half"
    shutil.copytree(run, half)
    for c in Store(half).cells("eval"):
        cfg = c["config"]
        if gone == "all scores" or (cfg["method"], cfg["row"], cfg["role"], cfg["seed"]) == (
            "gcg",
            "Ours",
            "transfer",
            1,
        ):
            (half / "cells" / f"eval-{c['hash']}.json").unlink()
    said = methods_left(Store(half))
    assert left in said[0] and len(said) == (1 if gone == "one score" else 7)
    if gone == "one score":
        ms, lacks = complete_ways(method_scores(results_frame(Store(half)), "mine", "one"))
        assert lacks == ["gcg, stable vocabulary, 2 steps: no score on two, seed 1"]
        assert set(ms[ms.method == "gcg"].vocab) == {"whole"}
