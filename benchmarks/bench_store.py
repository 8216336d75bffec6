"""How long a results folder of many cells takes to write, to read with every check, and to sum up.

    python benchmarks/bench_store.py --cells 10000 --out benchmarks/results/store.json

Cells are as large as those of a prompt scored on SST-2's validation split (872 predictions and labels). Reading is
timed with the files in memory (they were just written); writing is mostly the disk's time to flush.
"""

import argparse
import json
import statistics
import tempfile
import time

from hpt_nb.store import Store, provenance, status, write_atomic


def config(i):
    return dict(
        task="sst2",
        source=f"model-{i % 7}",
        counterpart=None,
        row="PEZ",
        seed=i,
        target=f"model-{i % 5}",
        mode="text",
        prompt_ids=list(range(10)),
    )


def seconds(work, repeats=5):
    "Median over `repeats` calls."
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def measure(n, folder):
    store, meta = Store(folder), provenance("cpu", "float32", [0], 1.0)
    result = dict(
        correct=600,
        n=872,
        predictions="01" * 436,
        labels="0110" * 218,
        wall_s=1.0,
        prompt_text=" a prompt of ten words or so, as text",
    )
    plan_s = seconds(
        lambda: store.plan([("eval", {k: v for k, v in config(i).items() if k != "prompt_ids"}) for i in range(n)]), 1
    )
    write_s = seconds(lambda: [store.put("eval", config(i), result, meta) for i in range(n)], 1)
    read_s = seconds(lambda: store.cells("eval"))
    get_s = seconds(lambda: [store.get("eval", config(i)) for i in range(0, n, max(1, n // 100))]) / min(n, 100)
    return dict(
        cells=n,
        write_s=round(write_s, 3),
        read_s=round(read_s, 3),
        read_1000_s=round(1000 * read_s / n, 3),
        one_get_ms=round(1000 * get_s, 3),
        plan_s=round(plan_s, 3),
        status_s=round(seconds(lambda: status(store), 1), 3),
    )


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--cells", type=int, default=10000)
    p.add_argument("--out")
    a = p.parse_args()
    rows = []
    for n in (1000, a.cells):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(n, folder))
        print(rows[-1], flush=True)
    if a.out:
        write_atomic(a.out, json.dumps(dict(rows=rows, meta=provenance("cpu")), indent=1) + "\n")
