"""The results store: hashes, damaged files, concurrent writers, failures, plans and their state; packages that cannot
be fetched. Disks and kills: test_faults.py."""

import hashlib
import io
import json
import multiprocessing
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
import pytest
from hypothesis import given, settings, strategies as st
import hpt_nb.folders as folders
from hpt_nb.store import (
    InputError,
    Store,
    WriteError,
    cache_dir,
    config_hash,
    duration,
    fetch_package,
    keep,
    provenance,
    recall,
    status,
    status_text,
    visible,
    write_atomic,
)

CFG = {"task": "sst2", "lr": 0.3, "seeds": (0, 1)}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(), x, max_size=4),
    max_leaves=12,
)


# -- hashes ------------------------------------------------------------------------------------------------------------
@given(st.dictionaries(st.text(), json_values, max_size=5), st.randoms())
def test_hash_ignores_key_order_and_nothing_else(config, rnd):
    items = list(config.items())
    rnd.shuffle(items)
    assert config_hash(dict(items)) == config_hash(config) == config_hash(json.loads(json.dumps(config)))
    assert config_hash({**config, "one more": 1}) != config_hash(config)


def test_hashes_stay_what_they_were():
    "Results that are stored already must be found again."
    assert config_hash({"models": ("a", "b"), "k": 64}) == "3b626fb9c9af"
    assert config_hash({"é": None, "x": [1, 1.0, -0.0, 1e-7, True], "z": {"b": "\n\u202e", "a": {}}}) == "f726dcc10aff"


nested = []
for _ in range(100_000):
    nested = [nested]


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        {1, 2},
        b"bytes",
        object(),
        "half \ud800",
        {"a": 1, ("b",): 2},
        {1: "x", "1": "y"},
        {None: 0, "null": 1},
        nested,
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_json_cannot_hold_is_refused_and_leaves_nothing(tmp_path, value):
    with pytest.raises(ValueError, match="cannot be stored"):
        config_hash({"x": value})
    with pytest.raises(ValueError):
        Store(tmp_path).put("toy", CFG, {"x": value}, {})
    assert list(tmp_path.rglob("*.json")) == []


# -- cells -------------------------------------------------------------------------------------------------------------
@settings(max_examples=50)
@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_put_then_get(tmp_path_factory, result):
    s = Store(tmp_path_factory.mktemp("s"))
    s.put("toy", CFG, result, provenance())
    assert s.get("toy", CFG) == result and s.has("toy", CFG)
    assert [c["result"] for c in s.cells()] == [result]


def test_reading_makes_no_folder(tmp_path):
    s = Store(tmp_path / "absent")
    assert s.get("toy", CFG) is None and s.cells() == [] and not (tmp_path / "absent").exists()
    s.file("a.parquet")
    assert not (tmp_path / "absent").exists()


def test_every_single_bit_flip_is_named_or_harmless(tmp_path):
    s = Store(tmp_path)
    path = s.put("toy", CFG, {"accuracy": 0.8125, "text": "é 雪"}, {"device": "cpu"})
    whole, n_named = path.read_bytes(), 0
    for at in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            try:
                assert s.get("toy", CFG) == {"accuracy": 0.8125, "text": "é 雪"}  # white space between fields
            except InputError as e:
                assert path.name in str(e) and "\n" not in str(e)
                n_named += 1
    assert n_named > 0.8 * 8 * len(whole)  # white space is the rest


def test_every_truncation_is_named(tmp_path):
    s = Store(tmp_path)
    path = s.put("toy", CFG, {"accuracy": 0.8125}, {})
    whole = path.read_bytes()
    for n in range(len(whole.rstrip())):
        path.write_bytes(whole[:n])
        with pytest.raises(InputError, match=path.name):
            s.cells()
        with pytest.raises(InputError, match=path.name):
            s.has("toy", CFG)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00\xff", b"[]", b"3", b'{"schema": 1}', b"[" * 100_000, b'{"schema": NaN}', "ünïcödé".encode("utf-16")],
)
def test_foreign_content_is_named(tmp_path, content):
    path = write_atomic(tmp_path / "cells" / f"toy-{config_hash(CFG)}.json", content)
    with pytest.raises(InputError, match=path.name):
        Store(tmp_path).cells()


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_another_schema_is_named(tmp_path, schema):
    path = Store(tmp_path).put("toy", CFG, {}, {})
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": schema}))
    with pytest.raises(InputError, match=f"{path.name}: schema {schema!r}, this version reads 1"):
        Store(tmp_path).cells()


