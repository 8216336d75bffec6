"""Tiny models of every architecture, with real tokenizers trained on the spot: seeded, random weights, no file, no
network."""

import json
from functools import cache

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from hpt_nb.models import LM

WORDS = [" great", " good", " bad", " the", " was", " and", " film"]  # one token each in every kind
TEXT = [
    "The film was great and the story was good. It was a bad movie, a terrible plot and boring characters; "
    "12 people left in 1980.",
    "This is a great day for the world and for business, sports and politics. They were happy and sad; "
    'it was not so good! "Why?" he said.',
    "I like the music and I love this place. The company said it will make new technology in 2009 (about "
    "35 more). We think the team can win the game.",
    "Was it positive or negative? The good, the bad and the boring: "
    "caf\u00e9, na\u00efve, Z\u00fcrich, \u6771\u4eac, \u041c\u043e\u0441\u043a\u0432\u0430.",
    "    def great(x):",
    "        return x + 1",
    "",
] * 4 + ["x" + "".join(WORDS)] * 8


def _bpe(vocab_size, special, alphabet=(), **kw):
    suffix = {k: v for k, v in kw.items() if k == "end_of_word_suffix"}
    return Tokenizer(models.BPE(**kw)), trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=list(alphabet), show_progress=False, **suffix
    )


def _train(tok, trainer, text=TEXT):
    tok.train_from_iterator(text, trainer)
    return tok


def _before(tok, bos):
    "Have the tokenizer put `bos` before each text."
    tok.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tok.token_to_id(bos))]
    )
    return tok


def _bytelevel(special=("<|endoftext|>",), size=340, pre=()):
    tok, trainer = _bpe(size, list(special), pre_tokenizers.ByteLevel.alphabet())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [*pre, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pre)]
    )
    tok.decoder = decoders.ByteLevel()
    return _train(tok, trainer)


def _sentencepiece(special, prefix_space, size=460):
    """BPE with byte fallback, as SentencePiece trains it: LLaMA's kind (a space is put before each text) or Gemma's
    (none is)."""
    tok, trainer = _bpe(
        size, [*special, *(f"<0x{b:02X}>" for b in range(256))], byte_fallback=True, fuse_unk=True, unk_token="<unk>"
    )
    tok.normalizer = normalizers.Replace(" ", "\u2581")
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if prefix_space else "never", split=True)
    tok.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if prefix_space else []),
        ]
    )
    _train(tok, trainer, [t for t in TEXT if t.isascii()])
    spec = json.loads(tok.to_str())  # byte tokens are ordinary members of a SentencePiece vocabulary
    spec["added_tokens"] = [a for a in spec["added_tokens"] if not a["content"].startswith("<0x")]
    tok = Tokenizer.from_str(json.dumps(spec))
    if prefix_space:
        tok.normalizer = None
    else:
        tok.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return tok


def _unigram():
    tok = Tokenizer(models.Unigram())
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tok.decoder = decoders.Metaspace(prepend_scheme="always")
    return _train(
        tok,
        trainers.UnigramTrainer(
            vocab_size=260, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
        ),
    )


def _wordpiece():
    tok = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece(cleanup=False)
    return _train(
        tok,
        trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[unused1]"], show_progress=False),
    )


def _suffix():
    tok, trainer = _bpe(300, ["<unk>"], unk_token="<unk>", end_of_word_suffix="</w>")
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.Whitespace(), decoders.BPEDecoder("</w>")
    return _train(tok, trainer)


_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| "
    r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KINDS = ("bytelevel", "opt", "tiktoken", "qwen", "neox", "sentencepiece", "gemma", "unigram", "wordpiece", "suffix")


