"""Lists of tokens that may be used, or not: for every method and every row, from a preset as from the command line."""

import os
from pathlib import Path

import pytest

from hpt_nb.cli import main
from hpt_nb.experiments import load_preset, run_preset
from hpt_nb.models import load_lm
from hpt_nb.selection import select
from hpt_nb.store import InputError, Store
from hpt_nb.vocab import whole_vocab
from tiny_run import PRESET, make_place

FEW = (
    PRESET.replace("steps = 30", "steps = 4").replace("eval_every = 10", "eval_every = 4").replace("[0, 1]", "[0]")
    + "[scoring]\nn = 4\n[method.gcg]\nsteps = 2\neval_every = 2\nbatch = 2\nn_candidates = 4\n"
)
FEW = FEW.replace('name = "tiny"', 'name = "tiny"\nmethods = ["pez", "gcg"]\nrows = ["PEZ", "PEZ-pruned", "Ours"]')
TOKENS = '[tokens]\ndeny = ["names.txt", ".*e"]\nascii = true\nno_label_words = true\n'


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    d, old = make_place(tmp_path_factory.mktemp("allowed")), os.getcwd()
    os.chdir(d)
    Path("names.txt").write_text("film\nplot\n")
    Path("free.toml").write_text(FEW)
    Path("kept.toml").write_text(FEW + TOKENS)
    yield d
    os.chdir(old)


def test_every_row_and_method_keeps_to_the_lists(place):
    "No prompt holds what is denied; other rules are another vocabulary, and no score of the free run stands for it."
    free, preset = load_preset("free.toml"), load_preset("kept.toml")
    from hpt_nb.tasks import load_task

    rules, there = preset.rules_for(load_task("mine.toml")), {}
    for p in (free, preset):
        there[p.rules] = run_preset(p, place / "run", progress=False).cells("tune")
    cells = [c for c in there[preset.rules] if (c["meta"].get("ran") or {}).get("rules")]
    assert len(cells) == len(there[free.rules]) == len(there[preset.rules]) / 2
    assert {(c["config"]["row"], c["config"]["method"]) for c in cells} == {
        *((row, m) for row in ("PEZ", "PEZ-pruned", "Ours") for m in ("pez", "gcg"))
    }
    for c in cells:
        allowed = select(whole_vocab(load_lm(f"./{c['config']['source']}")), rules).ids[0].tolist()
        assert set(c["result"]["prompt_ids"]) <= set(allowed)
        assert c["meta"]["ran"]["rules"]["without"] == ["bad", "great"]
    assert main(["run", "kept.toml", "--out", "run", "--quiet"]) == 2  # a page could not tell the two apart
    hashes = [{c["config"]["vocab"]["hash"] for c in some} for some in (cells, there[free.rules])]
    assert hashes[0].isdisjoint(hashes[1])


def test_too_few_are_left(place, capsys):
    "Known before anything is tuned, and said with what to do."
    Path("none.toml").write_text(FEW + '[tokens]\nallow = ["a", "b"]\n')
    assert main(["run", "none.toml", "--out", "none", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "[tokens] leaves" in said and "need a smaller s, or fewer rules" in said and said.count("\n") == 1
    assert not Store("none").cells("tune")
    Path("wrong.toml").write_text(FEW + '[tokens]\ndeny = ["lists/none.txt"]\n')
    with pytest.raises(InputError, match="no such file"):
        load_preset("wrong.toml")


def test_dry_run_says_the_rules_and_the_time_of_the_comparison(place, capsys):
    assert main(["run", "kept.toml", "--dry-run", "--rates", "1,1"]) == 0
    said = capsys.readouterr().out
    assert "deny = ['film', 'plot', '.*e']" in said and "no_label_words = True" in said
    assert "comparing 1 pair of vocabularies: about" in said