def test_a_foreign_file_is_named_and_hidden_files_are_not(tmp_path):
    s = Store(tmp_path)
    s.put("toy", CFG, {}, {})
    for name in (".DS_Store", ".toy-0.json.abc.tmp"):
        (tmp_path / "cells" / name).write_text("{")
    assert len(s.cells()) == 1
    (tmp_path / "cells" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="notes.txt"):
        s.cells()


def test_cells_are_sorted_and_of_the_kind_asked(tmp_path):
    s = Store(tmp_path)
    for i in range(20):
        s.put("tune" if i % 2 else "eval", {"i": i}, {"i": i}, {})
    names = [f"{c['kind']}-{c['hash']}" for c in s.cells()]
    assert names == sorted(names) and len(names) == 20
    assert {c["result"]["i"] for c in s.cells("tune")} == set(range(1, 20, 2))


@pytest.mark.parametrize("name", ["../x", "..", ".", "", "a/b", "/abs", "a\\b", ".hidden", "a\0b", "a\nb", None])
def test_no_artefact_outside_the_folder(tmp_path, name):
    with pytest.raises(InputError, match="plain file name"):
        Store(tmp_path).file(name)


def test_a_link_that_leaves_the_folder_is_refused(tmp_path):
    (tmp_path / "s" / "files").mkdir(parents=True)
    (tmp_path / "s" / "files" / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="plain file name"):
        Store(tmp_path / "s").file("out")


