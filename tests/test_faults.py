"""Disks that are full or cannot be written to, writers that meet, and kill -9 at random moments: nothing finished is
lost, nothing half-written counts.

`HPT_KILLS=20` kills that often; the default is few, for continuous integration."""

import errno
import os
import random
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime

import pytest

from hpt_nb.store import InputError, Store, WriteError, status, write_atomic
from forked import CTX
from tiny_run import PRESET, make_place, results
from watched import noted, wait_for, watch

KILLS = int(os.environ.get("HPT_KILLS", 3))
CFG = {"task": "sst2", "seed": 0}


def one_line(e):
    return "\n" not in str(e) and len(str(e)) < 400


def strays(folder):
    return [p for p in folder.rglob("*") if p.is_file() and p.name.startswith(".")]


# ---- disks ----


@pytest.fixture
def disk(tmp_path):
    "mount(size, options) -> a tmpfs of its own, where that is allowed; else the test is skipped."
    made = []

    def mount(options):
        at = tmp_path / f"disk{len(made)}"
        at.mkdir(exist_ok=True)
        done = (
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(at)], capture_output=True)
            if sys.platform == "linux"
            else None
        )
        if done is None or done.returncode:
            pytest.skip("no tmpfs can be mounted here")
        made.append(at)
        return at

    yield mount
    for at in made:
        subprocess.run(["umount", str(at)], check=True)


def test_a_full_disk_is_one_line_and_keeps_what_is_finished(disk):
    at = disk("size=256k")
    s, n = Store(at / "runs"), 0
    with pytest.raises(
        WriteError,
        match=r"cannot be written \(No space left on device\); free some space and run again: what is finished is kept",
    ) as e:
        for n in range(10**4):
            s.put("toy", {"i": n}, {"text": "x" * 5000}, {})
    assert one_line(e.value) and "toy-" in str(e.value)
    assert n > 10 and sorted(c["config"]["i"] for c in s.cells()) == list(range(n)) and strays(at) == []
    with pytest.raises(WriteError):
        s.fail("toy", {"i": n}, "x" * 500), [write_atomic(at / f"f{i}", "x" * 4096) for i in range(100)]
    assert len(s.cells()) == n and strays(at) == []
    next(
        (at / "runs" / "cells").iterdir()
    ).unlink()  # room again: the next writes work, and the lost one is computed anew
    s.put("toy", {"i": n}, {"text": "x"}, {})
    assert len(s.cells()) == n


