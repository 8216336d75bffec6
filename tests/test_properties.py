"""Any task file, preset or stored result: it is understood, or refused in one printable line; nothing else happens."""

import contextlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from hpt_nb.experiments import ROWS, Preset, load_preset, parse_preset
from hpt_nb.store import InputError, Store, config_hash, keep, recall, status, status_text, visible
from hpt_nb.tasks import Task, load_task
from tiny_run import PRESET, TASK

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib
MANY = settings(
    max_examples=int(os.environ.get("HPT_EXAMPLES", 100)),
    derandomize="HPT_EXAMPLES" not in os.environ,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
TEXTS = st.text(max_size=8) | st.sampled_from(
    [
        "",
        " bad",
        " great",
        "mine.toml",
        "./one",
        "PEZ",
        "Ours",
        "../x",
        "\x1b[2J",
        "\u202e",
        "a" * 400,
        "train.csv",
        "0",
        "nan",
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
VALUES = st.recursive(SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(TEXTS, x, max_size=3), max_leaves=8)


def refused(call):
    "What the call returns, or None if it refuses in one line that can be printed."
    try:
        return call()
    except InputError as e:
        assert str(e) and "\n" not in str(e) and str(e) == visible(str(e))
        return None


def changed(good, draw, values):
    "A table like `good` with one to three of its parts replaced, added or left out, at any depth."
    doc = json.loads(json.dumps(good))
    for _ in range(draw(st.integers(1, 3))):
        at = doc
        while True:
            here = list(at) if isinstance(at, dict) else list(range(len(at)))
            key = (
                draw(st.sampled_from(here))
                if here and draw(st.integers(0, 9))
                else draw(TEXTS)
                if isinstance(at, dict)
                else None
            )
            if key is None:
                break
            child = at[key] if not isinstance(at, dict) or key in at else None
            if isinstance(child, (dict, list)) and child and draw(st.booleans()):
                at = child
                continue
            if isinstance(at, dict) and key in at and not draw(st.integers(0, 3)):
                del at[key]
            else:
                at[key] = draw(values)
            break
    return doc


# ---- presets ----

FULL = {
    **tomllib.loads(PRESET),
    "about": "x",
    "rows": list(ROWS),
    "methods": ["pez"],
    "scoring": {"n": 3, "dtype": "float32"},
    "task": {"mine.toml": {"n": 2, "seeds": [0], "budgets": [10], "tuning": {"steps": 20}}},
}
FULL["vocab"] |= dict(h="exact", repeats=2, seed=0, include_self=True)
FULL["tuning"] |= dict(lr=0.3, clip=1.0, init="labels", budgets=[10])


def test_the_full_preset_is_understood():
    assert isinstance(parse_preset(FULL, "p"), Preset)


@MANY
@given(st.data())
def test_any_change_of_a_preset_is_understood_or_refused(data):
    doc = changed(FULL, data.draw, VALUES)
    got = refused(lambda: parse_preset(doc, "p"))
    if got is not None:
        assert (
            set(got.rows) <= set(ROWS)
            and all(type(s) is int for s in got.seeds)
            and got.tasks
            and all(s.model for s in got.sources)
        )
        for t in got.tasks:
            assert got.tuning_for(t).steps >= 1 and got.n_for(t) >= 0 and set(got.seeds_for(t)) <= set(got.seeds)


@MANY
@given(st.dictionaries(st.sampled_from([*FULL, "x"]), VALUES))
def test_any_table_as_a_preset_is_understood_or_refused(doc):
    refused(lambda: parse_preset(doc, "p"))


@MANY
@given(
    st.binary(max_size=60)
    | st.text(max_size=60).map(lambda s: s.encode("utf-8", "surrogatepass"))
    | st.sampled_from(PRESET.splitlines()).map(str.encode),
    st.integers(0, 500),
)
def test_any_bytes_as_a_preset_file_are_understood_or_refused(tmp_path, junk, at):
    whole = PRESET.encode()
    (tmp_path / "p.toml").write_bytes(whole[:at] + junk + whole[at:])
    refused(lambda: load_preset(tmp_path / "p.toml"))


# ---- task files ----


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    d = tmp_path_factory.mktemp("tasks")
    for part, n in (("train", 12), ("dev", 6)):
        (d / f"{part}.csv").write_text("text,label\n" + "".join(f"{part} text {i},{i % 2}\n" for i in range(n)))
    return d


def toml(value):
    "A TOML value; what TOML cannot say is said as a string."
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value) if isinstance(value, float) or abs(value) < 2**63 else f'"{value}"'
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value if isinstance(value, str) else repr(value)).replace("\x7f", "\\u007f")


TASK_DOC = {**tomllib.loads(TASK), "max_text_tokens": 8, "strip": True, "holdout": 3}


def no_hub(monkeypatch):
    import hpt_nb.table_files as table_files

    def none(source, *a):
        raise InputError(f"data set {source!r} cannot be read here")

    monkeypatch.setattr(table_files, "_read_hub", none)


@MANY
@given(st.data())
def test_any_change_of_a_task_file_is_understood_or_refused(data, monkeypatch, draws):
    no_hub(monkeypatch)
    doc = changed(TASK_DOC, draws.draw, VALUES)
    (data / "t.toml").write_text("\n".join(f"{json.dumps(k)} = {toml(v)}" for k, v in doc.items()), encoding="utf-8")
    got = refused(lambda: load_task(data / "t.toml"))
    if got is not None:
        assert (
            isinstance(got, Task)
            and len(got.labels) >= 2
            and len(set(got.train.labels)) >= 2
            and config_hash(got.config)
        )


@MANY
@given(
    st.binary(max_size=60)
    | st.text(max_size=40).map(lambda s: s.encode("utf-8", "surrogatepass"))
    | st.sampled_from(TASK.splitlines()).map(str.encode),
    st.integers(0, 200),
)
def test_any_bytes_in_a_task_file_are_understood_or_refused(data, monkeypatch, junk, at):
    no_hub(monkeypatch)
    whole = TASK.encode()
    (data / "b.toml").write_bytes(whole[:at] + junk + whole[at:])
    refused(lambda: load_task(data / "b.toml"))


@MANY
@given(
    st.sampled_from(["csv", "tsv", "jsonl", "parquet"]),
    st.binary(max_size=80)
    | st.text(max_size=80).map(lambda s: s.encode("utf-8", "surrogatepass"))
    | st.lists(VALUES, max_size=4).map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
    st.sampled_from(
        [b"", b"text,label\n", b"text\tlabel\n", b'{"text": "a", "label": 0}\n', b"text,label\na,0\nb,1\n"]
    ),
)
def test_any_bytes_as_data_are_understood_or_refused(data, suffix, junk, head):
    (data / f"d.{suffix}").write_bytes(head + junk)
    (data / "d.toml").write_text(TASK.replace("train.csv", f"d.{suffix}"))
    got = refused(lambda: load_task(data / "d.toml"))
    if got is not None:
        assert all(t.strip() for t in got.train.texts)


# ---- stored results ----

TEXT_KEYS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=6), x, max_size=3),
    max_leaves=8,
)
ANY_KEYS = st.dictionaries(
    st.text(max_size=3) | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False),
    TEXT_KEYS,
    max_size=5,
)


