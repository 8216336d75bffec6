"The committed analysis on invented studies whose truth is known, and the paper reanalysed."

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("scipy")

from hpt_nb import analysis as an
from hpt_nb.stats import holm
from hpt_nb.store import InputError

ROWS = {
    "Empty": None,
    "Start": None,
    "Manual 1": None,
    "Manual 2": None,
    "PEZ": 10,
    "PEZ-pruned": 10,
    "CommonVocab-pruned": 10,
    "Ours": 14,
    "CommonVocab+labels": 10,
    "Ours-without-labels": 10,
}


def study(skill=None, lean=None, seed=0, n=200, task="sst2", classes=2):
    """A frame as the study's. `skill` and `lean`: what a row has more than others, {row: number} or {(row, target):
    number}."""
    rng, rows, skill, lean = np.random.default_rng(seed), [], skill or {}, lean or {}
    models = ("smollm2-135m", "gemma-3-270m", "qwen")
    labels, held_labels = np.arange(n) % classes, np.arange(60) % classes
    hard, held_hard = ({m: rng.normal(size=(k, classes)) for m in models} for k in (n, 60))

    def score(hard, labels, gain, push):
        z = (1 + gain) * np.eye(classes)[labels] + hard + 0.3 * rng.normal(size=hard.shape) + push * np.eye(classes)[0]
        return z - np.log(np.exp(z).sum(1, keepdims=True))

    more = lambda table, row, target: table.get((row, target), table.get(row, 0))
    for source in models[:2]:
        for row, seeds in ROWS.items():
            for s in [None] if seeds is None else range(seeds):
                own = rng.normal(0, 0.15, 2) if s is not None else (0, 0)
                for target in models:
                    gain, push = more(skill, row, target) + own[0], more(lean, row, target) + own[1]
                    logp = score(hard[target], labels, gain, push).astype(np.float16).astype(np.float32)
                    where = (
                        dict(role="original", mode="ids") if target == source else dict(role="transfer", mode="text")
                    )
                    rows.append(
                        dict(
                            task=task,
                            source=source,
                            target=target,
                            row=row,
                            seed=s,
                            method=s if s is None else "pez",
                            steps=s if s is None else 100,
                            counterpart=None,
                            dtype="bfloat16",
                            prompt_ids=[len(row), -1 if s is None else s, *range(len(source))],
                            start_ids=None if s is None else [0],
                            labels=labels,
                            logp=logp,
                            correct=int((logp.argmax(1) == labels).sum()),
                            holdout_labels=held_labels,
                            holdout_logp=score(held_hard[target], held_labels, gain, push),
                            **where,
                        )
                    )
    return pd.DataFrame(rows).assign(seed=lambda d: d.seed.astype("Int64"), steps=lambda d: d.steps.astype("Int64"))


def verdicts(table):
    return table[table.p_holm.notna()].set_index("claim").verdict.to_dict()


# ---- the paper ----


def test_the_paper_reanalysed():
    rows = an.reanalysed()
    transfer = rows[rows.place != "Original"]
    assert (len(rows), (rows.p < 0.05).sum(), (rows.p_bonferroni < 0.05).sum(), (rows.p_holm < 0.05).sum()) == (
        40,
        3,
        0,
        0,
    )
    assert (len(transfer), (transfer.difference > 0).sum(), transfer.above_empty.sum()) == (32, 24, 17)
    assert transfer.difference.mean() == pytest.approx(
        2.2, abs=0.05
    ) and transfer.sd_difference.median() == pytest.approx(6.1, abs=0.05)
    seen = an.paper_power()
    assert seen["power"] == pytest.approx(0.10, abs=0.005) and seen["could_see"] == pytest.approx(8.7, abs=0.05)


def test_each_p_value_is_scipy_s():
    from scipy.stats import ttest_ind_from_stats

    for one in an.reanalysed().itertuples():
        ref = ttest_ind_from_stats(one.mean, one.sd, 5, one.baseline, one.baseline_sd, 5, equal_var=False)
        assert one.p == pytest.approx(ref.pvalue) and one.sd_difference**2 == pytest.approx(
            one.sd**2 + one.baseline_sd**2
        )


# ---- the study ----


@pytest.mark.slow  # a simulation
def test_nothing_is_found_where_nothing_is():
    "Ten studies without any difference between tuned rows: hardly a claim of the page comes out above or below."
    found = []
    for seed in range(10):
        table = an.claims_table(
            study(seed=seed, n=80),
            claims=[c for c in an.CLAIMS if c.name in ("source", "targets", "commonness", "stability")],
        )
        found += list(verdicts(table).values())
    assert len(found) == 40 and sum(v in ("above", "below") for v in found) <= 3