@pytest.mark.parametrize("kind", ["../up", "a/b", "Tune", "", "a-b"])
def test_no_kind_outside_the_folder(tmp_path, kind):
    with pytest.raises(ValueError, match="kind"):
        Store(tmp_path).put(kind, CFG, {}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_store_cannot_be_a_file(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(InputError, match="is a file"):
        Store(tmp_path / "f")


def test_reading_one_kind_opens_no_other_file(tmp_path, monkeypatch):
    "What a read costs grows with the cells asked for (seconds: benchmarks/bench_store.py)."
    s, opened = Store(tmp_path), []
    for i in range(30):
        s.put("tune" if i % 3 else "eval", {"i": i}, {}, {})
    read = pathlib.Path.read_bytes
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda self: opened.append(self.name) or read(self))
    assert len(s.cells("eval")) == len(opened) == 10
    s.get("tune", {"i": 1})
    s.has("tune", {"i": 99})
    assert len(opened) == 12


@pytest.mark.parametrize("lost", ["meta", "config", "checksum", "hash", "kind", "result"])
def test_a_file_of_an_older_version_that_lacks_a_field_is_named(tmp_path, lost):
    path = Store(tmp_path).put("toy", CFG, {}, {})
    cell = json.loads(path.read_text())
    del cell[lost]
    path.write_text(json.dumps(cell))
    with pytest.raises(
        InputError,
        match=f"{path.name}: has no {lost}, so another version or program wrote it; use that version, or delete it",
    ):
        Store(tmp_path).cells()


def test_a_config_that_is_no_table_is_named(tmp_path):
    "A file with a right checksum that we did not write."
    path = Store(tmp_path).put("toy", CFG, {}, {})
    cell = json.loads(path.read_text()) | dict(config=[1])
    cell.pop("checksum")
    text = json.dumps(cell, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    path.write_text(json.dumps({**cell, "checksum": hashlib.sha256(text.encode()).hexdigest()}))
    with pytest.raises(InputError, match="its hash does not match its configuration"):
        Store(tmp_path).cells()


def test_a_cell_that_was_deleted_meanwhile_is_passed_over(tmp_path, monkeypatch):
    s = Store(tmp_path)
    for i in range(3):
        s.put("toy", {"i": i}, {"i": i}, {})
    listed = s.paths("cells")
    listed[1].unlink()
    monkeypatch.setattr(s, "paths", lambda *_: listed)
    assert len(s.cells()) == 2


@pytest.mark.parametrize("name", ["", "  ", "a\0b"])
def test_a_store_needs_a_name(name):
    with pytest.raises(InputError, match="names no folder"):
        Store(name)


def test_numbers_as_keys_come_back_as_texts(tmp_path):
    s, result = Store(tmp_path), {"acc": {9: 0.5, 10: 0.25, 100: 0.125}, "flags": {True: 1, None: 2}}
    s.put("toy", {"at": {10: 1, 9: 2}}, result, {})
    assert s.get("toy", {"at": {"9": 2, "10": 1}}) == {
        "acc": {"9": 0.5, "10": 0.25, "100": 0.125},
        "flags": {"true": 1, "null": 2},
    }


# -- failures, plans, state --------------------------------------------------------------------------------------------
PART, WHOLE = {"task": "sst2", "seed": 0}, {"task": "sst2", "seed": 0, "prompt_ids": [1, 2], "lr": 0.3}


@pytest.mark.parametrize("named", [PART, WHOLE])
def test_a_failure_is_kept_until_its_piece_is_done(tmp_path, named):
    s = Store(tmp_path)
    s.fail("eval", named, RuntimeError("CUDA out of memory.\nTried to allocate"))
    s.fail("eval", {**PART, "seed": 1}, "killed")
    s.fail("tune", PART, "killed")
    assert (
        s.failed("eval", WHOLE) == "RuntimeError: CUDA out of memory. Tried to allocate"
        and s.failed("eval", {**WHOLE, "seed": 2}) is None
    )
    assert len(s.failures()) == 3 and s.cells() == []
    s.put("eval", WHOLE, {}, {})
    assert s.failed("eval", WHOLE) is None and sorted((f["kind"], f["config"]["seed"]) for f in s.failures()) == [
        ("eval", 1),
        ("tune", 0),
    ]
    assert len(list((tmp_path / "failed").iterdir())) == 2


def test_a_result_beats_a_note_that_a_killed_process_left(tmp_path):
    s = Store(tmp_path)
    note = s.fail("eval", WHOLE, "x")
    left = note.read_bytes()
    s.put("eval", WHOLE, {}, {})
    note.write_bytes(left)
    assert s.failures() == [] and s.failed("eval", WHOLE) is None and status(s).state.tolist() == ["done"]
    note.write_bytes(left[:30])  # a damaged note stops nothing
    assert s.failures() == [] and status(s).state.tolist() == ["done"]


@pytest.mark.parametrize(
    "reason", ["", "\x1b[2J\u202e<b>", "x" * 10**5, "half \ud800", ValueError(), KeyboardInterrupt()]
)
def test_any_reason_can_be_kept_and_shown(tmp_path, reason):
    s = Store(tmp_path)
    s.fail("eval", PART, reason)
    kept, shown = s.failures()[0]["reason"], status_text(status(s))
    assert kept and len(kept) <= 500 and kept == visible(kept) and kept in shown and "\x1b" not in shown


def test_a_run_that_was_stopped_before_a_table_had_a_cell_is_not_finished(tmp_path):
    s = Store(tmp_path)
    s.plan([("tune", {"task": t, "seed": i}) for t in ("sst2", "ag_news") for i in range(2)])
    for i in range(2):
        s.put("tune", {"task": "sst2", "seed": i, "lr": 0.3}, {}, {"wall_s": 1.0})
    assert status(s).groupby("state").size().to_dict() == {"done": 2, "left": 2}
    for i in range(2):
        s.put("tune", {"task": "ag_news", "seed": i, "lr": 0.3}, {}, {"wall_s": 1.0})
    assert status_text(status(s)).endswith("nothing is left") and status(s).planned.all()


def test_plans_stand_side_by_side_and_the_same_one_is_replaced(tmp_path):
    s = Store(tmp_path)
    s.plan([("tune", {"a": i}) for i in range(3)], "one")
    s.plan([("tune", {"a": i}) for i in (2, 3)], "two/../\x1b")
    assert s.planned() in ([("tune", {"a": i}) for i in (0, 1, 2, 3)], [("tune", {"a": i}) for i in (2, 3, 0, 1)])
    s.plan([("tune", {"a": 0})], "one")
    assert sorted(c["a"] for _, c in s.planned()) == [0, 2, 3]
    assert {p.parent.name for p in tmp_path.rglob("*.json")} == {"plans"}
    with pytest.raises(ValueError, match="kind"):
        s.plan([("../up", {})])
    next((tmp_path / "plans").iterdir()).write_text("{")
    with pytest.raises(InputError, match="plan-"):
        status(s)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 3), st.sampled_from(["done", "failed", "running", "left"])),
        unique_by=lambda x: x[:2],
        max_size=8,
    ),
    st.booleans(),
)
def test_every_piece_has_the_state_that_the_plain_reading_gives_it(tmp_path_factory, pieces, planned):
    s, part = Store(tmp_path_factory.mktemp("s")), lambda a, b: {"a": a, "b": b}
    if planned:
        s.plan([("tune", part(a, b)) for a, b, _ in pieces])
    for a, b, state in pieces:
        if state == "done":
            s.put("tune", {**part(a, b), "more": [a]}, {}, {})
        if state == "failed":
            s.fail("tune", part(a, b), "why")
    with s.working([("tune", part(a, b)) for a, b, state in pieces if state == "running"]):
        df = status(s)
    want = {f"a {a}, b {b}": state for a, b, state in pieces if planned or state in ("done", "failed")}
    got = {p.split(", more")[0]: x for p, x in zip(df.piece, df.state)}
    assert got == want and set(df[df.state == "failed"].reason) <= {"why"}


