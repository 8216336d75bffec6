"""A stored score, computed again from its stored prompt, is the stored count: each prediction the same. Needs the package models in the cache; nothing is fetched.

The scores of `results/offline` need the package data in the cache; those of `results/small-cpu` and `results/sst2-cpu`, on SST-2 and AG News, need their task files:

    HPT_DATA=FOLDER pytest tests/test_recompute.py      # FOLDER holds sst2.toml and ag_news.toml, as `hpt run --data` takes them
"""
import os
from functools import lru_cache
from pathlib import Path

import pytest

from hpt_nb.scoring import evaluate
from hpt_nb.store import Store, cache_dir, provenance

ROOT = Path(__file__).parent.parent
DATA = os.environ.get("HPT_DATA")


@lru_cache
def cells(folder): return Store(ROOT / "results" / folder).cells("eval")


def few():
    "Of each task: a tuned prompt by ids, one as text on its own model, one on the target, and an Empty row; the first of each in file order. The other model is scored once."
    want = [("Ours", "original", "ids"), ("PEZ", "original", "text"), ("Ours", "transfer", "text"), ("Empty", "original", "ids")]
    for folder, task in (("offline", "movie_snippets"), ("small-cpu", "sst2"), ("small-cpu", "ag_news"), ("sst2-cpu", "sst2")):
        for row, role, mode in want:
            yield folder, first(folder, task=task, target="smollm2-135m", row=row, role=role, mode=mode)
    yield "small-cpu", first("small-cpu", task="ag_news", target="gemma-3-270m", row="Ours", role="original", mode="text")


def first(folder, **config): return next(c for c in cells(folder) if all(c["config"][k] == v for k, v in config.items()))


@lru_cache
def model(name):
    if not (cache_dir() / "models").is_dir(): pytest.skip("the package models are not in the cache; make report fetches them")
    from hpt_nb.models import load_lm
    return load_lm(name, dtype="float32", device="cpu")


@lru_cache
def data(folder, task):
    from hpt_nb.tasks import load_task
    if folder == "offline":
        if not any((cache_dir() / task).glob("*")): pytest.skip("the package data are not in the cache; make report fetches them")
        return load_task(task)
    if not DATA: pytest.skip("HPT_DATA names no folder with sst2.toml and ag_news.toml")
    return load_task(Path(DATA) / f"{task}.toml")


def same_kind(meta):
    "Was a cell computed on this kind of machine? Its vector instructions count too, where the cell knows them."
    here = provenance("cpu")
    return all(meta.get(k) in (here[k], None) for k in ("cpu", "simd")) and meta["device"] == "cpu"


@pytest.mark.parametrize("folder,cell", list(few()), ids=lambda x: x if isinstance(x, str) else "{task}-{target}-{row}-{role}-{mode}".format(**x["config"]))
def test_a_stored_score_comes_out_again(folder, cell):
    config, stored = cell["config"], cell["result"]
    task, lm = data(folder, config["task"]), model(config["target"])
    assert task.hash == config["task_hash"] and config["dtype"] == "float32"
    split = task.subset("validation", config["n"], seed=0)
    if config["mode"] == "text": assert lm.encode(stored["prompt_text"]) == config["prompt_ids"]
    got = evaluate(lm, task, split, config["prompt_ids"])
    assert got["labels"] == stored["labels"]
    changed = sum(a != b for a, b in zip(got["predictions"], stored["predictions"]))
    if same_kind(cell["meta"]): assert changed == 0 and got["correct"] == stored["correct"]
    else: assert changed <= max(1, len(got["labels"]) // 50)     # another processor sums in another order: a near tie may turn