def test_what_was_put_in_is_found():
    better = {
        ("Ours", "smollm2-135m"): 0.6,
        ("Ours", "gemma-3-270m"): 0.6,
    }  # on the two sources, and so on one target of each
    v = verdicts(an.claims_table(study(better)))
    assert v["source"] == "above" and v["targets"] == "above"


def test_stability_itself_is_told_from_label_words():
    "Label words help, stability does not: Ours beats random common tokens, and the fair comparison is not above."
    help_ = dict.fromkeys(("Ours", "CommonVocab+labels"), 0.5)
    v = verdicts(an.claims_table(study(help_, n=300)))
    assert v["commonness"] == "above" and v["stability"] != "above"


def test_a_shift_of_bias_is_no_skill():
    "Without a prompt the model leans; tuned prompts lean less and know no more."
    df = study(lean={"Empty": 1.5})
    table = an.claims_table(df).set_index(["claim", "scope", "measure"])
    raw = table.loc[("skill", "pooled", "accuracy")]
    assert raw.estimate > 4 and raw.verdict == "above"
    assert (
        table.loc[("skill", "pooled", "calibrated")].verdict != "above"
        and table.loc[("skill", "pooled", "auc")].verdict != "above"
    )
    split = an.bias_or_skill(df, "sst2", "PEZ").set_index(["source", "place", "part"]).estimate
    for source, place in {k[:2] for k in split.index}:
        cell = split[source, place]
        assert cell["gain"] == pytest.approx(cell["calibrating no prompt"] + cell["the rest"])
        assert abs(cell["both calibrated"]) < cell["gain"]


def test_holm_runs_over_the_page_alone():
    table = an.claims_table(study())
    page = table[table.p_holm.notna()]
    assert page.claim.is_unique and set(page.claim) == {
        "source",
        "targets",
        "commonness",
        "stability",
        "skill",
        "skill elsewhere",
    }
    assert list(page.p_holm) == pytest.approx(list(holm(page.p)))
    assert (
        set(page.scope) == {"pooled"}
        and (
            page.measure
            == [{"skill": "calibrated", "skill elsewhere": "calibrated"}.get(c, "accuracy") for c in page.claim]
        ).all()
    )
    assert set(table.measure[table.unit == "points"]) == set(an.MEASURE_NAMES)


def test_an_order_of_rows_changes_nothing():
    df = study(n=60)
    a, b = an.claims_table(df), an.claims_table(df.sample(frac=1, random_state=1))
    pd.testing.assert_frame_equal(a, b)


def test_four_classes():
    df = study({"Ours": 0.3}, task="ag_news", classes=4, n=200)
    table = an.claims_table(df)
    pruning = table[(table.claim == "pruning") & (table.scope == "pooled")].set_index("measure")
    assert pruning.loc["accuracy"].verdict in ("undecided", "the same within 2 points") and np.isfinite(
        pruning.loc["auc"].estimate
    )
    assert table[table.claim == "source"].verdict.unique().tolist() == ["not run: no results on sst2"]


def test_marks_and_the_best_hand_written_prompt():
    df = study({"Manual 2": 1.0}, n=100)
    assert an.best_manual(df, "sst2", "gemma-3-270m") == "Manual 2"
    rows = an.marks(df, "sst2", "Ours")
    assert set(rows.against) == {"PEZ", "Start", "Empty", "best hand-written"} and set(rows.measure) == set(
        an.MEASURE_NAMES
    )
    assert (rows[(rows.against == "best hand-written") & (rows.measure == "auc")].estimate < 0).all()


def test_the_best_is_chosen_on_the_holdout_and_not_on_the_reported_texts():
    df = study(n=60)
    lucky = df.copy()
    at = (lucky.row == "Manual 2") & (lucky.role == "original")
    lucky["logp"] = [np.eye(2)[y] * 5.0 if hit else x for hit, x, y in zip(at, lucky.logp, lucky.labels)]
    lucky["correct"] = [60 if hit else c for hit, c in zip(at, lucky.correct)]
    assert an.best_manual(lucky, "sst2", "gemma-3-270m") == an.best_manual(df, "sst2", "gemma-3-270m")


def test_other_seeds_are_all_used():
    df = study(n=60)
    got = an.contrast(df, {"Ours": 1, "PEZ": -1}, "accuracy", "sst2", ["gemma-3-270m"], "Original")["found"]
    assert sorted(got.seeds) == [10, 14]
    same = an.contrast(
        df[(df.row != "Ours") | (df.seed < 10)],
        {"Ours": 1, "PEZ": -1},
        "accuracy",
        "sst2",
        ["gemma-3-270m"],
        "Original",
    )["found"]
    assert same.seeds == (10,)