def test_a_damaged_cell_is_a_row_that_names_the_file(tmp_path):
    s = Store(tmp_path)
    path = s.put("tune", PART, {}, {})
    s.put("tune", {**PART, "seed": 1}, {}, {})
    s.plan([("tune", PART)])
    path.write_bytes(path.read_bytes()[:50])
    df = status(s)
    assert sorted(df.state) == ["damaged", "done", "left"] and path.name in df[df.state == "damaged"].reason.iloc[0]
    assert path.name in status_text(df)


def test_time_left_is_that_of_the_closest_pieces(tmp_path):
    s = Store(tmp_path)
    piece = lambda task, model, seed: {"task": task, "source": model, "seed": seed, "steps": 100}
    for task, model, wall in (("sst2", "small", 10.0), ("sst2", "large", 100.0), ("ag", "small", 30.0)):
        s.put("tune", piece(task, model, 0), {"runs_in_pass": 2}, {"wall_s": wall})
    s.put(
        "tune", {**piece("sst2", "small", 0), "steps": 50}, {"runs_in_pass": 2, "pass_steps": 100}, {"wall_s": 5.0}
    )  # a budget on the way costs nothing more
    s.plan(
        [("tune", piece(*p, 1)) for p in (("sst2", "small"), ("sst2", "large"), ("ag", "large"), ("new", "new"))]
        + [("eval", piece("sst2", "small", 1))]
    )
    eta = dict(zip(status(s).piece, status(s).eta_s))
    of = lambda task, model: eta[f"task {task}, source {model}, steps 100, seed 1"]
    assert (of("sst2", "large"), of("ag", "large"), of("new", "new")) == (50.0, 50.0, (5 + 50 + 15 + 0) / 4)
    assert "and 1 pieces of a kind not done before; nobody is working on it" in status_text(status(s))


EFFECTS = ("effect_tokens", "effect_agreement", "effect")


def test_the_state_of_a_run_that_had_no_plan_is_that_of_its_cells(tmp_path):
    "The results in the repository, as an earlier version would have left them."
    shutil.copytree(pathlib.Path(__file__).parents[1] / "results" / "offline" / "cells", tmp_path / "cells")
    s = Store(tmp_path)
    df = status(s)
    assert len(df) == len(s.cells()) > 100 and set(df.state) == {"done"} and df.wall_s.notna().all()
    assert (
        set(df.kind) == {"vocab", "tune", "eval", "neighbors", "reading", "left_out", *EFFECTS}
        and not df.duplicated(["kind", "piece"]).any()
        and "what is missing is not known" in status_text(df)
    )
    assert not df.planned.any()


def test_what_failed_after_a_worker_began_it_is_not_running_though_its_heartbeat_is_fresh(tmp_path, monkeypatch):
    "The worker was killed, and another noted it; a worker that begins it again runs it."
    s, other = Store(tmp_path), dict(PART, seed=99)
    s.plan([("tune", PART), ("tune", other)])
    dates = iter(f"2026-01-01T00:00:0{i}+00:00" for i in range(9))
    real = folders.provenance
    monkeypatch.setattr(folders, "provenance", lambda *a, **k: real(*a, **k) | dict(date=next(dates)))
    with s.working([("tune", PART), ("tune", other)]):
        assert list(status(s).state) == ["running", "running"]
        s.fail("tune", PART, "its worker died")
        assert list(status(s).state) == ["failed", "running"]
        with s.working([("tune", PART)]):
            assert list(status(s).state) == ["running", "running"]