def same(a, b):
    "Equal, and of equal types: 1, 1.0 and True are not the same."
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


@MANY
@given(
    st.dictionaries(st.text(max_size=6), TEXT_KEYS, max_size=4),
    st.dictionaries(st.text(max_size=6), TEXT_KEYS, max_size=4),
    st.dictionaries(st.text(max_size=6), TEXT_KEYS, max_size=4),
    st.sampled_from(["a", "tune", "x_1"]),
)
def test_what_is_put_is_what_is_got(tmp_path_factory, config, result, meta, kind):
    s = Store(tmp_path_factory.mktemp("s"))
    path = s.put(kind, config, result, meta)
    (cell,) = s.cells()
    assert (
        same([cell["kind"], cell["config"], cell["result"], cell["meta"]], [kind, config, result, meta])
        and path.name == f"{kind}-{config_hash(config)}.json"
    )
    assert same(s.get(kind, config), result)
    s.put(kind, config, result, meta)
    assert (
        len(s.cells()) == 1
        and status(s).state.tolist() == ["done"]
        and status_text(status(s)).replace("\n", "").isprintable()
    )


@MANY
@given(ANY_KEYS)
@example({10: 1, 9: 2})
def test_keys_that_are_no_text_come_back_as_text_or_are_refused(tmp_path_factory, result):
    "Two keys may become one text: then nothing is written."
    s, path = Store(tmp_path_factory.mktemp("s")), tmp_path_factory.mktemp("k") / "k.json"
    texts = [json.loads(json.dumps({k: 0})).popitem()[0] for k in result]
    try:
        s.put("a", {"x": result}, result, {})
        keep(path, {"x": result}, result, wall_s=0)
    except ValueError as e:
        assert (
            "two keys are the same text" in str(e)
            and len(set(texts)) < len(texts)
            and not path.exists()
            and s.cells() == []
        )
        return
    assert len(set(texts)) == len(texts) and s.get("a", {"x": result}) == dict(zip(texts, result.values())) == recall(
        path, {"x": result}, "n"
    )


@MANY
@given(
    st.binary(max_size=200)
    | VALUES.map(lambda v: json.dumps(v).encode())
    | st.dictionaries(st.sampled_from(["schema", "kind", "hash", "config", "result", "meta", "checksum"]), VALUES).map(
        lambda v: json.dumps({"schema": 1, **v}).encode()
    )
)
def test_any_bytes_as_a_cell_are_refused(tmp_path_factory, junk):
    s = Store(tmp_path_factory.mktemp("s"))
    path = s.put("a", {"x": 1}, {}, {})
    s.put("a", {"x": 2}, {}, {})
    path.write_bytes(junk)
    assert refused(lambda: s.get("a", {"x": 1})) is None and refused(s.cells) is None
    assert sorted(status(s).state) == ["damaged", "done"]


@MANY
@given(
    st.text(max_size=30)
    | st.sampled_from(["..", ".", "/etc/x", "a/../../b", "a\\..\\b", "C:x", "\u202e.x", "con", "a\0b"])
)
def test_no_name_leads_out_of_the_folder(tmp_path_factory, name):
    base = tmp_path_factory.mktemp("s")
    s = Store(base / "runs")
    got = refused(lambda: s.file(name))
    if got is not None:
        assert got.parent == base / "runs" / "files" and got.resolve().is_relative_to(base / "runs")
    for work in (lambda: s.put(name, {}, {}, {}), lambda: s.fail(name, {}, "x"), lambda: s.plan([(name, {})])):
        with contextlib.suppress(ValueError):
            work()
    s.plan([], name.encode("utf-8", "ignore").decode())
    assert {p.relative_to(base).parts[0] for p in base.rglob("*")} <= {"runs"} and {
        p.parent.name for p in base.rglob("*") if p.is_file()
    } <= {"cells", "failed", "plans"}


def test_nothing_was_written_beside_the_tests():
    assert not [p for p in Path(os.getcwd()).glob("*.toml") if p.name in ("t.toml", "b.toml", "d.toml", "p.toml")]