def test_a_full_disk_in_the_middle_of_hpt_vocab(disk, place, capsys):
    from hpt_nb.cli import main

    at = disk("size=4k")  # the folder itself takes the one page
    assert main(["vocab", str(place / "one"), str(place / "two"), "--out", str(at / "new" / "v.parquet")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "No space left" in err and "v.parquet" in err and strays(at) == []


def test_a_read_only_folder_is_one_line(tmp_path, disk):
    if os.geteuid():  # for root, permissions are no hindrance
        at = tmp_path / "ro"
        at.mkdir()
        Store(at).put("toy", CFG, {"x": 1}, {})
        for p in (at / "cells", at):
            p.chmod(0o555)
    else:
        at = disk("size=64k")
        Store(at).put("toy", CFG, {"x": 1}, {})
        subprocess.run(["mount", "-o", "remount,ro", str(at)], check=True)
    s = Store(at)
    for work in (
        lambda: s.put("toy", {"new": 1}, {}, {}),
        lambda: s.fail("toy", CFG, "x"),
        lambda: s.plan([("toy", CFG)]),
        lambda: write_atomic(at / "a" / "b", "x"),
    ):
        with pytest.raises(WriteError, match="cannot be written .*; name a folder that you can write to") as e:
            work()
        assert one_line(e.value)
    assert (
        s.get("toy", CFG) == {"x": 1} and len(s.cells()) == 1 and status(s).state.tolist() == ["done"]
    )  # reading needs no writing
    if os.geteuid():
        for p in (at, at / "cells"):
            p.chmod(0o755)


def test_a_limit_on_file_size_is_one_line(tmp_path):
    "The kernel stops the write itself in its middle."
    pytest.importorskip("resource")
    code = (
        "import resource, sys\nfrom hpt_nb.store import *\n"
        "s = Store(sys.argv[1]); s.put('toy', {'i':0}, {'text':'x'}, {})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "try: s.put('toy', {'i':1}, {'text':'x'*10**5}, {})\nexcept WriteError as e: print(e)\n"
        "s.put('toy', {'i':2}, {'text':'y'}, {})"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1 and "File too large" in done.stdout and "cannot be written" in done.stdout
    assert sorted(c["config"]["i"] for c in Store(tmp_path).cells()) == [0, 2] and strays(tmp_path) == []


@pytest.mark.parametrize(
    "code, says",
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "name a folder"),
        (errno.EACCES, "name a folder"),
        (errno.EIO, "check the disk"),
        (errno.ESTALE, "check the disk"),
        (errno.ENAMETOOLONG, "shorter name"),
        (None, "check the disk"),
    ],
)
@pytest.mark.parametrize("call", ["mkdir", "open", "write", "fsync", "replace"])
def test_any_error_at_any_call_is_one_line_and_leaves_the_old_file(tmp_path, monkeypatch, call, code, says):
    "From the folder to the rename: whichever call fails, and however."
    import builtins

    s = Store(tmp_path)
    s.put("toy", CFG, {"x": "old"}, {})

    def broken(*a, **k):
        raise OSError(code, os.strerror(code)) if code else OSError("odd")

    opened = builtins.open

    class Full:
        "A file that cannot be written to."

        def __init__(self, f):
            self.f = f

        def __enter__(self):
            return self

        def __exit__(self, *a):
            self.f.close()

        def __getattr__(self, name):
            return broken if name == "write" else getattr(self.f, name)

    with monkeypatch.context() as m:
        if call == "mkdir":
            m.setattr(os, "mkdir", broken)
        elif call in ("fsync", "replace"):
            m.setattr(os, call, broken)
        else:
            m.setattr(builtins, "open", lambda *a, **k: broken() if call == "open" else Full(opened(*a, **k)))
        work = (
            (lambda: write_atomic(tmp_path / "new" / "f", "x"))
            if call == "mkdir"
            else (lambda: s.put("toy", CFG, {"x": "new"}, {}))
        )
        with pytest.raises(WriteError, match=says) as e:
            work()
    assert one_line(e.value) and "cannot be written" in str(e.value)
    assert s.get("toy", CFG) == {"x": "old"} and strays(tmp_path) == [] and len(s.cells()) == 1


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES])
def test_a_file_system_that_cannot_flush_folders_still_serves(tmp_path, monkeypatch, code):
    "NFS, SMB and FUSE have file systems where only files can be flushed."
    sync = os.fsync

    def only_files(fd):
        import stat

        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(code, "no")
        sync(fd)

    monkeypatch.setattr(os, "fsync", only_files)
    Store(tmp_path / "a" / "b").put("toy", CFG, {"x": 1}, {})
    assert Store(tmp_path / "a" / "b").get("toy", CFG) == {"x": 1}


def test_content_reaches_the_disk_before_its_name_and_the_name_before_we_return(tmp_path, monkeypatch):
    import stat

    done, sync, move = [], os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (done.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"), sync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), move(a, b)))
    write_atomic(tmp_path / "f", "x")
    assert done == ["file", "rename", "folder"]
    done.clear()
    write_atomic(tmp_path / "new" / "er" / "f", "x")
    assert done == ["folder", "folder", "file", "rename", "folder"]  # a new folder's own entry first


def test_a_cell_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    from pathlib import Path

    s = Store(tmp_path)
    path, calls, read = s.put("toy", CFG, {"x": 1}, {}), [], Path.read_bytes

    def stale_once(self):
        calls.append(self)
        if len(calls) == 1:
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(self)

    with monkeypatch.context() as m:  # replaced by another machine while this one opened it
        m.setattr(Path, "read_bytes", stale_once)
        assert s.get("toy", CFG) == {"x": 1}
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=rf"{path.name}: cannot be read \(Is a directory\)") as e:
        s.cells()
    assert one_line(e.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be read|is a file"):
        Store(tmp_path / "file" / "runs").cells()


# ---- several writers ----

SHARER = """
import random, sys
from hpt_nb.store import Store
folder, who = sys.argv[1:]
s, order = Store(folder), list(range(30))
random.Random(who).shuffle(order)
print("ready", flush=True); sys.stdin.readline()
for i in order:
    if not s.has("toy", {"i":i}): s.put("toy", {"i":i}, {"text":"x"*20_000}, {"who":who})
    s.fail("toy", {"i":i + 100}, f"worker {who}")
"""


def test_workers_that_finish_the_same_cells_do_no_harm(tmp_path):
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", SHARER, str(tmp_path), str(who)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for who in (1, 2)
    ]
    for j in jobs:
        j.stdout.readline()
    for j in jobs:
        j.stdin.write("go\n"), j.stdin.flush()
    assert [j.communicate() and j.returncode for j in jobs] == [0, 0]
    s = Store(tmp_path)
    assert (
        sorted(c["config"]["i"] for c in s.cells()) == list(range(30))
        and len(s.failures()) == 30
        and strays(tmp_path) == []
    )