@cache
def _backend(kind):
    "(trained tokenizer as JSON, names of its special tokens)"
    if kind == "bytelevel":
        tok, names = _bytelevel(), dict(bos="<|endoftext|>", eos="<|endoftext|>", unk="<|endoftext|>")
    elif kind == "opt":
        tok, names = (
            _before(_bytelevel(("<s>", "<pad>", "</s>", "<unk>", "madeupword0000", "madeupword0001")), "</s>"),
            dict(bos="</s>", eos="</s>", unk="</s>", pad="<pad>"),
        )
    elif kind == "tiktoken":
        tok = _bytelevel(
            ("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>"),
            pre=[pre_tokenizers.Split(Regex(_LLAMA3), "isolated")],
        )
        tok, names = _before(tok, "<|begin_of_text|>"), dict(bos="<|begin_of_text|>", eos="<|end_of_text|>")
    elif kind == "qwen":
        tok, names = (
            _bytelevel(("<|endoftext|>",), pre=[pre_tokenizers.Split(Regex(_LLAMA3.replace("{1,3}", "")), "isolated")]),
            dict(eos="<|endoftext|>", pad="<|endoftext|>"),
        )
        tok.add_tokens(
            [AddedToken("<|fim_prefix|>", normalized=False)]
        )  # a control token that is not flagged as special, as in Qwen's own files
    elif kind == "neox":
        tok, names = (
            _bytelevel(("<|endoftext|>", "<|padding|>")),
            dict(bos="<|endoftext|>", eos="<|endoftext|>", unk="<|endoftext|>"),
        )
        tok.add_tokens([AddedToken(" " * n, normalized=True) for n in (6, 5, 4, 3, 2)])
    elif kind == "sentencepiece":
        tok, names = (
            _before(_sentencepiece(["<unk>", "<s>", "</s>"], True), "<s>"),
            dict(bos="<s>", eos="</s>", unk="<unk>"),
        )
    elif kind == "gemma":
        tok = _before(_sentencepiece(["<pad>", "<eos>", "<bos>", "<unk>", "<unused0>"], False), "<bos>")
        tok.add_tokens(
            [
                AddedToken("\n", normalized=False),
                AddedToken("\n\n", normalized=False),
                AddedToken("<start_of_turn>", normalized=False),
                AddedToken("<h3>", normalized=False),
            ]
        )
        names = dict(bos="<bos>", eos="<eos>", unk="<unk>", pad="<pad>")
    elif kind == "unigram":
        tok, names = _unigram(), dict(bos="<s>", eos="</s>", unk="<unk>", pad="<pad>")
    elif kind == "wordpiece":
        tok, names = _wordpiece(), dict(unk="[UNK]", pad="[PAD]")
    elif kind == "suffix":
        tok, names = _suffix(), dict(unk="<unk>")
    else:
        raise ValueError(f"kind {kind!r}: need one of {KINDS}")
    return tok.to_str(), {f"{k}_token": v for k, v in names.items()}


def tiny_tokenizer(kind):
    "A small tokenizer of a family (`KINDS`), trained on `TEXT`."
    spec, names = _backend(kind)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(spec), clean_up_tokenization_spaces=False, **names
    )


_SMALL = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.2,
    max_position_embeddings=512,
)
_GEMMA = dict(_SMALL, head_dim=8, query_pre_attn_scalar=8, sliding_window=8, tie_word_embeddings=True)
_OPT = dict(
    hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, init_std=0.2, max_position_embeddings=512
)
# architecture -> (model type, tokenizer kind, rows beyond the tokenizer, configuration)
ARCHS = {
    "gpt2": ("gpt2", "bytelevel", 0, dict(n_embd=32, n_layer=2, n_head=4, n_positions=512, initializer_range=0.2)),
    "opt": ("opt", "opt", 7, dict(_OPT, word_embed_proj_dim=32)),
    "opt-proj": ("opt", "opt", 7, dict(_OPT, word_embed_proj_dim=16, do_layer_norm_before=False)),
    "llama": ("llama", "sentencepiece", 0, _SMALL),
    "llama3": ("llama", "tiktoken", 0, dict(_SMALL, tie_word_embeddings=True)),
    "gemma2": ("gemma2", "gemma", 0, _GEMMA),
    "gemma3": ("gemma3_text", "gemma", 0, dict(_GEMMA, layer_types=["sliding_attention", "full_attention"])),
    "qwen2": ("qwen2", "qwen", 13, dict(_SMALL, tie_word_embeddings=True)),
    "qwen3": ("qwen3", "qwen", 13, dict(_SMALL, head_dim=8)),
    "neox": ("gpt_neox", "neox", 3, {k: v for k, v in _SMALL.items() if k != "num_key_value_heads"}),
    "mistral": ("mistral", "sentencepiece", 0, dict(_SMALL, sliding_window=8)),
    "phi": ("phi", "bytelevel", 5, _SMALL),
}


