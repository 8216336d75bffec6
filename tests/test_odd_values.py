"What a program may hand over by mistake: one line that says what is wrong, and never another number in silence."

import dataclasses
import os
import subprocess
import sys

import pytest
import torch

from hpt_nb import base
from hpt_nb.experiments import REGISTRY
from hpt_nb.models import LM, as_device
from hpt_nb.neighbors import stability
from hpt_nb.pez import facts, tune
from hpt_nb.scoring import evaluate, label_ids
from hpt_nb.store import InputError, config_hash
from hpt_nb.tasks import Split, Task
from hpt_nb.vocab import Vocab, common_vocab
from tiny import tiny_lm

SPLIT = Split(["a good film", "a bad film"] * 4, [1, 0] * 4)
TASK = Task("t", ". It was", (" bad", " great"), SPLIT, SPLIT, SPLIT)
EMB = [torch.eye(20), torch.eye(20)]
lm, other = tiny_lm("llama3", 0), tiny_lm("gemma3", 1)
vocab = common_vocab([lm, other])
scored = Vocab(vocab.tokens, vocab.ids, vocab.models, torch.rand(len(vocab)))
FAULTS = [(f"k {k!r}", lambda k=k: stability(EMB, k=k, h=None), "k=") for k in (0, 1.5, "8", True, float("nan"), None)]
FAULTS += [(f"h {h!r}", lambda h=h: stability(EMB, k=4, h=h), "h=") for h in (0, -1, 1.5, "x")]
FAULTS += [(f"s {s!r}", lambda s=s: scored.top(s), "requested from a vocabulary") for s in (0, 1.5, True, float("nan"))]
FAULTS += [(f"seed {s!r}", lambda s=s: vocab.sample(3, s), "seed=") for s in (2**70, float("nan"), 1.5)]
FAULTS += [
    (f"seeds {s!r}", lambda s=s: tune(lm, TASK, seeds=s, steps=1, progress=False), "need a list")
    for s in (None, 3, "01")
]
FAULTS += [
    (f"bos {b!r}", lambda b=b: LM.wrap(lm.model, lm.tokenizer, bos=b), "need 'auto', True or False")
    for b in ("yes", 1, 0, None)
]
FAULTS += [
    ("a split by name", lambda: evaluate(lm, TASK, "validation"), "need texts with their labels"),
    ("no texts", lambda: evaluate(lm, TASK, Split((), ())), "without texts"),
    ("a processor by number", lambda: as_device("cpu:1"), "leave the number out"),
]
FAULTS += [
    (f"task {k}", lambda k=k: dataclasses.replace(TASK, **k), next(iter(k)))
    for k in (dict(name=5), dict(name=""), dict(strip="yes"))
]


@pytest.mark.parametrize("name, work, says", FAULTS, ids=[f[0] for f in FAULTS])
def test_one_line(name, work, says):
    with pytest.raises(InputError) as e:
        work()
    assert says in str(e.value) and "\n" not in str(e.value) and "-1000000000" not in str(e.value)


@pytest.mark.parametrize("method", REGISTRY)
def test_no_bound_on_the_gradient_can_be_kept(method):
    "A cell with clip=inf has a name of its own."
    cfg = REGISTRY[method].config
    if not hasattr(cfg, "clip"):
        return
    free = dataclasses.replace(cfg, clip=float("inf"))
    assert facts(free)["clip"] == "inf" and config_hash(facts(free)) != config_hash(facts(cfg))


def test_a_template_that_is_unknown_is_said(monkeypatch, capsys):
    monkeypatch.setattr(base, "_SAID", {})
    label_ids(
        tiny_lm("llama", 0, tokenizer="wordpiece", name="wp"),
        dataclasses.replace(TASK, suffix=" \u2603", labels=("bad", "great")),
    )
    assert "wp reads the template" in capsys.readouterr().err
    label_ids(lm, TASK)
    assert "template" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "given, want", [({}, "10000"), (dict(GOMP_SPINCOUNT="7"), "7"), (dict(OMP_WAIT_POLICY="ACTIVE"), None)]
)
def test_idle_threads_spin_shortly_and_a_user_s_choice_stands(given, want):
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} | given
    out = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, os, hpt_nb; assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'))",
        ],
        env=env,
        capture_output=True,
        text=True,
    )
    assert out.stdout.strip() == str(want), out.stderr