# ---- kill -9 of a writer ----

WRITER = """
import itertools, sys
from hpt_nb.store import Store
s = Store(sys.argv[1])
for i in itertools.count(len(s.cells())):
    s.put("toy", {"i":i}, {"text":"x"*200_000}, {})
    print(i, flush=True)
    s.fail("toy", {"i":i + 10**6}, "x"*400)
    s.plan([("toy", {"i":j}) for j in range(i + 2)])
"""


def test_a_killed_writer_loses_nothing_that_was_finished(tmp_path):
    "Each cell whose `put` returned is there, and whole; nothing half-written counts."
    rng, said = random.Random(0), set()
    for _ in range(max(3, KILLS)):
        p = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        said.add(int(p.stdout.readline()))
        time.sleep(rng.uniform(0, 0.15))
        p.kill()
        said |= {int(line) for line in p.stdout.read().splitlines(True) if line.endswith("\n")}
        p.wait()
        s = Store(tmp_path)
        there = {c["config"]["i"] for c in s.cells()}
        assert (
            said <= there
            and len(there - said) <= 1 + len(said)
            and all(len(c["result"]["text"]) == 200_000 for c in s.cells())
        )
        assert all(f["reason"] == "x" * 400 for f in s.failures())
        assert Counter(status(s).state)["done"] == len(there)  # the plan is whole too
    assert there == set(range(len(there)))
    s.plan([])
    assert all(
        time.time() - p.stat().st_mtime < 86400 for p in strays(tmp_path)
    )  # what a kill left is passed over, and cleaned when it is old
    s.clean(older_s=-1)
    assert strays(tmp_path) == [] and len(s.cells()) == len(there)


# ---- kill -9 of `hpt run` ----


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(
        tmp_path_factory.mktemp("faults"), PRESET.replace("seeds", 'rows = ["Empty", "PEZ", "Ours"]\nseeds')
    )


def _run(place, out, log, every_s, argv, env):
    "`hpt run` that notes in `log` what it computes (`watched`)."
    os.chdir(place)
    os.environ.update(env)
    import torch

    torch.set_num_threads(1)
    from hpt_nb.cli import main

    watch(log, every_s)
    with open(os.devnull, "w") as sys.stdout:
        sys.exit(main(["run", "preset.toml", "--out", str(out), "--quiet", *argv]))


def start(place, out, log, every_s=60, *argv, **env):
    p = CTX.Process(target=_run, args=(place, out, log, every_s, argv, env))
    p.start()
    return p


def kill_after(p, log, n, jitter_s):
    "kill -9, a moment after the run has noted its `n`-th piece of work."
    wait_for(p, log, n, jitter_s)
    p.kill()
    p.join()


def scores_of(cells):
    "(model, prompt) -> cells that its score fills."
    scored = [c["config"] for c in cells if c["kind"] == "eval"]
    return Counter((config["target"], tuple(config["prompt_ids"])) for config in scored)


def tables(folder):
    "Every accuracy table of the report, as text."
    from hpt_nb import report

    df = report.results_frame(Store(folder))
    return {
        (t, s, o): report.accuracy_table(df, t, s, o).to_csv() + report.differences_table(df, t, s).to_csv()
        for t, s in report.tables(df)
        for o in ("ids", "text")
    }


@pytest.fixture(scope="module")
def unbroken(place):
    "(pieces of work, results, tables) of a run that nobody disturbed."
    p = start(place, place / "whole", place / "whole.log")
    p.join()
    assert p.exitcode == 0
    return len(noted(place / "whole.log")), results(place / "whole"), tables(place / "whole")


