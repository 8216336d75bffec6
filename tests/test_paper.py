"The paper's printed values: every copy in the project says the same."

from pathlib import Path

import pytest

from hpt_nb import beside, fingerprints, paper, settings

ROOT = Path(__file__).parents[1]


def test_the_report_prints_these_values():
    "It has no copy of its own."
    assert beside.paper_values is paper.paper_values
    assert (
        settings.PAPER_SETTINGS["Sampled tokens h"] == settings.PAPER_SETTINGS["Vocabulary size s"] == "8192"
        and settings.PAPER_SETTINGS["Learning rate"] == "0.3"
    )
    assert set(settings.SETTING_NAMES.values()) == {ours for _, _, ours in paper.SETTINGS.values()}


def test_bold_is_a_second_copy_of_each_comparison():
    table = paper.printed()
    base = table[table.row == "PEZ"].set_index(["table", "place"])["mean"]
    ours = table[table.row == "Ours"]
    assert (
        len(ours) == 40
        and [m > base[t, p] for t, p, m in zip(ours.table, ours.place, ours["mean"])] == ours.bold.tolist()
    )


def test_the_fingerprints_seek_these_counts():
    assert (
        fingerprints.COUNTS == paper.COUNTS and fingerprints.EMPTY == paper.EMPTY and fingerprints.SIZES == paper.SIZES
    )


def test_every_value_is_one_that_its_split_can_give():
    "A mean of five whole counts is a multiple of 100/(5 n) %, to two decimals."
    for one in paper.printed().itertuples():
        n = paper.SIZES[one.task] * (1 if one.row == "Empty" else paper.SEEDS)
        assert min(abs(100 * round(one.mean / 100 * n + k) / n - one.mean) for k in (-1, 0, 1)) <= 0.00501, one


@pytest.mark.skipif(not (ROOT / "hpt_nb/presets/paper.toml").exists(), reason="no preset paper")
def test_the_preset_paper_has_these_settings():
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    preset = tomllib.loads((ROOT / "hpt_nb/presets/paper.toml").read_text(encoding="utf-8"))
    for part, names in (("tuning", ("lr", "steps", "batch", "n_tokens")), ("vocab", ("h", "k", "repeats", "s"))):
        for name in names:
            assert preset[part][name] == paper.setting(name), name
    assert len(preset["seeds"]) == paper.setting("seeds")
