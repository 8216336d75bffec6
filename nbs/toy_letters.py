"""Two toy models that read single bytes, and a task of letters: for the cells of the chapters on runs, not for users.

Each model has one token of two letters that the other lacks, so that what they share is less than what they have."""

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hpt_nb.models import LM
from hpt_nb.tasks import Split, Task

TOYS = {"one": (0, [("a", "b")]), "two": (1, [("c", "d")])}  # name -> seed, merges
LETTERS = [c * k for k in (1, 2, 3, 4) for c in "abcdefgh"]
SMALL = dict(vocab_size=260, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)


def bytes_lm(name, seed, merges, dtype="float32"):
    "A random model of one layer; its vocabulary is the bytes, and the merges."
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {c: i for i, c in enumerate(alphabet + ["".join(m) for m in merges])}
    tokenizer = Tokenizer(tm.BPE(tokens, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**SMALL)).eval()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="!")
    return LM.wrap(model, wrapped, name=name, info=dict(sha256=f"{seed}" * 12)).cast(getattr(torch, dtype))


def toy_lm(name, dtype="float32"):
    "One of the two, as `Models(load=toy_lm)` asks for it."
    return bytes_lm(name, *TOYS[name], dtype)


def letter_split(mark):
    "Letters, once to four times; the class is 1 where the letter is a, c, e or g."
    return Split(tuple(t + mark for t in LETTERS), tuple(int(t[0] in "aceg") for t in LETTERS))


toy_task = Task("letters", " =", ("n", "p"), letter_split("x"), letter_split("y"), letter_split("z"))
