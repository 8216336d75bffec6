"""Frozen models with quantised weights: a prompt's gradient comes back through them, the engine's equals the plain
pass's, and PEZ tunes on them."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, QuantoConfig, TorchAoConfig

from hpt_nb.models import LM
from hpt_nb.pez import tune
from hpt_nb.scoring import PrefixScorer
from test_scoring import LABELS, prefix_of, texts_of
from test_pez import toy_task
from tiny import tiny_lm


pytestmark = pytest.mark.slow


def int8_of_torchao():
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


FORMS = {  # library, its configuration, least cosine between the gradient and that of the unquantised model
    "torchao-int8": ("torchao", int8_of_torchao, 0.99),
    "quanto-int8": ("optimum.quanto", lambda: QuantoConfig(weights="int8"), 0.99),
    "quanto-int4": ("optimum.quanto", lambda: QuantoConfig(weights="int4"), 0.6),
    "bitsandbytes-int8": ("bitsandbytes", lambda: BitsAndBytesConfig(load_in_8bit=True), 0.99),
    "bitsandbytes-nf4": (
        "bitsandbytes",
        lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
        0.6,
    ),
}


@pytest.fixture(params=FORMS)
def quantised(request, tmp_path):
    "(unquantised LM, the same quantised, least cosine)"
    library, config, least = FORMS[request.param]
    pytest.importorskip(library, exc_type=ImportError)
    lm = tiny_lm("llama")
    lm.model.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config(), dtype=torch.float32)
    assert any(
        "quant" in type(w).__module__ + type(w).__name__.lower() or w.dtype in (torch.int8, torch.uint8)
        for w in model.parameters()
    ), "nothing was quantised"
    return lm, LM.wrap(model, lm.tokenizer, name=request.param), least


def test_a_gradient_comes_back_and_equals_the_plain_one(quantised):
    lm, small, least = quantised
    n = 8
    prefix, texts, runs, targets = (
        prefix_of(lm, 2, 10),
        texts_of(n, 300),
        [i % 2 for i in range(n)],
        [i % 3 for i in range(n)],
    )
    ask = prefix, texts, targets, runs
    loss, grad = PrefixScorer(small, LABELS).loss_and_grad(*ask)
    plain_loss, plain_grad = PrefixScorer(small, LABELS, "plain").loss_and_grad(*ask)
    assert torch.allclose(loss, plain_loss, atol=1e-4) and (grad - plain_grad).norm() <= 1e-3 * plain_grad.norm()
    _, full = PrefixScorer(lm, LABELS).loss_and_grad(*ask)
    assert torch.nn.functional.cosine_similarity(grad.flatten(), full.flatten(), 0) > least


def test_pez_tunes_on_it(quantised):
    _, small, _ = quantised
    (run,) = tune(small, toy_task(), steps=4, batch=4, eval_every=2, holdout_n=8, progress=False)
    assert (
        len(run.prompt_ids) == 10
        and run.backward_tokens > 0
        and all(0 <= i < len(small.embeddings) for i in run.prompt_ids)
    )
