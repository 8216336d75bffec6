"""Packs: the same cells give the same bytes and come back as they were; damaged and foreign ones are refused in one
line; a kill leaves nothing half-made; the command line reads them in a folder's place."""

import base64
import json
import multiprocessing
import os
import random
import shutil
import time

import pytest
from hypothesis import given, settings, strategies as st

import hpt_nb.folders as folders
import hpt_nb.packs as packs
from hpt_nb.store import (
    InputError,
    Store,
    config_hash,
    is_pack,
    level_folders,
    pack,
    provenance,
    read_pack,
    status,
    status_text,
    to_go_on,
    unpack,
    write_atomic,
)

TEXTS = (
    st.text(max_size=12)
    | st.binary(max_size=120).map(lambda b: base64.b64encode(b).decode())
    | st.text('AB/+=01\x01;\\"', max_size=90)
    | st.text("0123456789abcdef", min_size=64, max_size=80)
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda x: st.lists(x, max_size=4) | st.dictionaries(TEXTS, x, max_size=4),
    max_leaves=10,
)
TABLES = st.dictionaries(TEXTS, VALUES, max_size=4)
CELLS = st.lists(st.tuples(st.sampled_from(["tune", "eval", "vocab"]), TABLES, TABLES), min_size=1, max_size=6)


def content(store):
    return [{k: c[k] for k in ("kind", "hash", "config", "result", "meta", "checksum")} for c in store.cells()]


def shuffled(x, rnd):
    "The same value, with the keys of its tables in another order."
    if isinstance(x, list):
        return [shuffled(v, rnd) for v in x]
    if not isinstance(x, dict):
        return x
    items = [(k, shuffled(v, rnd)) for k, v in x.items()]
    rnd.shuffle(items)
    return dict(items)


def filled(path, n=5, **more):
    "A folder of `n` cells, a plan, a failure, an artefact and a prompt."
    s = Store(path)
    s.plan([("eval", {"i": i}) for i in range(n + 1)])
    for i in range(n):
        s.put(
            "eval",
            {"i": i, **more},
            {"logp": base64.b64encode(random.Random(i).randbytes(300)).decode(), "correct": i},
            provenance("cpu", wall_s=0.5),
        )
    s.fail("eval", {"i": n}, "out of memory")
    write_atomic(s.file("v.parquet"), bytes(range(256)) * 3)
    write_atomic(s.path / "prompt.json", '{"prompt": "x"}\n')
    return s


# ---- the same cells, the same bytes ----


@settings(max_examples=40, deadline=None)
@given(CELLS, st.randoms())
def test_any_cells_come_back_and_their_order_does_not_matter(tmp_path_factory, cells, rnd):
    d = tmp_path_factory.mktemp("p")
    one, other = Store(d / "one"), Store(d / "other")
    for kind, config, result in cells:
        one.put(kind, config, result, {"date": "then"})
    again = [
        (kind, shuffled(config, rnd), shuffled(result, rnd))
        for kind, config, result in {(k, config_hash(c)): (k, c, r) for k, c, r in cells}.values()
    ]
    rnd.shuffle(again)
    for kind, config, result in again:
        other.put(kind, config, result, {"date": "then"})
    p = pack(one.path, d / "one.hpt")
    assert content(Store(p)) == content(one)
    assert pack(other.path, d / "other.hpt").read_bytes() == p.read_bytes()
    assert pack(unpack(p, d / "back"), d / "back.hpt").read_bytes() == p.read_bytes() and content(
        Store(d / "back")
    ) == content(one)
    assert pack(p, d / "again.hpt").read_bytes() == p.read_bytes()


def test_everything_that_belongs_to_the_results_is_in_it_and_nothing_else(tmp_path):
    s = filled(tmp_path / "runs")
    s.fail("eval", {"i": 0, "x": 1}, "still stands")
    (
        write_atomic(s.path / "checkpoints" / "pass-0.safetensors", "state"),
        write_atomic(s.path / "cells" / ".eval-0.json.0123456789ab.tmp", "{"),
    )
    with s.working([("eval", {"i": 5})]):
        p = pack(s.path, tmp_path / "x")
    assert sorted({name.split("/")[0] for name in read_pack(p)}) == ["cells", "failed", "files", "plans", "prompt.json"]
    one = Store(p)
    assert (
        content(one) == content(s)
        and one.planned() == s.planned()
        and one.failures() == s.failures()
        and status_text(status(one)) == status_text(status(s))
    )
    assert (
        one.beside("prompt.json") == s.beside("prompt.json")
        and one.file("v.parquet").read_bytes() == s.file("v.parquet").read_bytes()
    )
    assert one.beside("other.json") is None and not one.file("w.parquet").exists() and one.exists()
    back = unpack(p, tmp_path / "back")
    for name in ("files/v.parquet", "prompt.json"):
        assert (back / name).read_bytes() == (s.path / name).read_bytes()
    assert [f.name for f in sorted((back / "cells").iterdir())] == [f.name for f in s.paths("cells")]