def test_heartbeats_are_fresh_while_the_worker_lives(tmp_path):
    s = Store(tmp_path)
    s.plan([("tune", PART)])
    with s.working([("tune", PART)], every_s=0.05):
        (beat,) = s.paths("running")
        os.utime(beat, (0, 0))  # as if long ago...
        for _ in range(400):
            if status(s).state.tolist() == ["running"]:
                break
            time.sleep(0.01)
        assert status(s).state.tolist() == ["running"]  # ...until it is touched again
        assert "1 worker running" in status_text(status(s))
    assert status(s).state.tolist() == ["left"] and s.paths("running") == []
    with pytest.raises(KeyError), s.working([("tune", PART)]):
        raise KeyError
    assert s.paths("running") == []


@pytest.mark.parametrize("age_s, gone", [(-1e6, False), (-10, False), (0, False), (3600, False), (2 * 86400, True)])
def test_stray_files_are_cleaned_when_they_are_old_and_only_ours(tmp_path, age_s, gone):
    s = Store(tmp_path)
    cell = s.put("toy", CFG, {}, {})
    s.fail("toy", PART, "x")
    ours = [
        cell.with_name(f".{cell.name}.0123456789ab.tmp"),
        tmp_path / "checkpoints" / ".pass-0.safetensors.0123456789ab.tmp",
    ]
    others = [cell.with_name(".DS_Store"), tmp_path / "notes.tmp", cell.with_name(".mine.tmp")]
    for p in ours + others:
        p.parent.mkdir(exist_ok=True)
        p.write_text("{")
        os.utime(p, (time.time() - age_s,) * 2)
    s.plan([])  # a run starts
    assert (
        [p.exists() for p in ours] == [not gone] * 2
        and all(p.exists() for p in others)
        and len(s.cells()) == len(s.failures()) == 1
    )


def test_a_writer_whose_temporary_file_was_cleaned_writes_again(tmp_path, monkeypatch):
    "As when another machine's clock is a day ahead."
    s, replace, taken = Store(tmp_path), os.replace, []

    def late(src, dst):
        if not taken:
            taken.append(src)
            os.unlink(src)
        replace(src, dst)

    monkeypatch.setattr(os, "replace", late)
    s.put("toy", CFG, {"x": 1}, {})
    assert taken and s.get("toy", CFG) == {"x": 1} and len(os.listdir(tmp_path / "cells")) == 1


