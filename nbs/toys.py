"Toys that several chapters share. No part of the package."

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hpt_nb.models import LM
from hpt_nb.tasks import Split, Task

WORDS = (("Ġ", "n"), ("Ġ", "p"))  # " n" and " p", the label words of `letters_task`, are tokens of their own


def word_lm(name="toy", seed=0, merges=WORDS):
    "A random model of one layer that reads bytes and some pairs of them."
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {c: i for i, c in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(ids, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    return LM.wrap(LlamaForCausalLM(config).eval(), PreTrainedTokenizerFast(tokenizer_object=tokenizer), name=name)


def letters(part, n=12):
    "Texts of a split: of a's, which are right for the second label, and of b's."
    return Split([f"{'aaa' if i % 2 else 'bbb'} {part} {i}" for i in range(n)], [i % 2 for i in range(n)])


def letters_task(n=12, validation=None, **more):
    "A task of such texts, `n` of them in each split."
    return Task("toy", " =", (" n", " p"), letters("t", n), letters("h", n), letters("v", validation or n), **more)