def test_a_plan_written_again_changes_nothing(tmp_path, monkeypatch):
    s = filled(tmp_path / "runs")
    before = pack(s.path, tmp_path / "a").read_bytes()
    monkeypatch.setattr(folders, "provenance", lambda *a, **k: {"date": "later"})
    s.plan([("eval", {"i": i}) for i in range(6)])
    assert pack(s.path, tmp_path / "a").read_bytes() == before


def test_levels_are_packed_together(tmp_path):
    for level in ("K-16", "K-32"):
        filled(tmp_path / "vary" / level, k=level)
    p = pack(tmp_path / "vary", tmp_path / "vary.hpt")
    assert [x.name for x in level_folders(p)] == ["K-16", "K-32"]
    for level in ("K-16", "K-32"):
        assert (
            content(Store(p / level)) == content(Store(tmp_path / "vary" / level))
            and Store(p / level).file("v.parquet").is_file()
            and Store(p / level).beside("prompt.json")
        )
        assert (
            pack(p / level, tmp_path / "one").read_bytes()
            == pack(tmp_path / "vary" / level, tmp_path / "other").read_bytes()
        )
    assert not Store(p / "K-64").exists() and Store(p / "K-64").cells() == [] and level_folders(p / "K-16") == []
    assert pack(unpack(p, tmp_path / "back"), tmp_path / "again").read_bytes() == p.read_bytes()


def test_a_pack_that_is_replaced_is_read_anew(tmp_path):
    s = filled(tmp_path / "runs")
    one = Store(pack(s.path, tmp_path / "p"))
    assert len(one.cells()) == 5
    s.put("eval", {"i": 9}, {}, {})
    pack(s.path, tmp_path / "p")
    assert len(one.cells()) == 6


def test_similar_cells_take_little_room(tmp_path):
    s = Store(tmp_path / "runs")
    for i in range(40):
        s.put(
            "eval",
            {"i": i, "task": "sst2"},
            {"logp": base64.b64encode(random.Random(i).randbytes(900)).decode()},
            provenance("cpu", wall_s=i / 8),
        )
    assert (
        pack(s.path, tmp_path / "p").stat().st_size < 40 * 930 + 2000
    )  # the random bytes themselves, and next to nothing for the rest


# ---- refused ----


def says(call):
    with pytest.raises(InputError) as e:
        call()
    assert "\n" not in str(e.value) and len(str(e.value)) < 400
    return str(e.value)


def test_every_damage_is_named(tmp_path):
    s = filled(tmp_path / "runs")
    p = pack(s.path, tmp_path / "p.hpt")
    whole, good, rnd, refused = p.read_bytes(), content(s), random.Random(0), 0
    places = [(n, bit) for n in range(130) for bit in range(8)] + [
        (rnd.randrange(len(whole)), rnd.randrange(8)) for _ in range(500)
    ]
    for n, bit in places:
        p.write_bytes(whole[:n] + bytes([whole[n] ^ 1 << bit]) + whole[n + 1 :])
        os.utime(p, ns=(n + 1, 10 * n + bit))
        try:
            assert content(Store(p)) == good
        except InputError as e:
            assert "p.hpt" in str(e) and "\n" not in str(e)
            refused += 1
    assert refused == len(places)
    for n in [*range(130), *rnd.sample(range(len(whole)), 200)]:
        p.write_bytes(whole[:n])
        assert "p.hpt" in says(lambda: Store(p).cells())
    p.write_bytes(whole + b"\0")
    assert "cut short or damaged" in says(lambda: Store(p).cells())


def repacked(path, lines, arrays=b"", files=b""):
    "A pack with a right checksum that `pack` would not write."
    parts = dict(lines="".join(x + "\n" for x in lines).encode(), arrays=arrays, files=files)
    small = [packs._xz(parts[name], *how) for name, how in packs._PARTS.items()]
    path.write_bytes(
        f"hpt pack 1 sha256 {packs._digest(parts)} xz {' '.join(str(len(x)) for x in small)}\n".encode()
        + b"".join(small)
    )
    return path


CELL = dict(at="cells", kind="toy", config={}, result={}, meta={})


@pytest.mark.parametrize(
    "line",
    [
        CELL | dict(at="../cells"),
        CELL | dict(at="/etc"),
        CELL | dict(at="a/b/cells"),
        CELL | dict(kind="../x"),
        CELL | dict(config=3),
        CELL | dict(kind="Toy"),
        dict(at="files", name="../x", bytes=0),
        dict(at="files", name="a/b", bytes=0),
        dict(at="files", name=3, bytes=0),
        dict(at="files", name="x", bytes="1"),
        dict(at=None, name="x", bytes=0),
        {},
        [],
        3,
        "\x01",
    ],
)
def test_a_pack_that_we_did_not_write_is_refused(tmp_path, line):
    p = repacked(tmp_path / "p.hpt", [line if line == "\x01" else json.dumps(line)])
    assert "not that of a results folder" in says(lambda: read_pack(p))
    says(lambda: unpack(p))
    assert [x.name for x in tmp_path.iterdir()] == ["p.hpt"]


