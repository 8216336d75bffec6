"Toys that several chapters share: a tokenizer to check by eye, and random models of two layers. Not in the package."

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from hpt_nb.tokens import byte_alphabet


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