@pytest.mark.parametrize("i", range(KILLS))
def test_a_run_killed_at_any_moment_goes_on_to_the_same_table(place, unbroken, i):
    n, want, want_tables = unbroken
    rng, out, log, again = random.Random(i), place / f"cut{i}", place / f"cut{i}.log", place / f"again{i}.log"
    every_s = 60 * (i % 2)  # a checkpoint after each step, or none before the end
    kill_after(
        start(place, out, log, every_s), log, int(n * (i + rng.random()) / KILLS), rng.uniform(0, 0.1)
    )  # one in each part of the work
    done = {q.name: (q.read_bytes(), q.stat().st_mtime_ns) for q in (out / "cells").glob("*.json")}
    cells = Store(out).cells() if out.exists() else []  # whole, every one of them
    p = start(place, out, again, every_s)
    p.join()
    assert p.exitcode == 0
    assert {n: ((out / "cells" / n).read_bytes(), (out / "cells" / n).stat().st_mtime_ns) for n in done} == done
    assert results(out) == want and tables(out) == want_tables
    before, after = noted(log), noted(again)
    assert any(x[0] == "step" for x in before + after)
    tuned = {
        c["config"]["source"] for c in cells if c["kind"] == "tune"
    }  # a pass whose first run is kept has its checkpoint until the last one is
    every, mine = (scores_of(some) for some in (Store(place / "whole").cells(), cells))
    scored = {score for score, n in mine.items() if n == every[score]}  # one that fills several cells, and all of them
    assert not [x for x in after if x[0] == "step" and x[1] in tuned]
    assert not [x for x in after if x[0] == "score" and (x[1], tuple(x[2])) in scored]
    twice = Counter(map(tuple, [x for x in before + after if x[0] == "step"]))
    if every_s == 0:
        assert sum(n - 1 for n in twice.values()) <= 1  # tuning went on from the last checkpoint
    print(
        f"killed after {len(cells)} of {len(list((out / 'cells').iterdir()))} cells and "
        f"{Counter(x[0] for x in before)}; then computed {Counter(x[0] for x in after)}"
    )


def test_two_runs_on_one_folder_at_once(place, unbroken):
    jobs = [start(place, place / "both", place / f"both{i}.log") for i in range(2)]
    for j in jobs:
        j.join()
    assert [j.exitcode for j in jobs] == [0, 0]
    assert (
        results(place / "both") == unbroken[1]
        and tables(place / "both") == unbroken[2]
        and strays(place / "both") == []
    )


YEAR_S = 365 * 86400


def test_a_clock_that_was_moved_back_changes_nothing(place, unbroken):
    """A run is killed while the clock is a year ahead, one score of it has failed; the clock is set right; the run
    goes on."""
    out, log, again = place / "clock", place / "clock.log", place / "clock-again.log"
    kill_after(
        start(place, out, log, 0, HPT_TEST_CLOCK_S=str(YEAR_S), HPT_TEST_OOM="one"), log, 67, 0
    )  # a start, 60 steps, some scores
    for p in out.rglob("*"):
        os.utime(p, (time.time() + YEAR_S,) * 2)  # the kernel's part of that clock
    s, done = Store(out), {q.name: (q.read_bytes(), q.stat().st_mtime_ns) for q in (out / "cells").iterdir()}
    assert (
        done
        and s.failures()
        and all(datetime.fromisoformat(c["meta"]["date"]).timestamp() > time.time() + YEAR_S - 3600 for c in s.cells())
    )
    assert "running" not in set(status(s).state)  # its heartbeat is from the future, and dead
    p = start(place, out, again, 0, "--retry-failed")
    p.join()
    assert p.exitcode == 0
    assert {n: ((out / "cells" / n).read_bytes(), (out / "cells" / n).stat().st_mtime_ns) for n in done} == done
    assert results(out) == unbroken[1] and tables(out) == unbroken[2]
    assert s.failures() == [] and set(status(s).state) == {"done"}
    steps = Counter(map(tuple, [x for x in noted(log) + noted(again) if x[0] == "step"]))
    assert sum(n - 1 for n in steps.values()) <= 1  # the checkpoint from the future was taken up
