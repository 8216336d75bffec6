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


def read_bytes(name, seed, merges=()):
    "A random model of two layers, its matrices four times as large, over the bytes and tokens of two letters."
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [tuple(m) for m in merges]
    tokenizer = Tokenizer(tm.BPE({c: i for i, c in enumerate(alphabet + ["".join(m) for m in pairs])}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(seed)
    cfg = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    model = LlamaForCausalLM(LlamaConfig(**cfg, vocab_size=256 + len(pairs), max_position_embeddings=512)).eval()
    model.requires_grad_(False)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4.0 if p.ndim > 1 else 1.0)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    return LM.wrap(model, wrapped, name=name, info=dict(kind="toy", sha256=f"{seed:064d}"))
