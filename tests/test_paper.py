"The paper's printed values: every copy in the project says the same."
from pathlib import Path

import numpy as np
import pytest

from hpt_nb import fingerprints, paper, report

ROOT = Path(__file__).parents[1]

def test_the_report_prints_these_values():
    table = paper.printed().set_index(["task", "source", "row", "counterpart", "place"])
    seen = 0
    for (task, source), rows in report.PAPER.items():
        for (row, counterpart), cells in rows.items():
            for place, value in zip(paper.PLACES, cells):
                one = table.loc[(task, source, row, counterpart, place)]
                mean, sd = value if isinstance(value, tuple) else (value, np.nan)
                assert one["mean"] == mean and (one["sd"] == sd or np.isnan(sd))
                seen += 1
    assert seen == len(table)

def test_the_fingerprints_seek_these_counts():
    assert fingerprints.COUNTS == paper.COUNTS and fingerprints.EMPTY == paper.EMPTY and fingerprints.SIZES == paper.SIZES

def test_every_value_is_one_that_its_split_can_give():
    "A mean of five whole counts is a multiple of 100/(5 n) %, to two decimals."
    for one in paper.printed().itertuples():
        n = paper.SIZES[one.task]*(1 if one.row == "Empty" else paper.SEEDS)
        assert min(abs(100*round(one.mean/100*n + k)/n - one.mean) for k in (-1, 0, 1)) <= .00501, one

@pytest.mark.skipif(not (ROOT/"hpt_nb/presets/paper.toml").exists(), reason="no preset paper")
def test_the_preset_paper_has_these_settings():
    import sys
    if sys.version_info >= (3, 11): import tomllib
    else: import tomli as tomllib
    preset = tomllib.loads((ROOT/"hpt_nb/presets/paper.toml").read_text(encoding="utf-8"))
    for part, names in (("tuning", ("lr", "steps", "batch", "n_tokens")), ("vocab", ("h", "k", "repeats", "s"))):
        for name in names: assert preset[part][name] == paper.setting(name), name
    assert len(preset["seeds"]) == paper.setting("seeds")
