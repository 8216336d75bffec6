"Runs that note what they compute, for tests that kill them."

import json
import os
import time
from dataclasses import replace
from pathlib import Path


def watch(log, every_s=60):
    "Have this process note in `log` what it computes: tuning steps by source, and the scored prompts. Checkpoints are written every `every_s` seconds."
    from hpt_nb import experiments, pez

    tune, score = pez.tune_runs, experiments.Scoring.results

    def note(*what):
        with open(log, "a") as f:
            f.write(json.dumps(what) + "\n")

    def tune_runs(lm, task, specs, cfg, *a, on_step=None, **k):
        def step(i):
            note("step", lm.name, i)
            on_step(i)

        return tune(lm, task, specs, cfg, *a, on_step=step, every_s=every_s, **k)

    def results(self, prompts):
        if os.environ.get("HPT_TEST_OOM") == self.lm.name and not all(map(len, prompts)):
            raise MemoryError("no room")
        got = score(self, prompts)
        for ids in prompts:
            note("score", self.lm.name, list(ids))
        return got

    if "HPT_TEST_CLOCK_S" in os.environ:
        move_clock(float(os.environ["HPT_TEST_CLOCK_S"]))
    experiments.REGISTRY.update(
        {m: replace(x, run=tune_runs) for m, x in experiments.REGISTRY.items() if x.run is tune}
    )
    experiments.Scoring.results = results
    note("begin", os.getpid())


def move_clock(seconds):
    "Have this process read a clock that is ahead by so much."
    from datetime import timedelta
    from types import SimpleNamespace
    from hpt_nb import store

    right, now = store.datetime, time.time
    store.datetime = SimpleNamespace(now=lambda tz: right.now(tz) + timedelta(seconds=seconds))
    time.time = lambda: now() + seconds


def watch_worker():
    "The same in a Ray worker, as its environment says."
    watch(os.environ["HPT_TEST_LOG"], float(os.environ["HPT_TEST_EVERY"]))


def noted(log):
    log = Path(log)
    return (
        [json.loads(line) for line in log.read_text().splitlines(True) if line.endswith("\n")] if log.exists() else []
    )


def wait_for(p, log, n, jitter_s):
    "Wait until a moment after the run has noted its `n`-th piece of work, or has ended."
    while p.is_alive() and len(noted(log)) < n:
        time.sleep(0.002)
    time.sleep(jitter_s)