def test_foreign_files_and_folders_are_refused(tmp_path):
    for name, data in dict(zip=b"PK\x03\x04", empty=b"", text=b"hpt").items():
        (tmp_path / name).write_bytes(data)
    for name in ("zip", "empty", "text"):
        assert "is a file; need a folder for results, or a file that hpt pack made from one" in says(
            lambda: Store(tmp_path / name)
        ) and not is_pack(tmp_path / name)
        says(lambda: read_pack(tmp_path / name)), says(lambda: unpack(tmp_path / name))
    (tmp_path / "folder").mkdir()
    assert "no results in it" in says(lambda: pack(tmp_path / "folder", tmp_path / "p"))
    filled(tmp_path / "runs")
    assert "is a folder; need a file name" in says(lambda: pack(tmp_path / "runs", tmp_path / "folder"))
    (tmp_path / "runs" / "cells" / "notes.txt").write_text("mine")
    assert "notes.txt" in says(lambda: pack(tmp_path / "runs", tmp_path / "p"))
    (tmp_path / "runs" / "cells" / "notes.txt").unlink()
    cell = Store(tmp_path / "runs").paths("cells")[0]
    cell.write_text(cell.read_text().replace('"correct": ', '"correct": 1'))
    assert cell.name in says(lambda: pack(tmp_path / "runs", tmp_path / "p")) and not (tmp_path / "p").exists()


def test_nothing_is_written_into_a_pack(tmp_path):
    s = Store(pack(filled(tmp_path / "runs").path, tmp_path / "p.hpt"))
    before = s.path.read_bytes()
    for work in (
        lambda: s.put("toy", {}, {}, {}),
        lambda: s.fail("toy", {}, "x"),
        lambda: s.plan([]),
        lambda: s.working([]).__enter__(),
    ):
        assert "is a pack, which is read-only; unpack it to go on" in says(work)
    assert s.clean() == 0 and s.path.read_bytes() == before


# ---- unpacked to go on ----


def test_a_folder_that_is_there_gets_what_it_lacks(tmp_path):
    s = filled(tmp_path / "runs")
    p = pack(s.path, tmp_path / "runs.hpt")
    s.put("eval", {"i": 99}, {}, {})
    lost = s.paths("cells")[0]
    kept = lost.read_text()
    lost.unlink()
    said = []
    assert (
        to_go_on(p, said.append) == str(tmp_path / "runs")
        and to_go_on(tmp_path / "runs", said.append) == str(tmp_path / "runs")
        and len(said) == 1
    )
    assert len(s.cells()) == 6 and json.loads(lost.read_text()) == json.loads(kept)
    (tmp_path / "other").write_text(""), shutil.copy(p, tmp_path / "other.hpt")
    assert "would be unpacked there" in says(lambda: unpack(tmp_path / "other.hpt"))


def write_again_and_again(work, ready, source, out):
    ready.set()
    while True:
        work(source, out)


def pack_anew(source, out):
    pack(source, out)


def unpack_anew(source, out):
    "Unpack under a new name each time, so that a kill meets a folder in the making."
    unpack(source, out if not out.exists() else out.with_name(f"again-{len(list(out.parent.iterdir()))}"))


@pytest.mark.parametrize("i", range(int(os.environ.get("HPT_KILLS", 3))))
def test_a_kill_leaves_no_half_pack(tmp_path, i):
    s, out, rnd = filled(tmp_path / "runs", 30), tmp_path / "out" / "p.hpt", random.Random(i)
    ctx = multiprocessing.get_context("spawn")
    ready = ctx.Event()
    p = ctx.Process(target=write_again_and_again, args=(pack_anew, ready, s.path, out))
    p.start()
    assert ready.wait(60)
    time.sleep(rnd.uniform(0, 0.4))
    p.kill()
    p.join()
    if out.exists():
        assert content(Store(out)) == content(s)
    pack(s.path, out)
    assert content(Store(out)) == content(s)


@pytest.mark.parametrize("i", range(int(os.environ.get("HPT_KILLS", 3))))
def test_a_kill_leaves_no_half_folder(tmp_path, i):
    s, rnd = filled(tmp_path / "runs", 30), random.Random(i)
    kept, out = pack(s.path, tmp_path / "p.hpt"), tmp_path / "out" / "again"
    Store(kept).cells()
    assert not out.parent.exists()  # reading leaves nothing
    ctx = multiprocessing.get_context("spawn")
    ready = ctx.Event()
    p = ctx.Process(target=write_again_and_again, args=(unpack_anew, ready, kept, out))
    p.start()
    assert ready.wait(60)
    time.sleep(rnd.uniform(0, 0.4))
    p.kill()
    p.join()
    found = [x for x in out.parent.iterdir() if not x.name.startswith(".")] if out.parent.exists() else []
    for folder in found:
        assert content(Store(folder)) == content(s)
    for stray in out.parent.glob(".*.tmp"):
        os.utime(stray, (1, 1))
    shutil.rmtree(out, ignore_errors=True)
    assert content(Store(unpack(kept, out))) == content(s)
    assert [
        x.name for x in out.parent.iterdir() if x.name.startswith(f".{out.name}.")
    ] == []  # what the kill left is old, and gone
