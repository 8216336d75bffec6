"""What Ray costs a sweep of many small units: the same run by `--engine local` and `--engine ray`, as whole commands
from start to exit.

    python benchmarks/bench_ray.py --seeds 100 --repeats 2 --out benchmarks/results/ray.json

Tiny random models (those of the tests) tune one seed a pass and score each prompt: with 100 seeds, 200 units of
about a second. Three ways take turns:

- `local`: one unit after another, on all processors;
- `ray, one worker`: one Ray worker that has all processors. Both do the same work with the same threads, so the
  difference is what Ray costs: its start, its end, and handing out units;
- `ray, a worker a processor`: what `--engine ray` does by itself; here the units share the machine instead of the
  threads of one.

Every way starts from an empty results folder. With the same threads, everything that was computed must be equal, or
this stops; one thread in place of two adds in another order, so there the share of equal cells is reported.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import pandas as pd
import tiny_run

from hpt_nb.store import Store, provenance, write_atomic

PRESET = """name = "sweep"
tasks = ["mine.toml"]
rows = ["PEZ"]
seeds = SEEDS
[[source]]
model = "./one"
counterparts = ["./two"]
targets = []
[tuning]
steps = STEPS
batch = 16
n_tokens = 10
eval_every = STEPS
holdout_n = 16
dtype = "float32"
"""
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
WAYS = {
    "local": ["--engine", "local"],
    "ray, one worker": ["--engine", "ray", "--cpus", str(CPUS)],
    "ray, a worker a processor": ["--engine", "ray", "--cpus", "1"],
}


def make_place(folder, seeds, steps, texts):
    "Two tiny models, a task and a preset, in `folder`."
    tiny_run.make_place(folder, PRESET.replace("SEEDS", str(list(range(seeds)))).replace("STEPS", str(steps)))
    rows = [(f"{tiny_run.GOOD if i % 2 else tiny_run.BAD} dev {i}", i % 2) for i in range(texts)]
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(folder / "dev.csv", index=False)


def sweep(place, way, out):
    "Seconds from the command's start to its exit."
    argv = [
        sys.executable,
        "-c",
        "import sys; from hpt_nb.cli import main; sys.exit(main(sys.argv[1:]))",
        "run",
        "preset.toml",
        "--out",
        str(out),
        "--split",
        "1",
        "--quiet",
        *WAYS[way],
    ]
    with tempfile.TemporaryFile(
        "w+"
    ) as err:  # no pipes: Ray's processes would hold them open a while after the command has ended
        began = time.perf_counter()
        code = subprocess.run(argv, cwd=place, stdout=subprocess.DEVNULL, stderr=err).returncode
        took = time.perf_counter() - began
        err.seek(0)
        if code:
            raise SystemExit(f"{way}: {err.read().strip()[-500:]}")
    return took


def made(out):
    "What a run computed: every cell's result but the time it took."
    return {c["hash"]: {k: v for k, v in c["result"].items() if k != "wall_s"} for c in Store(out).cells()}


def work(out):
    "Seconds that the cells of a run took by their own clocks."
    return sum(c["meta"]["wall_s"] for c in Store(out).cells())


def measure(a):
    times, worked, cells, same = {w: [] for w in WAYS}, {w: [] for w in WAYS}, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_place(place, a.seeds, a.steps, a.texts)
        for r in range(a.repeats):
            kept = {}
            for way in list(WAYS)[:: 1 if r % 2 else -1]:  # each order in turn
                out = place / f"{r}-{way}"
                times[way].append(sweep(place, way, out))
                worked[way].append(work(out))
                kept[way] = made(out)
                print(
                    f"{way}: {times[way][-1]:.1f} s, of which {worked[way][-1]:.1f} s of work by the cells' clocks",
                    flush=True,
                )
            if kept["ray, one worker"] != kept["local"]:
                raise SystemExit("ray with one worker gave other results than local")
            cells, same = (
                len(kept["local"]),
                sum(kept["ray, a worker a processor"].get(h) == got for h, got in kept["local"].items()),
            )
    med = {w: statistics.median(t) for w, t in times.items()}
    return dict(
        units=2 * a.seeds,
        cells=cells,
        equal_with_a_thread_each=same,
        processors=CPUS,
        seconds={w: [round(x, 2) for x in t] for w, t in times.items()},
        work_s={w: [round(x, 2) for x in t] for w, t in worked.items()},
        seconds_a_unit=round(med["local"] / (2 * a.seeds), 3),
        overhead=round(med["ray, one worker"] / med["local"] - 1, 4),
        ratio_a_worker_a_processor=round(med["ray, a worker a processor"] / med["local"], 4),
    )


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--seeds", type=int, default=100)
    p.add_argument("--steps", type=int, default=100, help="of tuning a seed")
    p.add_argument("--texts", type=int, default=2000, help="scored a prompt")
    p.add_argument("--repeats", type=int, default=2)
    p.add_argument("--out")
    a = p.parse_args()
    began, got = time.perf_counter(), measure(a)
    print({k: got[k] for k in ("units", "seconds_a_unit", "overhead", "ratio_a_worker_a_processor")})
    if a.out:
        import ray

        settings = {k: v for k, v in vars(a).items() if k != "out"}
        write_atomic(
            a.out,
            json.dumps(
                got
                | dict(
                    settings=settings,
                    ray=ray.__version__,
                    meta=provenance("cpu", "float32", [0], time.perf_counter() - began),
                ),
                indent=1,
            )
            + "\n",
        )
