"""What it costs, and what it saves, to let idle threads sleep: tuning steps on an idle machine and beside a busy
loop on each core.

    python benchmarks/bench_wait.py --task sst2.toml --out benchmarks/results/wait.json

Between two parallel pieces of work libgomp's threads spin, which is quick on an idle machine and takes the cores
from everybody else on a busy one. `OMP_WAIT_POLICY=PASSIVE` lets them sleep at once; `GOMP_SPINCOUNT` says how many
times round they spin first. Each setting is timed in a process of its own, in turn, several times over; the estimate
is what `hpt run --dry-run` would have said in the same minute.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

WAYS = {
    "as libgomp has it": {},
    "PASSIVE": dict(OMP_WAIT_POLICY="PASSIVE"),
    **{f"spin {n:,}": dict(GOMP_SPINCOUNT=str(n)) for n in (1_000, 3_000, 10_000, 30_000, 100_000)},
}


def child(task, model, runs, steps):
    "Median seconds of a step, and what the plan would have said of it."
    import torch  # before hpt_nb, which would choose for itself
    from hpt_nb.experiments import SHARE, count_weights, product_rate
    from hpt_nb.models import load_lm
    from hpt_nb.pez import PezConfig, RunSpec, SearchSpace, PezPass, fast_dtype
    from hpt_nb.tasks import load_task

    dtype = str(fast_dtype()).removeprefix("torch.")
    lm, task = load_lm(model, dtype=dtype), load_task(task)
    p = PezPass(
        lm,
        task,
        [RunSpec(SearchSpace(lm), "pez", seed) for seed in range(runs)],
        PezConfig(steps=10**6, eval_every=10**6, holdout_n=16),
    )
    p.advance()
    rate, before, took = product_rate(dtype), (p.scorer.tokens, p.scorer.grad_tokens), []
    for _ in range(steps):
        began = time.perf_counter()
        p.advance()
        took.append(time.perf_counter() - began)
    tokens = (p.scorer.tokens - before[0] + p.scorer.grad_tokens - before[1]) / steps
    planned = 2 * count_weights(lm.model)[0] * tokens / (rate * SHARE["tune"])
    print(
        json.dumps(
            dict(
                step_s=statistics.median(took),
                mean_s=statistics.mean(took),
                planned_s=planned,
                rate=rate,
                dtype=dtype,
                threads=torch.get_num_threads(),
            )
        )
    )


def write(args, found, cores):
    from hpt_nb.store import provenance, write_atomic

    config = dict(
        model=args.model,
        task=os.path.basename(args.task).removesuffix(".toml"),
        runs=args.runs,
        steps=args.steps,
        ways={w: WAYS[w] for w in args.ways},
        loops=cores,
    )
    write_atomic(
        args.out,
        json.dumps(
            dict(config=config, found=found, meta=provenance("cpu", found["idle"][args.ways[0]][0]["dtype"])), indent=1
        )
        + "\n",
    )


def once(way, args):
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} | WAYS[way]
    out = subprocess.run(
        [
            sys.executable,
            __file__,
            "--child",
            "--task",
            args.task,
            "--model",
            args.model,
            "--runs",
            str(args.runs),
            "--steps",
            str(args.steps),
        ],
        env=env,
        capture_output=True,
        text=True,
    )
    if out.returncode:
        raise RuntimeError(out.stderr)
    return json.loads(out.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--child", action="store_true")
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.child:
        return child(args.task, args.model, args.runs, args.steps)
    found, cores = {}, len(os.sched_getaffinity(0))
    for place in ("idle", "busy"):
        loops = [
            subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores if place == "busy" else 0)
        ]
        try:
            for _ in range(args.rounds):
                for way in args.ways:
                    found.setdefault(place, {}).setdefault(way, []).append(got := once(way, args))
                    print(
                        place, way, {k: round(v, 3) if isinstance(v, float) else v for k, v in got.items()}, flush=True
                    )
                if args.out:
                    write(args, found, cores)
        finally:
            for loop in loops:
                loop.kill()


if __name__ == "__main__":
    main()