def tiny_lm(arch, seed=0, dtype=torch.float32, tokenizer=None, bos="auto", name=None, **config):
    """A random 2-layer model of an architecture (`ARCHS`) as an `LM`. Equal seeds give equal weights; `config`
    overrides its configuration."""
    kind, tok_kind, extra, small = ARCHS[arch]
    tok = tiny_tokenizer(tokenizer or tok_kind)
    ids = {f"{k}_token_id": getattr(tok, f"{k}_token_id") for k in ("bos", "eos", "pad")}
    cfg = AutoConfig.for_model(kind, **{**small, "vocab_size": len(tok) + extra, **ids, **config})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(cfg, dtype=dtype)
    return LM.wrap(model, tok, name=name or f"tiny-{arch}-{seed}", bos=bos)


def tiny_gguf(path, seed=0, parts=1):
    "Write a random 2-layer LLaMA with SmolLM2's kind of tokenizer as a .gguf file; its matrices are Q8_0 blocks."
    import gguf
    import numpy as np

    d, ff, rng = 32, 64, np.random.default_rng(seed)
    spec = json.loads(tiny_tokenizer("bytelevel").backend_tokenizer.to_str())["model"]
    tokens = sorted(spec["vocab"], key=spec["vocab"].get)
    w = gguf.GGUFWriter(path, "llama")
    (
        w.add_license("mit"),
        w.add_context_length(256),
        w.add_embedding_length(d),
        w.add_block_count(2),
        w.add_feed_forward_length(ff),
        w.add_vocab_size(len(tokens)),
    )
    (
        w.add_head_count(4),
        w.add_head_count_kv(2),
        w.add_layer_norm_rms_eps(1e-5),
        w.add_rope_dimension_count(d // 4),
        w.add_rope_freq_base(10000.0),
    )
    if parts > 1:
        w.add_uint16("split.count", parts)
    (
        w.add_tokenizer_model("gpt2"),
        w.add_tokenizer_pre("smollm"),
        w.add_token_list(tokens),
        w.add_token_types([3] + [1] * (len(tokens) - 1)),
    )
    (
        w.add_token_merges([" ".join(m) for m in spec["merges"]]),
        w.add_bos_token_id(0),
        w.add_eos_token_id(0),
        w.add_unk_token_id(0),
        w.add_add_bos_token(False),
    )

    def matrix(name, *shape):
        w.add_tensor(
            name,
            gguf.quants.quantize(rng.normal(0, 0.2, shape).astype("float32"), gguf.GGMLQuantizationType.Q8_0),
            raw_dtype=gguf.GGMLQuantizationType.Q8_0,
        )

    def ones(name):
        w.add_tensor(name, np.ones(d, "float32"))

    matrix("token_embd.weight", len(tokens), d), ones("output_norm.weight")
    for i in range(2):
        for name, *shape in (
            ("attn_q", d, d),
            ("attn_k", d // 2, d),
            ("attn_v", d // 2, d),
            ("attn_output", d, d),
            ("ffn_gate", ff, d),
            ("ffn_up", ff, d),
            ("ffn_down", d, ff),
        ):
            matrix(f"blk.{i}.{name}.weight", *shape)
        ones(f"blk.{i}.attn_norm.weight"), ones(f"blk.{i}.ffn_norm.weight")
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()
    return path
