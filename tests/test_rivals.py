"""`hpt run --against`: hand-written prompts and no prompt stand beside what was tuned, raw and calibrated."""

import os
import re
import shutil
from pathlib import Path

import pytest

from hpt_nb.arrays import decode_logp
from hpt_nb.calibration import calibrated_accuracy
from hpt_nb.cli import main
from hpt_nb.rivals import rivals_text
from hpt_nb.store import Store
from tiny_run import PRESET, make_place

FEW = PRESET.replace("steps = 30", "steps = 4").replace("eval_every = 10", "eval_every = 4")
FEW = FEW.replace('name = "tiny"', 'name = "tiny"\nrows = ["PEZ", "Ours"]')
WRITTEN = ["Is this review good or bad?", "Sentiment: "]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    d, old = make_place(tmp_path_factory.mktemp("rivals")), os.getcwd()
    os.chdir(d)
    Path("few.toml").write_text(FEW)
    yield d
    os.chdir(old)


def test_they_are_taken_along_and_shown(place, capsys, plain_pages):
    "In the text of the run and on its page; the calibrated figures are those of the kept log-probabilities."
    argv = ["run", "few.toml", "--out", "run", "--quiet"]
    against = [x for text in WRITTEN for x in ("--against", text)]
    assert main([*argv, *against]) == 0
    said = capsys.readouterr().out
    assert main(["report", "run", "--out", "page"]) == 0
    page = Path("page/index.html").read_text(encoding="utf-8")
    assert "Compared with no prompt and hand-written ones" in page
    for text in WRITTEN:
        assert repr(text) in said and text in page
    assert re.search(r"mine from one, on two: Ours.*(without tuning|not shown to be worse|better than no prompt)", said)
    cells = [c for c in Store("run").cells("eval") if c["config"]["row"] in ("Empty", "Manual 1")]
    assert {c["config"]["target"] for c in cells} == {"one", "two"}
    for c in cells:
        r, held = c["result"], c["result"]["holdout"]
        labels = [int(x) for x in r["labels"]]
        found = calibrated_accuracy(decode_logp(r["logp"], r["n"]), labels, decode_logp(held["logp"], held["n"]))
        assert f"{100 * found:.1f}" in said and f"{100 * r['correct'] / r['n']:.1f}" in said
    before = {p: p.stat().st_mtime_ns for p in Path("run/cells").iterdir()}
    assert main([*argv, *against]) == 0  # nothing is computed twice, and it is said again
    assert {p: p.stat().st_mtime_ns for p in Path("run/cells").iterdir()} == before
    assert "Manual 2" in capsys.readouterr().out


def test_a_score_that_checks_another_is_no_seed_more(place, tmp_path):
    "Scores in a second number format check those of the table; counted as seeds they would weigh twice."
    shutil.copytree("run", tmp_path / "run")
    store = Store(tmp_path / "run")
    before = rivals_text(store)
    for c in [c for c in store.cells("eval") if c["config"]["row"] == "Ours" and c["config"]["seed"] == 0]:
        store.put("eval", c["config"] | {"dtype": "bfloat16"}, c["result"], c["meta"])
    assert rivals_text(Store(tmp_path / "run")) == before


def test_they_join_no_run_that_kept_nothing_to_calibrate_by(place, capsys):
    "Known before the work: the page could not tell the scores with holdout texts from those without."
    assert main(["run", "few.toml", "--out", "run", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "200 holdout texts calibrate in the results, none now" in said and said.count("\n") == 1


def test_what_is_no_prompt_is_refused(place, capsys):
    for texts in (["--against", ""], ["--against", "x", "--against", "x"]):
        assert main(["run", "few.toml", "--out", "none", "--quiet", *texts]) == 2
        err = capsys.readouterr().err
        assert "need a list of different texts" in err and err.count("\n") == 1 and not Path("none").exists()


def test_dry_run_names_them(place, capsys):
    assert main(["run", "few.toml", "--dry-run", "--rates", "1,1", "--against", WRITTEN[0]]) == 0
    assert repr(WRITTEN[0]) in capsys.readouterr().out
