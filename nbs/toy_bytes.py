"Toy models that a chapter's cells run: random weights, a vocabulary of single bytes. For the notebooks, not for users."

from types import SimpleNamespace

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hpt_nb.models import LM

SIZES = dict(
    vocab_size=256,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
)


def bytes_tokenizer(more=(), merges=(), **special):
    "One token for each of the 256 bytes, then those of `more`, then one for each pair of tokens in `merges`."
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *more, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(tokens)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def sharpened(model, times=4.0):
    "A model whose matrices are `times` as large: sharper attention, so that mistakes in the mask show."
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(times)
    return model


def toy_lm(seed=0, name="toy", merges=(), **sizes):
    "A model of two layers that reads single bytes, and the pairs of them in `merges`."
    torch.manual_seed(seed)
    sizes = {**SIZES, "vocab_size": SIZES["vocab_size"] + len(merges), **sizes}
    model = LlamaForCausalLM(LlamaConfig(**sizes)).eval().requires_grad_(False)
    return LM.wrap(sharpened(model), bytes_tokenizer(merges=merges), name=name)


def toy_bos_lm(seed=0, bos="auto"):
    "The same with one token more, which stands for the beginning of a text where it is asked for."
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**SIZES, "vocab_size": 257})).eval()
    return LM.wrap(sharpened(model), bytes_tokenizer(["<s>"], bos_token="<s>"), name="toy", bos=bos)


toy_task = SimpleNamespace(suffix=". It was", labels=("negative", "positive"), max_text_tokens=32, strip=True)
