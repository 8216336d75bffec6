"""The Ray engine on a real Ray with several workers: the same results as the local one, and nothing finished lost
when a driver or a worker is killed.

`HPT_KILLS=20` kills that often; the default is one, for continuous integration: a run on Ray takes most of a minute."""

import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from hpt_nb.cli import main
from hpt_nb.store import Store, status
from test_faults import CTX, tables
from tiny_run import PRESET, make_place, results
from watched import noted, wait_for, watch

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("HPT_KILLS", 1))
HERE = Path(__file__).parent
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None and "CI" not in os.environ, reason="Ray is not installed"
)

ROWS = 'rows = ["Empty", "PEZ", "Ours"]\nseeds'
CLUSTER = """
import logging, os, sys
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray
from hpt_nb.cluster import start_here
quiet = dict(include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
where = dict(object_store_memory=100*2**20, _node_ip_address="127.0.0.1", _temp_dir=sys.argv[1])
start_here(ray, num_cpus=2, **quiet, **where)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("engines"), PRESET.replace("seeds", ROWS))


@pytest.fixture(scope="module")
def cluster():
    "The address of a Ray of this test's own; it ends with the process that holds it."
    import tempfile

    with tempfile.TemporaryDirectory(
        prefix="hpt-test-", dir="/tmp" if os.path.isdir("/tmp") else None, ignore_cleanup_errors=True
    ) as tmp:
        p = subprocess.Popen(
            [sys.executable, "-c", CLUSTER, tmp], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        address = p.stdout.readline().strip()
        assert address, "Ray did not start: is this machine too busy?"
        yield address
        p.stdin.close()
        p.wait(60)


def _run(place, out, log, every_s, address, argv, env):
    "`hpt run` on a Ray whose workers note in `log` what they compute; with no address, on one of its own."
    os.chdir(place)
    os.environ.update(env, HPT_TEST_LOG=str(log), HPT_TEST_EVERY=str(every_s), RAY_USAGE_STATS_ENABLED="0")
    if address:
        os.environ.update(RAY_ADDRESS=address, RAY_AUTH_MODE="token")  # Ray reads the second when it is imported
    import torch

    torch.set_num_threads(1)
    if "ray" in argv:
        import ray

        init, seen = ray.init, dict(worker_process_setup_hook="watched.watch_worker")

        def hooked(*a, runtime_env=None, **k):
            given = (runtime_env or {}).get("env_vars", {})
            path = os.pathsep.join([str(HERE), str(HERE.parent)])  # the workers run this tree, too
            return init(*a, runtime_env=seen | dict(env_vars=given | dict(PYTHONPATH=path)), **k)

        ray.init = hooked
    else:
        watch(log, every_s)
    with open(os.devnull, "w") as sys.stdout, open(f"{log}.err", "w") as sys.stderr:
        sys.exit(main(["run", "preset.toml", "--out", str(out), "--quiet", *argv]))


def start(place, out, log, every_s=60, address=None, argv=("--engine", "ray"), **env):
    p = CTX.Process(target=_run, args=(place, out, log, every_s, address, argv, env))
    p.start()
    return p


def finish(p, log, codes=(0,)):
    p.join(300)
    assert p.exitcode in codes, Path(f"{log}.err").read_text()
    return Path(f"{log}.err").read_text()


def pids(log):
    return [x[1] for x in noted(log) if x[0] == "begin"]


def gone(pid, within_s=60):
    "Has a process ended, within some seconds?"
    for _ in range(within_s * 20):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def local(place):
    "(results, tables) of the local engine."
    p = start(place, place / "local", place / "local.log", argv=())
    finish(p, place / "local.log")
    return results(place / "local"), tables(place / "local")


@pytest.fixture(scope="module")
def on_ray(place, cluster):
    "Notes of a run on Ray that nobody disturbed."
    log = place / "ray.log"
    finish(start(place, place / "ray", log, address=cluster), log)
    return noted(log)


@needs_ray
def test_ray_gives_what_local_gives(place, local, on_ray):
    "Every cell, prompt, prediction and table; two passes went to two workers; nothing was computed twice."
    assert results(place / "ray") == local[0] and tables(place / "ray") == local[1]

    def made(folder):
        return {
            c["hash"]: (c["kind"], c["config"], {k: v for k, v in c["result"].items() if k != "wall_s"})
            for c in Store(place / folder).cells()
        }

    assert made("ray") == made("local")
    assert set(status(Store(place / "ray")).state) == {"done"}
    assert sum(x[0] == "begin" for x in on_ray) >= 2
    assert max(Counter(map(tuple, [x for x in on_ray if x[0] == "step"])).values()) == 1
    assert not list((place / "ray" / "running").iterdir()) and not list(
        (place / "ray" / "checkpoints").glob("*.safetensors")
    )


@needs_ray
@pytest.mark.parametrize("i", range(KILLS))
def test_a_killed_driver_or_worker_loses_nothing(place, cluster, local, on_ray, i):
    rng, out, log, again = random.Random(i), place / f"cut{i}", place / f"cut{i}.log", place / f"again{i}.log"
    every_s, whose = 60 * (i // 2 % 2), ("driver", "worker")[i % 2]
    p = start(place, out, log, every_s, cluster)
    wait_for(p, log, 3 + int((len(on_ray) - 3) * (i + rng.random()) / KILLS), rng.uniform(0, 0.1))
    if whose == "driver":
        p.kill()
        p.join()
        assert all(map(gone, pids(log)))  # Ray ends its workers
    else:
        for pid in [rng.choice(pids(log))]:
            with suppress(ProcessLookupError):  # it had ended by itself
                os.kill(pid, signal.SIGKILL)
        said = finish(p, log, (0, 2))  # the driver goes on with the other units
        lost = Store(out).failures()
        assert bool(lost) == bool(said.strip()) and all("its worker died" in f["reason"] for f in lost)
        assert set(status(Store(out)).state) <= {"done", "failed"}
    done = {q.name: (q.read_bytes(), q.stat().st_mtime_ns) for q in (out / "cells").glob("*.json")}
    cells = Store(out).cells() if out.exists() else []  # whole, every one of them
    finish(start(place, out, again, every_s, cluster, ("--engine", "ray", "--retry-failed")), again)
    assert {n: ((out / "cells" / n).read_bytes(), (out / "cells" / n).stat().st_mtime_ns) for n in done} == done
    assert results(out) == local[0] and tables(out) == local[1] and Store(out).failures() == []
    after = noted(again)
    tuned = {c["config"]["source"] for c in cells if c["kind"] == "tune"}
    assert not [x for x in after if x[0] == "step" and x[1] in tuned]

    def scored(cells):
        return Counter((c["config"]["target"], tuple(c["config"]["prompt_ids"])) for c in cells if c["kind"] == "eval")

    missing = scored(Store(out).cells()) - scored(cells)
    assert not [x for x in after if x[0] == "score" and (x[1], tuple(x[2])) not in missing]
    print(
        f"killed the {whose} after {len(cells)} of {len(list((out / 'cells').iterdir()))} cells; "
        f"then computed {Counter(x[0] for x in after)}"
    )


@needs_ray
def test_what_fails_does_not_stop_the_others(place, cluster, local):
    "One model will not load, one score finds no memory."
    shutil.copytree(place / "two", place / "three")
    weights = next((place / "three").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])
    whole = (place / "preset.toml").read_text()
    (place / "preset.toml").write_text(whole.replace('targets = ["./two"]', 'targets = ["./two", "./three"]'))
    out, log = place / "odd", place / "odd.log"
    try:
        said = finish(start(place, out, log, address=cluster, HPT_TEST_OOM="two"), log, (2,))
    finally:
        (place / "preset.toml").write_text(whole)
    assert said.count("\n") == 1 and "pieces failed" in said
    failed = Store(out).failures()
    of = {model: [f for f in failed if f["config"]["target"] == model] for model in ("two", "three")}
    assert len(failed) == len(of["two"]) + len(of["three"]) and all(
        "cannot be loaded" in f["reason"] for f in of["three"]
    )
    assert {(f["config"]["row"], f["reason"]) for f in of["two"]} == {("Empty", "MemoryError: no room")}
    got = results(out)
    assert len(got) == len(local[0]) - len(of["two"]) and all(local[0][k] == v for k, v in got.items())
    finish(start(place, out, log, address=cluster, argv=("--engine", "ray", "--retry-failed")), log, (0, 2))
    assert results(out) == local[0]


@needs_ray
def test_its_own_ray_ends_with_the_driver_and_the_local_engine_goes_on(place, local):
    out, log = place / "own", place / "own.log"
    p = start(place, out, log, 0)
    wait_for(p, log, 8, 0)
    assert p.is_alive() and pids(log), Path(f"{log}.err").read_text()
    ours = [
        int(q.name) for q in Path("/proc").iterdir() if q.name.isdigit() and f"hpt-ray-{p.pid}-".encode() in _cmdline(q)
    ]
    p.kill()
    p.join()
    assert ours and all(map(gone, ours + pids(log)))
    finish(start(place, out, place / "then.log", argv=()), place / "then.log")
    assert results(out) == local[0] and tables(out) == local[1]


def _cmdline(q):
    try:
        return (q / "cmdline").read_bytes()
    except OSError:
        return b""


def test_without_ray_one_line_says_what_to_install(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["run", "preset.toml", "--out", "none", "--engine", "ray"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "pip install ray," in err and not Path("none").exists()


@pytest.mark.parametrize("script", sorted((HERE.parent / "examples").glob("*.sh")), ids=lambda p: p.name)
def test_job_scripts_are_whole_and_name_options_that_exist(script):
    from hpt_nb.cli import parser

    subprocess.run(["bash", "-n", str(script)], check=True)
    line = script.read_text().replace("\\\n", " ").split("-- ")[-1]
    argv = line.replace('"${1:-paper}"', "paper").replace('"${2:-runs/paper}"', "runs/paper").split()[1:]
    assert argv[0] == "run" and parser().parse_args(argv).engine == "ray"
