"Stored cells are found by their configuration: what identifies a cell, and which cells a preset plans, stays as it is."

import hashlib
import json
from types import SimpleNamespace

import pytest
import torch

from hpt_nb.cells import eval_config, reading_config, tune_config, vocab_config
from hpt_nb.left_out import left_out_config
from hpt_nb.parsing import load_preset, presets
from hpt_nb.plan import plan_units
from hpt_nb.pool import Models
from hpt_nb.presets import Arm, Preset, VocabConfig, variations
from hpt_nb.registry import method_config
from hpt_nb.store import config_hash
from hpt_nb.tasks import Split, Task
from hpt_nb.vocab import Vocab

PLANNED = {  # preset/level -> number of planned cells, digest of their hashes; another digest is another experiment
    "appendix/as-given": (19, "29d5f0b6f7dcdf13"),
    "appendix/h-8192": (19, "6a90064d753b54e5"),
    "appendix/h-8192-include_self-false": (19, "5c3b32a565c7e012"),
    "appendix/h-8192-repeats-1": (19, "dec48aae05c09333"),
    "appendix/h-8192-repeats-10": (19, "72e41a94b3559b88"),
    "appendix/k-16": (19, "e2a543d0be68c4a0"),
    "appendix/k-256": (19, "1b353426b0c3864f"),
    "appendix/s-1024": (19, "29d5f0b6f7dcdf13"),
    "appendix/s-32768": (19, "29d5f0b6f7dcdf13"),
    "methods-cpu/": (1309, "3e8f1e37d020e323"),
    "methods/": (2165, "e3ec88e89ce1978f"),
    "offline/": (97, "1fb4ec7973af8662"),
    "paper/": (2775, "79a26872ff983723"),
    "small/": (1365, "e80575c220a9d33e"),
    "study-agnews/": (531, "366239877f326d98"),
    "study-check/": (15, "6523e9ce10d894c5"),
    "study-far-5000/": (421, "427d99d168eaee44"),
    "study-far/": (331, "fdc3080a4c9147ed"),
    "study-joint/": (196, "5bde65b0cd78e06d"),
    "study-main/": (1362, "30f1580b40c8e405"),
    "study-objective/": (241, "fd9b8286241a6f99"),
    "study-released/": (241, "65d2367c93f20630"),
}
HASHES = {  # by the code that the stored results were made with
    "pez": "707a6e728cf9",
    "drawn": "8158b6c7c4e6",
    "gcg": "034a3adf1a9a",
    "soft": "69cb08a9a40d",
    "rlprompt": "1f6779649e05",
    "joint": "b97651eaca21",
    "swaps": "c067edd3d1dd",
    "compiled": "4434030830e6",
    "arm": "d47f04d670f7",
    "score": "a9d7efcc64d5",
    "held": "f2f5909e427e",
    "reading": "a15536f5db24",
    "left_out": "fa10c96e232d",
    "vocab": "3c68b06750f1",
    "sampled": "0df98bf7067e",
}


def planned(preset, split):
    models = Models(load=lambda name, dtype: SimpleNamespace(name=name.rpartition("/")[2]))
    tasks = {name: SimpleNamespace(name=name) for name in preset.tasks}
    units = plan_units(preset, tasks, models, split)
    hashes = sorted({config_hash(dict(kind=kind, **part)) for u in units for kind, part in u.pieces})
    return len(hashes), hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", presets())
def test_a_preset_plans_the_cells_that_it_always_planned(name):
    "Whatever the number of seeds in a pass."
    levels = variations(load_preset(name))
    assert {f"{name}/{level}" for level in levels} == {k for k in PLANNED if k.startswith(f"{name}/")}
    for level, preset in levels.items():
        for split in (0, 2):
            assert planned(preset, split) == PLANNED[f"{name}/{level}"], level


def test_a_cell_has_the_identity_that_it_always_had():
    texts = Split(("a", "b"), (0, 1))
    task = Task("letters", " =", ("n", "p"), texts, texts, texts)
    model = SimpleNamespace(name="m", info=dict(sha256="f" * 64), bos_ids=[], dtype=torch.float32)
    vocab = Vocab(["a", "b", "c"], torch.tensor([[0, 1, 2]]), ["m"])
    prompt = dict(source="m", counterpart="n", row="Ours", seed=1, steps=9, method="pez")

    def tuned(method, row="PEZ", **kw):
        return tune_config(method, task, model, None, row, 3, vocab, method_config(method)[1], "float32", **kw)

    def score(**kw):
        return eval_config(Preset("p", (), (), **kw), task, 2, prompt, model, "transfer", "text", [1, 2])

    made = dict(
        pez=tuned("pez"),
        drawn=tuned("pez", "PEZ-pruned"),
        gcg=tuned("gcg"),
        soft=tuned("soft"),
        rlprompt=tuned("rlprompt"),
        joint=tuned("joint", "Ours", second=model),
        swaps=tuned("joint-swaps", "Ours", second=model),
        compiled=tuned("pez", compiled=True),
        arm=tuned("pez", "Mine", arm=Arm("CommonVocab-pruned", dict(s=0))),
        score=score(),
        held=score(holdout=4),
        reading=reading_config(prompt, task, model, "original", [1, 2]),
        left_out=left_out_config(task, texts, prompt | dict(prompt_ids=[1, 2]), model),
        vocab=vocab_config(VocabConfig(), ["b", "a"]),
        sampled=vocab_config(VocabConfig(h=8, tokens="words"), ["b", "a"]),
    )
    assert {k: config_hash(config) for k, config in made.items()} == HASHES
