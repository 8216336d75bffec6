"""The report on larger, nastier stores than a reader wants to see: two tasks, both directions, two counterparts,
hostile texts."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpt_nb import reading_tables, report
from hpt_nb.completeness import one_table
from hpt_nb.parts import parted
from hpt_nb.store import InputError, Store

pytestmark = pytest.mark.usefixtures("plain_pages")  # but for `html` and those that undo it
ROWS = ("Empty", "Random", "PEZ", "PEZ-pruned", "CommonVocab-pruned", "Ours")
HOSTILE = [
    "</td><script>alert(1)</script>",
    "\x1b[2J\x1b[31mred",
    "\u202eesrever",
    " \n\t tab",
    "a|b",
    "&amp;",
    "\ufeff\u200b",
    "שלום",
    "映画",
]
TUNED = {"PEZ": "whole", "PEZ-pruned": "random", "CommonVocab-pruned": "common", "Ours": "stable"}


def fill(
    path,
    tasks=("toy_reviews", "toy_news"),
    pairs=(("toy-a", "toy-b"), ("toy-b", "toy-a")),
    extra_targets=(),
    seeds=(0, 1),
    n=40,
):
    "A finished toy run: every row, both ways of feeding the source, every target."
    store, rng = Store(path), np.random.default_rng(7)
    models = {}
    for source, counterpart in pairs:
        models.setdefault(source, []).append(counterpart)
    for source, counterparts in models.items():
        targets = [*dict.fromkeys([*counterparts, *extra_targets])]
        for other in counterparts:
            put_vocab(store, source, other)
        for task in tasks:
            for row in ROWS:
                for other in counterparts if row in ("CommonVocab-pruned", "Ours") else [None]:
                    for seed in [None] if row == "Empty" else seeds:
                        text = "" if row == "Empty" else HOSTILE[rng.integers(len(HOSTILE))]
                        p = 0.5 + 0.08 * ROWS.index(row)
                        run = dict(
                            task=task,
                            task_hash=f"h-{task}",
                            source=source,
                            counterpart=other,
                            row=row,
                            seed=seed,
                            steps=30 if row in TUNED else None,
                            method="pez" if row in TUNED else None,
                        )
                        ids = [] if row == "Empty" else [int(i) for i in rng.integers(99, size=3)]
                        if row in TUNED:
                            put_tune(store, run, ids, text, p, rng)
                        for target, mode in [(source, "ids"), (source, "text"), *((t, "text") for t in targets)]:
                            put_eval(store, run, target, mode, ids, rng.random(n) < p)
    return store


META = dict(
    commit="0123456789abcdef",
    dirty=False,
    device="cpu",
    cpu="toy cpu",
    cpus=2,
    python="3.11.7",
    torch="2.13.0",
    transformers="5",
    platform="toy",
    date="2026-01-01T00:00:00+00:00",
    wall_s=1.0,
)


def put_vocab(store, source, other):
    tokens = [*HOSTILE, *(f" word{i}" for i in range(300))]
    frame = pd.DataFrame(
        {
            "rank": range(len(tokens)),
            "token": tokens,
            "J": np.linspace(0.9, 0, len(tokens)),
            f"id:{source}": range(len(tokens)),
            f"id:{other}": range(len(tokens)),
        }
    )
    path = store.file(f"stable-{source}-{other}.parquet".replace("/", "+"))  # a hub id is no folder
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path)
    store.put(
        "vocab",
        dict(models=[source, other], k=8, h=None, repeats=1, seed=0, include_self=True),
        dict(
            c=len(tokens), file=path.name, J_quantiles=[float(q) for q in np.quantile(frame.J, np.linspace(0, 1, 21))]
        ),
        META,
    )


def put_tune(store, run, ids, text, p, rng, **changes):
    kind = TUNED[run["row"]]
    config = (
        run
        | dict(
            vocab=dict(
                kind=kind,
                s=None if kind == "whole" else 100,
                seed=None,
                hash=f"{kind}-{run['source']}-{run['counterpart']}",
            ),
            batch=16,
            lr=0.3,
            n_tokens=3,
            dtype="float32",
            eval_every=10,
            holdout_n=64,
        )
        | changes
    )
    curve = dict(
        step=[0, 10, 20, 30], loss=[float(x) for x in np.sort(rng.random(4))[::-1]], holdout=[0.5, p - 0.1, p, p]
    )
    store.put(
        "tune",
        config,
        dict(
            prompt_ids=ids,
            prompt_text=text,
            tokens=[text, "{unknown}", " end"],
            best_step=30,
            curve=curve,
            wall_s=8.0,
            runs_in_pass=4,
            forward_tokens=1234,
        ),
        META,
    )


def put_eval(store, run, target, mode, ids, hits, **changes):
    config = (
        run
        | dict(
            split="validation",
            n=len(hits),
            target=target,
            role="original" if target == run["source"] else "transfer",
            mode=mode,
            prompt_ids=ids,
            dtype="float32",
        )
        | changes
    )
    k = 5 if run["task"] == "toy_news" else 2
    labels = [i % k for i in range(len(hits))]
    guess = [y if h else (y + 1) % k for h, y in zip(hits, labels)]
    digits = lambda ys: "".join(map(str, ys))
    store.put(
        "eval",
        config,
        dict(correct=int(sum(hits)), n=len(hits), predictions=digits(guess), labels=digits(labels), wall_s=0.25),
        META,
    )


def put_readings(store):
    "What each prompt reads like on each model, as `hpt run` keeps it."
    for cell in store.cells("eval"):
        c = cell["config"]
        if c["row"] == "Empty" or (c["role"], c["mode"]) == ("original", "text"):
            continue
        run = {
            k: c[k]
            for k in ("task", "task_hash", "source", "counterpart", "row", "seed", "steps", "method", "target", "role")
        }
        store.put(
            "reading",
            run,
            dict(tokens=[" film", "ing", "{unknown}"], perplexity=20.0 + len(c["row"]) + c["seed"]),
            META,
        )


def put_neighbors(store):
    near = {
        m: [[f" word{i}", round(0.9 - 0.01 * i, 2)] for i in range(o, o + 8)] for o, m in enumerate(("toy-a", "toy-b"))
    }
    store.put(
        "neighbors",
        dict(models=["toy-a", "toy-b"], k=8),
        dict(
            examples=[
                dict(what=w, token=f" word{i}", rank=i + 1, J=0.9 - 0.5 * i, near=near)
                for i, w in enumerate(("stable", "unstable"))
            ]
        ),
        META,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("store") / "full")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("small") / "run", tasks=("toy_reviews",), pairs=(("toy-a", "toy-b"),))


@pytest.fixture(scope="module")
def df(store):
    return report.results_frame(store)


@pytest.fixture(scope="module")
def html(store, tmp_path_factory):
    return report.write_report(store.path, tmp_path_factory.mktemp("site")).read_text(encoding="utf-8")


# ---- numbers, against the slow and obvious way ----


def plain_cells(store, **want):
    return [c for c in store.cells("eval") if all(c["config"][k] == v for k, v in want.items())]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("place", ["Original", "toy-b"])
def test_table_equals_plain_means(store, df, row, place):
    role, mode = ("original", "ids") if place == "Original" else ("transfer", "text")
    cells = plain_cells(store, task="toy_reviews", source="toy-a", row=row, role=role, mode=mode)
    accuracy = [100 * c["result"]["correct"] / c["result"]["n"] for c in cells]
    text = f"{np.mean(accuracy):.2f}" + (f" ± {np.std(accuracy, ddof=1):.2f}" if len(accuracy) > 1 else "")
    table = report.accuracy_table(df, "toy_reviews", "toy-a")
    assert table[table.Method == report.ROWS[row]][place].tolist() == [text]


def test_difference_equals_plain_difference(store, df):
    hits = {
        row: np.array(
            [
                [int(p == y) for p, y in zip(c["result"]["predictions"], c["result"]["labels"])]
                for c in sorted(
                    plain_cells(store, task="toy_news", source="toy-b", row=row, role="transfer"),
                    key=lambda c: c["config"]["seed"],
                )
            ]
        )
        for row in ("Ours", "PEZ")
    }
    per_text = 100 * (hits["Ours"].mean(0) - hits["PEZ"].mean(0))
    d = report.differences(df, "toy_news", "toy-b").query("versus=='PEZ' and place=='toy-a'").iloc[0]
    assert d.points == pytest.approx(per_text.mean())
    assert d.texts_high - d.points == pytest.approx(1.96 * per_text.std(ddof=1) / len(per_text) ** 0.5, rel=1e-3)


def test_differences_are_paired_by_seed_not_by_file_order(df):
    shuffled = report.differences(df.sample(frac=1, random_state=3), "toy_reviews", "toy-a")
    pd.testing.assert_frame_equal(shuffled, report.differences(df, "toy_reviews", "toy-a"))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=9), st.floats(-20, 20), st.floats(0.1, 5))
def test_interval_moves_and_scales_with_its_values(d, shift, scale):
    low, high = report.seed_interval(d)
    if np.isnan(low):
        assert len(set(d)) == 1
    else:
        assert low <= np.mean(d) + 1e-9 and np.mean(d) - 1e-9 <= high
    np.testing.assert_allclose(
        report.seed_interval([scale * x + shift for x in d]), (scale * low + shift, scale * high + shift), atol=1e-6
    )


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_visible_text_holds_nothing_unseen(text):
    import unicodedata

    shown = report.visible(text)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")]
    assert report.visible(shown) == shown


# ---- shapes of runs ----


def test_two_counterparts_and_a_third_target(tmp_path):
    store = fill(
        tmp_path,
        tasks=("toy_reviews",),
        pairs=(("toy-a", "toy-b"), ("toy-a", "toy-c")),
        extra_targets=("toy-d",),
        seeds=(0, 1, 2),
    )
    df = report.results_frame(store)
    table = report.accuracy_table(df, "toy_reviews", "toy-a")
    assert table.columns.tolist() == ["Method", "Counterpart", "Original", "toy-b", "toy-c", "toy-d"]
    assert table[table.Method == "Ours"].Counterpart.tolist() == ["toy-b", "toy-c"]
    d = report.differences(df, "toy_reviews", "toy-a")
    assert (
        len(d) == 2 * 4 * 5
        and not ((d.versus == "CommonVocab-pruned").groupby([d.counterpart, d.place]).sum() != 1).any()
    )
    note = report.counterpart_note(df, "toy_reviews", "toy-a")
    assert "toy-b and toy-c are target and counterpart at once" in note and "toy-d" not in note
    assert report.write_report(tmp_path, tmp_path / "site").exists()


def test_one_seed_has_no_spread_and_no_interval(tmp_path):
    df = report.results_frame(fill(tmp_path, tasks=("toy_reviews",), pairs=(("toy-a", "toy-b"),), seeds=(5,)))
    assert not report.accuracy_table(df, "toy_reviews", "toy-a").Original.str.contains("±").any()
    assert (report.differences_table(df, "toy_reviews", "toy-a")["95 % over seeds"] == "no interval").all()
    assert "Zero is not excluded over seeds (no interval)" in report.verdict(
        report.differences(df, "toy_reviews", "toy-a").iloc[0]
    )
    assert "nan" not in report.write_report(tmp_path, tmp_path / "site").read_text(encoding="utf-8").split("<main>")[0]


def test_rows_of_other_methods_are_shown_after_the_papers(tmp_path):
    store = fill(tmp_path, tasks=("toy_reviews",), pairs=(("toy-a", "toy-b"),))
    for c in [*store.cells("eval"), *store.cells("tune")]:
        if c["config"]["row"] == "PEZ-pruned":
            store.put(c["kind"], c["config"] | {"row": "GCG"}, c["result"], META)
    assert report.accuracy_table(report.results_frame(store), "toy_reviews", "toy-a").Method.tolist()[-2:] == [
        "Ours",
        "GCG",
    ]
    report.write_report(tmp_path, tmp_path / "site")


def test_loss_is_split_as_plain_means_say(store, df):
    "Re-tokenisation and the rest, from the counts alone."
    mean = lambda **want: np.mean(
        [
            100 * c["result"]["correct"] / c["result"]["n"]
            for c in plain_cells(store, task="toy_news", source="toy-a", row="Ours", **want)
        ]
    )
    ids, text, there = mean(role="original", mode="ids"), mean(role="original", mode="text"), mean(role="transfer")
    got = report.losses(df, "toy_news", "toy-a").query("row == 'Ours'").set_index("step").points
    assert got.to_dict() == pytest.approx(
        {"re-tokenisation": text - ids, "the rest": there - text, "both": there - ids}
    )


def test_round_trips_count_each_prompt_once(df):
    trips = report.roundtrips(df).set_index("row")
    assert trips.prompts.to_dict() == {r: 2 * 2 * 2 for r in ROWS if r != "Empty"}  # two tasks, two sources, two seeds
    assert (trips.changed == 0).all() and (trips.low == 0).all() and (trips.high > 0.2).all()


def test_page_of_a_full_run_has_every_part(tmp_path):
    store = fill(tmp_path, tasks=("toy_reviews",), pairs=(("toy-a", "toy-b"),))
    put_readings(store), put_neighbors(store)
    page = report.write_report(tmp_path, tmp_path / "site").read_text(encoding="utf-8")
    for part in (
        "Source model: toy-a",
        ">Transfer<",
        "What is lost on the way",
        "Prompts that do not survive as text",
        "How readable the prompts are",
        "Figure 1, drawn from data",
        "Table 6: tuning",
        "Table 7: the stable vocabulary",
        "{unknown}",
    ):
        assert part in page, part
    assert Page(page).open == []


# ---- what is refused ----


@pytest.mark.parametrize(
    "change",
    [dict(steps=60), dict(dtype="bfloat16"), dict(task_hash="other"), dict(split="holdout")],
    ids=lambda c: next(iter(c)),
)
def test_two_configurations_are_not_averaged(tmp_path, change):
    store = fill(tmp_path, tasks=("toy_reviews",))
    cell = plain_cells(store, row="Random", seed=1)[0]
    store.put("eval", cell["config"] | change, cell["result"], META)
    with pytest.raises(InputError, match=f"mixes configurations: {next(iter(change))} is .* folder of its own") as e:
        report.write_report(tmp_path, tmp_path / "site")
    assert "\n" not in str(e.value) and not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    "change",
    [dict(lr=0.1), dict(method="pez-reprojected"), dict(vocab=dict(kind="stable", s=100, seed=None, hash="other"))],
    ids=lambda c: next(iter(c)),
)
def test_two_tunings_of_one_prompt_are_refused(tmp_path, change):
    store = fill(tmp_path, tasks=("toy_reviews",))
    cell = next(c for c in store.cells("tune") if c["config"]["row"] == "Ours")
    if "vocab" in change:
        (store.path / "cells" / f"tune-{cell['hash']}.json").unlink()
    store.put("tune", cell["config"] | change, cell["result"], META)
    with pytest.raises(InputError, match=next(iter(change))):
        report.write_report(tmp_path, tmp_path / "site")


def test_two_vocabulary_settings_are_refused(tmp_path):
    store = fill(tmp_path, tasks=("toy_reviews",))
    cell = store.cells("vocab")[0]
    store.put("vocab", cell["config"] | {"k": 16}, cell["result"], META)
    with pytest.raises(InputError, match="mixes vocabularies: k is 8 .* and 16"):
        report.write_report(tmp_path, tmp_path / "site")


def test_every_missing_piece_is_noticed(tmp_path):
    "Whichever scored prompt is taken away, there is no page; put back, there is one."
    store = fill(tmp_path, tasks=("toy_reviews",), pairs=(("toy-a", "toy-b"),))
    df, tunes = report.results_frame(store), report.tunes_frame(store)
    for i in df.index:
        if df.row[i] == "Empty" and df.target[i] == "toy-a":
            continue  # scored twice the same: one of the two is enough
        assert report.unfinished(df.drop(index=i), tunes), df.loc[i, ["row", "seed", "target", "mode"]].tolist()
    assert report.unfinished(df, tunes) == []


CHANGES = {"tune": dict(dtype="bfloat16"), "eval": dict(dtype="bfloat16")}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_run_gone_on_with_on_another_processor_is_named(tmp_path, kind):
    """Number format auto is bfloat16 on one machine and float32 on another: the second half of a run is then another
    configuration."""
    store = fill(tmp_path, tasks=("toy_reviews",), pairs=(("toy-a", "toy-b"),))
    for cell in store.cells(kind):
        if cell["config"]["seed"] != 1 or cell["config"]["row"] not in TUNED:
            continue
        (store.path / "cells" / f"{kind}-{cell['hash']}.json").unlink()
        store.put(kind, cell["config"] | CHANGES[kind], cell["result"], META)
    says = {
        "tune": r"the number format of tuning is (b?)float(32|16) \(\d+ results\) and (b?)float(32|16) \(\d+ "
        r"results\); .* tuning dtype auto.* \[tuning\]",
        "eval": r"dtype is b?float(32|16) \(\d+ results\) and b?float",
    }[kind]
    with pytest.raises(InputError, match=says):
        report.write_report(tmp_path, tmp_path / "site")
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    "change", [dict(init="random"), dict(clip=1.0), dict(source_id="other"), dict(topk=8)], ids=lambda c: next(iter(c))
)
def test_no_setting_of_a_tuning_run_may_differ_between_seeds(tmp_path, change):
    "Also those that have no column of their own: seed 1 was tuned by a later version of the preset."
    store = fill(tmp_path, tasks=("toy_reviews",), pairs=(("toy-a", "toy-b"),))
    name = next(iter(change))
    for cell in store.cells("tune"):
        (store.path / "cells" / f"tune-{cell['hash']}.json").unlink()
        store.put(
            "tune", cell["config"] | ({name: "before"} if cell["config"]["seed"] == 0 else change), cell["result"], META
        )
    with pytest.raises(InputError, match=f"mixes configurations: {name} is .*before"):
        report.write_report(tmp_path, tmp_path / "site")


def test_two_models_of_one_name_are_not_averaged(tmp_path):
    store = fill(tmp_path, tasks=("toy_reviews",), pairs=(("toy-a", "toy-b"),))
    for cell in store.cells("eval"):
        if cell["config"]["target"] != "toy-b":
            continue
        (store.path / "cells" / f"eval-{cell['hash']}.json").unlink()
        store.put("eval", cell["config"] | dict(target_id=f"w{cell['config']['seed']}"), cell["result"], META)
    with pytest.raises(InputError, match="models that are both called toy-b"):
        report.write_report(tmp_path, tmp_path / "site")


def test_vectors_are_no_text(tmp_path):
    """A soft prompt's vectors are scored beside its tokens; neither the table of prompts nor what is said of
    readings takes them for the text."""
    store = fill(tmp_path, tasks=("toy_reviews",), pairs=(("toy-a", "toy-b"),))
    put_readings(store)
    df = report.results_frame(store)
    before = [
        report.prompt_table(df, "toy_reviews", "toy-a"),
        report.features_frame(df, report.readings_frame(store), {}, words={"film"}),
    ]
    for cell in plain_cells(store, mode="text"):
        run = {
            k: cell["config"][k]
            for k in ("task", "task_hash", "source", "counterpart", "row", "seed", "steps", "method")
        }
        if run["row"] in TUNED:
            put_eval(store, run, cell["config"]["target"], "vectors", cell["config"]["prompt_ids"], np.zeros(40))
    df = report.results_frame(store)
    df = df.iloc[np.argsort(df["mode"] != "vectors", kind="stable")]  # whatever order files are read in
    after = [
        report.prompt_table(df, "toy_reviews", "toy-a"),
        report.features_frame(df, report.readings_frame(store), {}, words={"film"}),
    ]
    for a, b in zip(before, after):
        pd.testing.assert_frame_equal(a, b)


def test_without_a_word_list_the_rest_is_still_said(tmp_path, monkeypatch):
    store = fill(tmp_path, tasks=("toy_reviews",), pairs=(("toy-a", "toy-b"),))
    put_readings(store)
    own = reading_tables.describe

    def no_list(tokens, words=None):
        if words is None:
            raise InputError("no word list")
        return own(tokens, words)

    monkeypatch.setattr(reading_tables, "describe", no_list)
    f = report.features_frame(report.results_frame(store), report.readings_frame(store), {})
    assert (
        f[["word", "piece", "read"]].isna().all().all() and f[["sign", "unknown", "log_ppl_target"]].notna().all().all()
    )
    page = report.write_report(tmp_path, tmp_path / "site").read_text(encoding="utf-8")
    assert "wordfreq is not installed" in page and "log perplexity, target" in page.lower()


def test_an_unfinished_method_takes_no_other_with_it(tmp_path):
    """Joint tuning has no whole vocabulary: fewer rows are no missing ones, and what another method lacks is not its
    fault."""
    store = fill(tmp_path, tasks=("toy_reviews",), pairs=(("toy-a", "toy-b"),))
    for kind in ("tune", "eval"):
        for cell in store.cells(kind):
            for method in ("joint", "gcg"):
                if cell["config"]["row"] in (("Ours",) if method == "joint" else TUNED):
                    store.put(kind, cell["config"] | dict(method=method), cell["result"], META)
    lost = plain_cells(store, method="gcg", row="PEZ", seed=1)[0]
    (store.path / "cells" / f"eval-{lost['hash']}.json").unlink()
    df, _ = report.finished(report.results_frame(store), report.tunes_frame(store), tmp_path)
    assert set(df.method.dropna()) == {"pez", "joint"}


def test_levels_keep_counterparts_apart(tmp_path):
    "Two counterparts by two seeds are two comparisons of two seeds, not one of four."
    for level in ("as-given", "k-16"):
        fill(tmp_path / level, tasks=("toy_reviews",), pairs=(("toy-a", "toy-b"), ("toy-a", "toy-c")))
    d = report.level_differences(report.levels_frame(tmp_path))
    assert (d.seeds == 2).all() and set(d.counterpart) == {"toy-b", "toy-c"} and "Counterpart" in report.levels_table(d)
    Store(tmp_path / "k-256").plan(
        [("tune", dict(task="toy_reviews", source="toy-a", row="Ours", seed=0))], "toy"
    )  # announced, never begun
    with pytest.raises(InputError, match="k-256"):
        report.write_report(tmp_path, tmp_path / "site")


def test_two_tasks_may_be_tuned_in_two_formats_and_the_page_says_so(tmp_path):
    store = fill(tmp_path, pairs=(("toy-a", "toy-b"),))
    for cell in store.cells("tune"):
        if cell["config"]["task"] == "toy_news":
            (store.path / "cells" / f"tune-{cell['hash']}.json").unlink()
            store.put("tune", cell["config"] | {"dtype": "bfloat16"}, cell["result"], META)
    page = report.write_report(tmp_path, tmp_path / "site").read_text(encoding="utf-8")
    assert "tuned in float32, scored in float32" in page and "tuned in bfloat16, scored in float32" in page


def test_another_machine_is_named_beside_the_table(tmp_path):
    store = fill(tmp_path, tasks=("toy_reviews",), pairs=(("toy-a", "toy-b"),))
    cell = plain_cells(store, row="Ours", seed=1)[0]
    store.put("eval", cell["config"], cell["result"], META | {"cpu": "another cpu"})
    page = report.write_report(tmp_path, tmp_path / "site").read_text(encoding="utf-8")
    assert re.search(r"more than one processor: toy cpu \(\d+ scores\), another cpu \(1 scores\)", page)


@pytest.mark.parametrize("row", [r for r in ROWS if r != "Empty"])
def test_a_seed_missing_from_one_row_is_named(tmp_path, row):
    "In every kind of row: its scores of one seed are gone, and so is what was tuned."
    store = fill(tmp_path, tasks=("toy_reviews",), pairs=(("toy-a", "toy-b"),), seeds=(0, 1, 2))
    for kind in ("eval", "tune"):
        for cell in store.cells(kind):
            if cell["config"]["row"] == row and cell["config"]["seed"] == 2:
                (store.path / "cells" / f"{kind}-{cell['hash']}.json").unlink()
    with pytest.raises(InputError, match=rf"is unfinished, \d+ piece.*{re.escape(report.ROWS[row])}.*seed 2"):
        report.write_report(tmp_path, tmp_path / "site")
    df = report.results_frame(store)
    for make in (
        report.accuracy_table,
        report.differences_table,
        report.loss_table,
        report.reencoding_table,
        report.prompt_table,
    ):
        with pytest.raises(InputError, match="is unfinished: .*seed 2"):
            make(df, "toy_reviews", "toy-a")  # no mean over two seeds beside means over three
    assert not (tmp_path / "site").exists()


def foreign_json(store):
    (store.path / "cells" / "notes.json").write_text("{}")


def foreign_text(store):
    (store.path / "cells" / "README").write_text("mine")


def foreign_folder(store):
    (store.path / "cells" / "old").mkdir()


def renamed(store):
    cell = sorted((store.path / "cells").glob("eval-*.json"))[0]
    cell.rename(cell.with_name("eval-0123456789ab.json"))


def copied(store):
    cell = sorted((store.path / "cells").glob("tune-*.json"))[0]
    cell.with_name("tune-0123456789ab.json").write_bytes(cell.read_bytes())


def other_version(store):
    cell = sorted((store.path / "cells").glob("eval-*.json"))[0]
    cell.write_text(cell.read_text().replace('"schema": 1', '"schema": 99'))


def bad_plan(store):
    store.plan([("eval", dict(task="toy_reviews", row="Empty", target="toy-a", mode="ids"))])
    plan = next((store.path / "plans").iterdir())
    plan.write_bytes(plan.read_bytes()[:40])


@pytest.fixture(scope="module")
def one_pair(tmp_path_factory):
    "A folder with results of one task and one pair of models; a test works on a copy of its own."
    store = fill(tmp_path_factory.mktemp("pair") / "run", tasks=("toy_reviews",), pairs=(("toy-a", "toy-b"),))
    put_readings(store), put_neighbors(store)
    return store.path


@pytest.mark.parametrize(
    "spoil, names",
    [
        (foreign_json, "notes.json: not one of our result files"),
        (foreign_text, "README: not one of our result files"),
        (foreign_folder, "old: not one of our result files"),
        (renamed, "eval-0123456789ab.json: holds the cell eval-"),
        (copied, "tune-0123456789ab.json: holds the cell tune-"),
        (other_version, "schema 99, this version reads 1"),
        (bad_plan, "plan-.*json: not whole JSON"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_foreign_files_are_named(one_pair, tmp_path, spoil, names):
    store = Store(shutil.copytree(one_pair, tmp_path / "run"))
    spoil(store)
    with pytest.raises(InputError, match=names) as e:
        report.write_report(store.path, tmp_path / "site")
    assert "\n" not in str(e.value) and not (tmp_path / "site").exists()


def test_what_a_killed_writer_leaves_is_no_result(small, tmp_path):
    "A half-written temporary file is hidden and unnamed as a cell: it is passed over, and the page is the same."
    shutil.copytree(small.path, tmp_path / "run")
    (tmp_path / "run" / "cells" / ".eval-0123456789ab.json.a1b2c3.tmp").write_text('{"schema": 1, "kin')
    assert (
        report.write_report(tmp_path / "run", tmp_path / "one").read_bytes()
        == report.write_report(small.path, tmp_path / "two").read_bytes()
    )


DAMAGE = dict(
    cut=lambda b: b[: len(b) // 2],
    empty=lambda b: b"",
    edited=lambda b: b.replace(b'"toy-', b'"toy+'),
    foreign=lambda b: b"[]",
)


@pytest.mark.parametrize(
    "kind, damage",
    [
        pytest.param(kind, damage, marks=() if kind == "eval" or damage == "edited" else pytest.mark.slow)
        for kind in ("eval", "tune", "vocab", "reading", "neighbors")
        for damage in DAMAGE
    ],
)
def test_damaged_file_is_named(one_pair, tmp_path, kind, damage):
    "All kinds are read by one function: each damage to one kind, and one damage to each kind; the others are slow."
    shutil.copytree(one_pair, tmp_path / "run")
    victim = sorted((tmp_path / "run" / "cells").glob(f"{kind}-*.json"))[-1]
    victim.write_bytes(DAMAGE[damage](victim.read_bytes()))
    with pytest.raises(InputError, match=victim.name):
        report.write_report(tmp_path / "run", tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_counts_that_do_not_add_up_are_refused(tmp_path):
    store = fill(tmp_path, tasks=("toy_reviews",))
    cell = store.cells("eval")[0]
    store.put("eval", cell["config"], cell["result"] | {"correct": cell["result"]["correct"] + 1}, META)
    with pytest.raises(InputError, match="labels found, but it says correct="):
        report.results_frame(store)


@pytest.mark.parametrize(
    "ruin",
    [lambda p: p.unlink(), lambda p: p.write_bytes(b"no parquet"), lambda p: pd.DataFrame({"x": [1]}).to_parquet(p)],
    ids=["gone", "foreign", "columns"],
)
def test_bad_vocabulary_file_is_named(tmp_path, ruin):
    store = fill(tmp_path, tasks=("toy_reviews",))
    path = store.file("stable-toy-a-toy-b.parquet")
    ruin(path)
    with pytest.raises(InputError, match=path.name):
        report.write_report(tmp_path, tmp_path / "site")


def test_page_cannot_go_where_a_file_is(store, tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(InputError, match="taken is a file"):
        report.write_report(store.path, tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


# ---- the page ----


class Page(HTMLParser):
    "Collects what a browser would see, and whether tags close in order."

    VOID = {"meta", "img", "br", "link", "wbr"}

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.images, self.links, self.ids = [], [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag == "img":
            self.images.append(attrs)
        if "href" in attrs:
            self.links.append(attrs["href"])
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_whole(html):
    page = Page(html)
    assert page.open == [] and "script" not in page.tags and "link" not in page.tags
    assert len(set(page.ids)) == len(page.ids) and set(page.links) == {f"#{i}" for i in page.ids}


def test_page_needs_nothing_from_outside(html):
    assert not re.search(r"https?://|url\(|@import|src=\"(?!data:)", html)


def test_every_figure_has_words_and_ink(html):
    from base64 import b64decode

    page = Page(html)
    assert (
        html.count('<div class="panels"') == 1 + 2 + 4 * 3 + 2
    )  # the forest, a heat map for each task, four tables, two vocabularies
    for image in page.images:
        svg = b64decode(image["src"].partition("base64,")[2]).decode()
        assert len(image["alt"]) > 20 and svg.count("<path") > 10


def test_hostile_texts_are_shown_as_text(html):
    assert "<script>" not in html and "&lt;/td&gt;&lt;script&gt;" in html
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e\u200b\ufeff]", html)


def test_note_stands_beside_each_table_with_such_a_column(html):
    for section in html.split("<section")[2:6]:
        assert section.count("target and counterpart at once") >= 2
    assert (
        "target and counterpart at once" in html.split("<section")[1]
    )  # the overview, and after it what the study found


def test_same_store_gives_the_same_page(small, tmp_path, monkeypatch):
    "Byte by byte, the drawn figures too."
    monkeypatch.undo()
    assert (
        report.write_report(small.path, tmp_path / "one").read_bytes()
        == report.write_report(small.path, tmp_path / "two").read_bytes()
    )


def test_page_is_replaced_and_neighbours_stay(small, tmp_path):
    (tmp_path / "index.html").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    report.write_report(small.path, tmp_path)
    assert (tmp_path / "index.html").stat().st_size > 10_000 and sorted(p.name for p in tmp_path.iterdir()) == [
        "index.html",
        "notes.txt",
    ]


def test_page_is_made_without_torch_or_a_display(small, tmp_path):
    code = (
        f"import sys; from hpt_nb.report import write_report; write_report({str(small.path)!r}, "
        f"{str(tmp_path)!r}); print([m for m in ('torch', 'matplotlib.pyplot', 'nbdev') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


# ---- a folder of a study: rows with changed settings, fewer seeds in some rows, a second number format ----


def armed(path):
    "A toy run with a row of its own, fewer seeds in two rows, and one prompt scored in bfloat16 too."
    store = fill(path, tasks=("toy_reviews",), pairs=(("toy-a", "toy-b"),), seeds=(0, 1, 2))
    for c in [*store.cells("eval"), *store.cells("tune")]:
        config = c["config"]
        if config["row"] == "Ours" and config["seed"] < 2:
            own = {"row": "Ours-late"} | ({"arm": dict(like="Ours", late=True)} if c["kind"] == "tune" else {})
            store.put(c["kind"], config | own, c["result"], META)
        if config["row"] == "PEZ" and config["seed"] == 0 and c["kind"] == "eval":
            store.put("eval", config | {"dtype": "bfloat16"}, c["result"], META)
        if config["row"] == "Random" and config["seed"] == 2:
            (store.path / "cells" / f"{c['kind']}-{c['hash']}.json").unlink()
    return store


def test_page_of_a_study(tmp_path):
    store = armed(tmp_path / "run")
    with pytest.raises(InputError, match="Ours-late with toy-b on toy-a as ids, seed 2"):
        report.write_report(store.path, tmp_path / "site")
    keys = ("task", "source", "counterpart", "row", "method", "steps", "seed", "target", "role", "mode")
    store.plan([("eval", {k: c["config"][k] for k in keys}) for c in store.cells("eval")])
    page = report.write_report(store.path, tmp_path / "site").read_text(encoding="utf-8")
    page = re.sub(' data-of="[^"]*"', "", page)
    for part in (
        "Rows with changed settings",
        "<td>Ours-late</td><td>Ours</td><td>late</td>",
        "over 2 to 3 seeds, by row (0, 1, 2)",
        "3 scores were computed again in bfloat16: they are 0.0 points",
    ):
        assert part in page, part
    assert page.count("<td>+0.0 (no interval)</td><td>2</td>") == 2  # the same prompts, on the seeds that both have


def test_a_row_may_not_differ_from_itself(tmp_path):
    store = armed(tmp_path / "run")
    cell = next(c for c in store.cells("tune") if c["config"]["row"] == "Ours-late")
    (store.path / "cells" / f"tune-{cell['hash']}.json").unlink()
    store.put("tune", cell["config"] | {"lr": 0.1}, cell["result"], META)
    with pytest.raises(InputError, match="mixes configurations: lr is 0.1 .* and 0.3"):
        one_table(parted(report.results_frame(store))[0], "toy_reviews", "toy-a")