def test_unmoved_prompts_draw_no_conclusion():
    df = study(n=60)
    df["start_ids"] = [
        p if r == "Ours" and s < 4 else x for p, r, s, x in zip(df.prompt_ids, df.row, df.seed.fillna(99), df.start_ids)
    ]
    table = an.claims_table(df)
    assert (
        table[table.claim == "source"].verdict.str.startswith("no conclusion").sum() == 9
        and table[table.claim == "pruning"].note.str.startswith("not run").all()
    )
    assert not table[table.claim == "source"].p_holm.notna().any()


FAULTS = {
    "counts": lambda df: an.arm_rows(df.assign(correct=df.correct + 9), "sst2", "gemma-3-270m", "PEZ", "qwen"),
    "unfinished": lambda df: an.arm(
        df[(df.seed != 3) | (df.target != "qwen")], "auc", "sst2", "gemma-3-270m", "PEZ", "targets"
    ),
    "no log-probabilities": lambda df: an.arm_rows(df.assign(logp=None), "sst2", "gemma-3-270m", "PEZ", "qwen"),
    "budgets": lambda df: an.arm_rows(
        pd.concat([df, df.assign(steps=50, prompt_ids=[[1]] * len(df))], ignore_index=True),
        "sst2",
        "gemma-3-270m",
        "PEZ",
        "qwen",
    ),
    "one seed": lambda df: an.contrast(
        df[df.seed.isna() | (df.seed == 0)], {"PEZ": 1, "Empty": -1}, "accuracy", "sst2", ["gemma-3-270m"], "qwen"
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_one_line(fault):
    with pytest.raises(InputError) as e:
        FAULTS[fault](study(n=40))
    assert "\n" not in str(e.value)


def test_frames_of_stored_cells_go_in():
    "What `frame` reads from a results folder is what the analysis takes."
    frames = pytest.importorskip("hpt_nb.frames")
    assert set(study(n=40).columns) <= set(frames.COLUMNS)


# ---- the premise ----


def test_the_premise_is_read_from_its_own_room():
    "`premise.contrast` with the weights named here is what the table takes."
    premise = pytest.importorskip("hpt_nb.premise")
    rng, m = np.random.default_rng(0), 400
    J, common = rng.random(m), rng.normal(size=(m, 1))
    weight = J[:, None] ** 0.5
    whole = {name: weight * common + np.sqrt(1 - weight**2) * rng.normal(size=(m, 1)) for name in "abc"}
    effects = {
        name: premise.Measured(list(range(m)), e, e + 0.4 * rng.normal(size=(4, 2, m, 1))) for name, e in whole.items()
    }
    found = premise.contrast(effects, lambda a, b: premise.fifths(J), weights=an.AGREEMENT_WEIGHTS, draws=100)
    table = an.claims_table(study(n=40), agreement=found, claims=())
    row = table[table.claim == "agreement"].iloc[0]
    assert (row.verdict, row.unit) == ("above", "correlation") and row.estimate == found["estimate"] and row.low > 0
    assert (
        an.claims_table(study(n=40), agreement=dict(found, estimate=None), claims=())
        .set_index("claim")
        .verdict["agreement"]
        .startswith("no conclusion")
    )


# ---- a whole run in small ----


def test_a_run_in_small_is_judged(tmp_path, monkeypatch):
    """Tuned, scored, stored, read back and judged: tiny models, so the verdict is of no interest, but every number
    is a cell's."""
    frames, tiny = pytest.importorskip("hpt_nb.frames"), pytest.importorskip("tiny_run")
    from hpt_nb.experiments import load_preset, run_preset

    preset = (
        tiny.PRESET.replace("[tuning]", '[manual]\n"mine.toml" = [" a film"]\n[tuning]').replace(
            "steps = 30", "steps = 10"
        )
        + "[scoring]\nholdout = 16\n"
    )
    place = tiny.make_place(tmp_path, preset)
    monkeypatch.chdir(place)
    run_preset(load_preset(place / "preset.toml"), tmp_path / "out")
    df = frames.frame(tmp_path / "out")
    claim = an.Claim("targets", "x", "paper", "mine", "targets", (("Ours", 1), ("PEZ", -1)))
    rows = an.claim_rows(df, claim, dtype=df.dtype.iloc[0])
    assert len(rows) == 3 * (1 + 2 + 2)
    for one in rows:
        if one["measure"] != "accuracy" or one["found"] is None:
            continue
        used = df[(df.role == "transfer") & (df["mode"] == "text") & df.row.isin(["Ours", "PEZ"])]
        if one["scope"].startswith("from"):
            used = used[used.source == one["scope"].split()[1]]
        if one["same"]:
            continue
        mean = used.assign(share=used.correct / used.n).groupby("row").share.mean()
        assert one["estimate"] == pytest.approx(100 * (mean["Ours"] - mean["PEZ"]))
    assert an.best_manual(df, "mine", df.source.iloc[0], dtype=df.dtype.iloc[0]) == "Manual 1"
