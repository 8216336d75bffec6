"PEZ on tiny models of several architectures: invariants of the search, company, checkpoints, kill -9."
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hpt_nb import scoring
from hpt_nb.pez import PezConfig, RunSpec, SearchSpace, _Pass, batch_at, tune, tune_runs
from hpt_nb.scoring import text_ids
from hpt_nb.store import InputError
from hpt_nb.tasks import Split, Task
from tiny import tiny_lm

ALLOWED = torch.arange(20, 120)


def toy_task(n=24):
    texts = [("good film " if i % 2 else "bad plot ") + str(i) for i in range(3 * n)]
    split = lambda k: Split(tuple(texts[k * n:(k + 1) * n]), tuple(i % 2 for i in range(k * n, (k + 1) * n)))
    return Task("toy", ". It was", (" bad", " great"), split(0), split(1), split(2))


CFG = PezConfig(n_tokens=4, steps=12, batch=4, eval_every=4, holdout_n=8)



# 64: alone, a run's rows carry the prefix; in company they share it
@pytest.mark.parametrize("arch,joined", [*((a, 512) for a in ("gpt2", "opt-proj", "gemma3", "llama", "neox")), ("gpt2", 64), ("gemma3", 64)])
def test_a_run_is_the_same_alone_and_in_company(arch, joined, monkeypatch):
    monkeypatch.setitem(scoring.JOINED_TOKENS, "cpu", joined)
    lm, task = tiny_lm(arch), toy_task()
    lengths = list(map(len, text_ids(lm, task, task.train.texts)))
    if joined == 64: assert CFG.batch*max(lengths) <= 64 < 3*CFG.batch*min(lengths) <= 3*CFG.batch*max(lengths) <= 512
    specs = [RunSpec(SearchSpace(lm, ALLOWED), "pez", 0), RunSpec(SearchSpace(lm, range(40, 90)), "pez-reprojected", 1), RunSpec(SearchSpace(lm), "pez", 2)]
    together = tune_runs(lm, task, specs, CFG, progress=False)
    for spec, run in zip(specs, together):
        alone, = tune_runs(lm, task, [spec], CFG, progress=False)
        assert (alone.prompt_ids, alone.curve["holdout"]) == (run.prompt_ids, run.curve["holdout"])


@pytest.mark.parametrize("method", ["pez", "pez-reprojected"])
def test_every_id_is_allowed_at_every_step(method):
    lm, allowed = tiny_lm("llama"), set(ALLOWED.tolist())
    p = _Pass(lm, toy_task(), [RunSpec(SearchSpace(lm, ALLOWED), method, 0)], CFG)
    for _ in range(6):
        ids = p.project()
        assert set(ids.flatten().tolist()) <= allowed
        p.advance()
        if method == "pez-reprojected":                     # the stored iterate is an embedding
            rows = lm.embeddings[p.project()[0]].float()
            assert torch.equal(p.params[0].data, rows)


def test_seeds_differ_by_their_data_order_and_random_starts():
    lm = tiny_lm("llama")
    a, b = tune(lm, toy_task(), ALLOWED, steps=8, seeds=[0, 1], n_tokens=4, batch=4, eval_every=4, holdout_n=8, init="random", progress=False)
    assert a.prompt_ids != b.prompt_ids or a.curve != b.curve


@pytest.mark.parametrize("seed", [-2**63, 20250101, 2**63 - 1])
def test_a_seed_of_63_bits_is_a_seed(seed):
    from hpt_nb.swaps import _draws
    assert sorted(batch_at(6, 6, seed, 0)) == list(range(6)) and _draws(seed, 3).initial_seed() is not None
    assert batch_at(1000, 8, seed, 0) != batch_at(1000, 8, seed - 1, 0)


def test_bad_configurations_are_one_line():
    lm, task = tiny_lm("llama"), toy_task()
    for make in (lambda: PezConfig(batch=0), lambda: PezConfig(lr=-1.), lambda: PezConfig(init="magic"), lambda: tune(lm, task, ALLOWED, "pes", steps=1),
                 lambda: SearchSpace(lm, [len(lm.embeddings)]), lambda: tune(lm, task, torch.empty(0), steps=1)):
        with pytest.raises(InputError) as e: make()
        assert "\n" not in str(e.value)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    lm = tiny_lm("llama")
    ckpt = tmp_path / "c.safetensors"
    ckpt.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="delete it"): tune(lm, toy_task(), ALLOWED, steps=2, n_tokens=4, batch=4, progress=False, checkpoint=ckpt)


SCRIPT = """
import sys, time; sys.path.insert(0, {tests!r})
from test_pez import *
lm = tiny_lm("llama")
def slow(step): time.sleep(.05); print(step, flush=True)
runs = tune_runs(lm, toy_task(), [RunSpec(SearchSpace(lm, ALLOWED), "pez", s) for s in (0, 1)], CFG, progress=False, checkpoint={ckpt!r}, every_s=0, on_step=slow)
print("END", [(r.prompt_ids, r.curve) for r in runs], flush=True)
"""


def test_kill_9_in_the_middle_changes_nothing(tmp_path):
    lm, task = tiny_lm("llama"), toy_task()
    want = [(r.prompt_ids, r.curve) for r in tune_runs(lm, task, [RunSpec(SearchSpace(lm, ALLOWED), "pez", s) for s in (0, 1)], CFG, progress=False)]
    ckpt = tmp_path / "pass.safetensors"
    code = SCRIPT.format(tests=str(Path(__file__).parent), ckpt=str(ckpt))
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    for line in first.stdout:
        if line.strip() == "7": break
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert ckpt.exists()
    again = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    assert int(again[0]) >= 7                               # it went on, not anew
    assert again[-1] == f"END {want}"
