"""What a chat template costs: PEZ steps on the same texts, plain and inside a model's own chat template, in turn.

    python benchmarks/bench_chat.py --task sst2.toml --out benchmarks/results/chat.json

A template puts the same ids before every text, its head; they are read once for all. Its end stands after each text.
The form "chat head alone" leaves the end out. Seconds belong to the machine; the ratio is what to read.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace

from hpt_nb.models import load_lm
from hpt_nb.pez import PezConfig, PezPass, RunSpec, SearchSpace
from hpt_nb.places import chat_frame
from hpt_nb.store import provenance, write_atomic
from hpt_nb.tasks import load_task


def passes(lm, task, batch):
    "name -> one PEZ run on the same texts, in each form."
    head = chat_frame(lm.tokenizer)[0]
    forms = {
        "plain": {},
        "chat head alone": dict(control=True, prompt_at=head + "{prompt}{text}"),
        "chat": dict(chat=True),
        "chat, between": dict(chat=True, prompt_at="between"),
    }
    cfg = PezConfig(batch=batch, holdout_n=16, steps=10**6, eval_every=10**6)
    runs = [RunSpec(SearchSpace(lm), "pez", 0)]
    return {name: PezPass(lm, replace(task, **change), runs, cfg) for name, change in forms.items()}


def timed(p):
    "(wall, processor) seconds of a step."
    began, cpu = time.perf_counter(), time.process_time()
    p.advance()
    return time.perf_counter() - began, time.process_time() - cpu


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--models", nargs="+", default=["smollm2-135m"])
    ask.add_argument("--task", required=True)
    ask.add_argument("--batch", type=int, default=16)
    ask.add_argument("--steps", type=int, default=15)
    ask.add_argument("--dtype", default="bfloat16")
    ask.add_argument("--out")
    a = ask.parse_args()
    task, found, began = load_task(a.task), {}, time.perf_counter()
    for name in a.models:
        every = passes(load_lm(name, dtype=a.dtype, device="cpu"), task, a.batch)
        for p in every.values():
            p.advance()  # not counted
        took = {form: [] for form in every}
        for _ in range(a.steps):
            for form, p in every.items():
                took[form].append(timed(p))
        found[name] = {
            form: dict(zip(("wall_s", "cpu_s"), map(statistics.median, zip(*pairs)))) for form, pairs in took.items()
        }
        for form, of in found[name].items():
            ratio = of["cpu_s"] / found[name]["plain"]["cpu_s"]
            print(f"{name}, {form}: {of['wall_s']:.2f} s wall, {of['cpu_s']:.2f} s processor, {ratio:.2f} times plain")
    config = dict(task=task.name, models=a.models, batch=a.batch, steps=a.steps)
    meta = provenance("cpu", a.dtype, [0], round(time.perf_counter() - began, 1))
    if a.out:
        write_atomic(a.out, json.dumps(dict(config=config, found=found, meta=meta), indent=1) + "\n")


if __name__ == "__main__":
    main()
