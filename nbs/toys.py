"Toys that several chapters share: a tokenizer to check by eye, and random models of two layers. Not in the package."

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hpt_nb.tokens import byte_alphabet

WORDS = (("Ġ", "n"), ("Ġ", "p"))  # " n" and " p", the label words of `letters_task`, are tokens of their own


def toy_tokenizer(bos=False):
    "Byte-level: 256 single bytes, then two words, then four tokens added by hand."
    pieces = [*sorted(byte_alphabet(), key=byte_alphabet().get), "Ġc", "at", "Ġcat"]
    tok = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [("Ġ", "c"), ("a", "t"), ("Ġc", "at")]))
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tok.add_special_tokens(["</s>"])
    tok.add_tokens([AddedToken(t, normalized=False) for t in ("<|fim_prefix|>", "\n\n", "<unused0>")])
    if bos:
        tok.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 259)])
    return PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="</s>", eos_token="</s>")


def toy_model(kind, seed=0, **config):
    "A random two-layer model."
    torch.manual_seed(seed)
    small = dict(
        vocab_size=265,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=259,
        eos_token_id=259,
        pad_token_id=259,
    )
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**small, **config})).eval()


def toy_opt(**config):
    "A random OPT with narrow rows: 16 numbers a token, widened to 32 inside the model."
    return toy_model(
        "opt", ffn_dim=48, **{**dict(word_embed_proj_dim=16, do_layer_norm_before=False, init_std=0.2), **config}
    )


def word_lm(name="toy", seed=0, merges=WORDS):
    "A random model of one layer that reads bytes and some pairs of them."
    from hpt_nb.lm import LM

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
    from hpt_nb.tasks import Split

    return Split([f"{'aaa' if i % 2 else 'bbb'} {part} {i}" for i in range(n)], [i % 2 for i in range(n)])


def letters_task(n=12, validation=None, **more):
    "A task of such texts, `n` of them in each split."
    from hpt_nb.tasks import Task

    return Task("toy", " =", (" n", " p"), letters("t", n), letters("h", n), letters("v", validation or n), **more)