@pytest.mark.parametrize("n", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_folder_of_thousands_of_cells(n, tmp_path, monkeypatch, capsys):
    """All are read, each file once; one more is written and one is asked for without a look at the others; the one
    damaged among them is named, and no other is lost."""
    from hpt_nb.cli import main

    s, read, opened = Store(tmp_path), folders.content, []
    monkeypatch.setattr(folders, "content", lambda p: (opened.append(p.name), read(p))[1])
    for i in range(n):
        s.put("eval", {"task": "t", "seed": i}, {"correct": i}, {"wall_s": 1.0})
    s.plan([("eval", {"task": "t", "seed": i}) for i in range(n + 5)])
    assert opened == []
    assert [c["config"]["seed"] for c in sorted(s.cells("eval"), key=lambda c: c["config"]["seed"])] == list(
        range(n)
    ) and len(opened) == len(set(opened)) == n
    opened.clear()
    assert (
        s.get("eval", {"task": "t", "seed": 77}) == {"correct": 77}
        and not s.has("eval", {"task": "t", "seed": n})
        and len(opened) <= 2
    )
    opened.clear()
    assert main(["status", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert (
        f"{n:,}" in out
        and "left: 5 pieces, about 5 s" in out
        and len(out.splitlines()) < 8
        and len(opened) == len(set(opened))
    )
    hurt = s.at("eval", {"task": "t", "seed": 321})
    hurt.write_bytes(hurt.read_bytes()[:-20])
    with pytest.raises(InputError, match=f"{hurt.name}: .*") as e:
        s.cells()
    assert "\n" not in str(e.value)
    df = status(s)
    assert (
        df.state.value_counts().to_dict() == {"done": n - 1, "left": 6, "damaged": 1}
        and df[df.state == "damaged"].piece.item() == hurt.name
    )
    hurt.unlink()
    s.put("eval", {"task": "t", "seed": 321}, {"correct": 321}, {})
    assert len(s.cells()) == n


def test_status_of_no_folder_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no such folder; need the results folder of a run"):
        status(Store(tmp_path / "none"))
    assert "no plan and no results" in status_text(status(Store(tmp_path)))


@given(st.floats(0, 1e7))
def test_durations_are_within_a_tenth(seconds):
    unit = dict(s=1, min=60, h=3600, d=86400)
    words = duration(seconds).split()
    said = sum(int(n) * unit[u] for n, u in zip(words[::2], words[1::2]))
    assert abs(said - seconds) <= max(0.5, 0.1 * seconds) + 1e-9


# -- writers -----------------------------------------------------------------------------------------------------------
def _write_many(folder, who):
    for _ in range(50):
        Store(folder).put("toy", CFG, {"text": who * 20_000}, {})


def test_writers_of_one_cell_do_no_harm(tmp_path):
    jobs = [multiprocessing.get_context("spawn").Process(target=_write_many, args=(tmp_path, who)) for who in "ab"]
    for j in jobs:
        j.start()
    seen, s = set(), Store(tmp_path)
    while any(j.is_alive() for j in jobs):
        if (got := s.get("toy", CFG)) is not None:
            seen.add(got["text"])  # whole at every moment
    assert all(j.exitcode == 0 for j in jobs)
    assert seen <= {"a" * 20_000, "b" * 20_000} and len(s.cells()) == 1


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "f", "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as m:
            m.setattr(os, call, full)
            with pytest.raises(WriteError, match="f: cannot be written .No space left on device.; free some space"):
                write_atomic(path, "new")
        assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_files_have_the_permissions_that_the_user_chose(tmp_path):
    old = os.umask(0o027)
    try:
        assert write_atomic(tmp_path / "f", "x").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(old)


# -- provenance --------------------------------------------------------------------------------------------------------
def test_no_commit_outside_git(tmp_path):
    "An installed copy names no commit, even inside somebody's repository."
    pkg = tmp_path / "site" / "hpt_nb"
    pkg.mkdir(parents=True)
    import hpt_nb.records as records

    for name in ("base.py", "files.py", "records.py"):
        shutil.copy(pathlib.Path(records.__file__).with_name(name), pkg)
    (pkg / "__init__.py").write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    ask = [sys.executable, "-c", "from hpt_nb.records import provenance as p; print(p()['commit'], p()['dirty'])"]

    def answer():
        return subprocess.run(
            ask,
            cwd=tmp_path / "site",
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONDONTWRITEBYTECODE": "1"},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()

    assert answer() == ["None", "None"]
    subprocess.run([*git, "add", "site"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "y"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert answer() == [head, "False"]
    with open(pkg / "records.py", "a") as f:
        f.write("# changed\n")
    assert answer() == [head, "True"]


def test_provenance_names_no_person_and_no_host():
    import getpass
    import socket

    text = json.dumps(provenance("cpu", "float32", [0]))
    assert socket.gethostname() not in text.split('"') and getpass.getuser() not in text.split('"')


def test_store_imports_no_torch():
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import hpt_nb.store, sys; assert not {'torch','transformers','nbdev','fastcore'} & set(sys.modules)",
        ],
        check=True,
    )


# -- stored results ----------------------------------------------------------------------------------------------------
def test_keep_and_recall(tmp_path):
    path = tmp_path / "stored" / "00-x.json"
    keep(path, CFG, {"J": [1, 0.5]}, wall_s=2.0, device="cpu", dtype="float32", seeds=range(3))
    assert recall(path, dict(reversed(CFG.items())), "04_neighbors") == {"J": [1, 0.5]}
    meta = json.loads(path.read_text())["meta"]
    assert (meta["wall_s"], meta["device"], meta["dtype"], meta["seeds"]) == (2.0, "cpu", "float32", [0, 1, 2])
    for other, names in [({**CFG, "lr": 0.1}, "lr"), ({"task": "sst2"}, "lr, seeds"), ({**CFG, "new": 1}, "new")]:
        with pytest.raises(InputError, match=rf"\({names} changed\); run the slow cells of 04_neighbors again"):
            recall(path, other, "04_neighbors")


# -- packages as files -------------------------------------------------------------------------------------------------
def _wheel(folder, name="toy_data", version="1.0"):
    "A minimal wheel, and its SHA-256."
    info, buf = f"{name}-{version}.dist-info", io.BytesIO()
    with zipfile.ZipFile(buf, "w") as z:
        z.writestr(f"{name}/words.txt", "a b c")
        z.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        z.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(f"{info}/RECORD", "")
    path = folder / f"{name}-{version}-py3-none-any.whl"
    path.write_bytes(buf.getvalue())
    return hashlib.sha256(buf.getvalue()).hexdigest()


def _sdist(folder, name="toy_data", version="1.0"):
    "A minimal source distribution whose build needs nothing, and its SHA-256."
    meta = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    backend = (
        "import os\ndef prepare_metadata_for_build_wheel(d, c=None):\n"
        f"    i='{name}-{version}.dist-info'; os.mkdir(d+'/'+i); "
        f"open(d+'/'+i+'/METADATA','w').write({meta!r}); return i\ndef build_wheel(*a, **k): 1/0\n"
    )
    files = {
        "PKG-INFO": meta,
        "backend.py": backend,
        "words.txt": "from the source",
        "pyproject.toml": '[build-system]\nrequires=[]\nbuild-backend="backend"\nbackend-path=["."]\n',
    }
    path = folder / f"{name}-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as t:
        for n, text in files.items():
            i = tarfile.TarInfo(f"{name}-{version}/{n}")
            i.size = len(text)
            t.addfile(i, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def local_index(tmp_path, monkeypatch):
    "pip sees one folder and no network; the cache is empty."
    for k in [k for k in os.environ if k.startswith("PIP_")]:
        monkeypatch.delenv(k)
    (tmp_path / "links").mkdir()
    for k, v in dict(
        PIP_CONFIG_FILE=os.devnull,
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS=str(tmp_path / "links"),
        HPT_CACHE=str(tmp_path / "cache"),
    ).items():
        monkeypatch.setenv(k, v)
    return tmp_path / "links"


def test_fetch_from_wheel_once(local_index, capfd):
    sha = _wheel(local_index)
    pin = dict(
        name="toy_data", version="1.0", sha256=sha, member="toy_data/words.txt", dest=cache_dir() / "toy" / "words.txt"
    )
    assert fetch_package(**pin).read_text() == "a b c"
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and "fetching toy_data 1.0" in err
    for f in local_index.iterdir():
        f.unlink()
    assert fetch_package(**pin).read_text() == "a b c" and capfd.readouterr() == ("", "")  # from the cache, in silence
    assert sorted(p.name for p in cache_dir().iterdir()) == ["toy"]  # no temporary folder is left


def test_fetch_whole_archive_and_sdist(local_index):
    wheel, sdist = _wheel(local_index), _sdist(local_index)
    whole = fetch_package("toy_data", "1.0", wheel, None, cache_dir() / "toy.whl")
    assert hashlib.sha256(whole.read_bytes()).hexdigest() == wheel
    assert (
        fetch_package("toy_data", "1.0", sdist, "toy_data-1.0/words.txt", cache_dir() / "w.txt", sdist=True).read_text()
        == "from the source"
    )
    whole.write_bytes(whole.read_bytes()[:-9])
    with pytest.raises(InputError, match="delete it and run again"):
        fetch_package("toy_data", "1.0", wheel, None, whole)


def test_fetch_errors_are_one_line_and_leave_nothing(local_index, monkeypatch, tmp_path):
    sha, dest = _wheel(local_index), cache_dir() / "toy" / "words.txt"

    def says(match, sha=sha, version="1.0", member="toy_data/words.txt", **kw):
        with pytest.raises(InputError, match=match) as e:
            fetch_package("toy_data", version, sha, member, dest, **kw)
        assert (
            "\n" not in str(e.value)
            and "http" not in str(e.value)
            and not dest.exists()
            and list(cache_dir().iterdir()) == []
        )

    says("toy_data 1.0: what was downloaded does not have the pinned SHA-256", sha="0" * 64)
    says("toy_data 2.0: pip's index does not offer it", version="2.0")
    says("no readable file 'toy_data/none'", member="toy_data/none")
    says("does not have the pinned SHA-256", member_sha256="0" * 64)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    says("toy_data 1.0: its index cannot be reached")
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    says("this Python has no pip")
