"""GGUF files of every kind: the same model read from safetensors with the right configuration, ids by the rule that the
file names, and a line on what is not read."""

import json
import re

import gguf
import numpy as np
import pytest
import regex
import torch
from gguf import get_tensor_name_map
from gguf.constants import MODEL_ARCH_NAMES
from hypothesis import given, settings, strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

import hpt_nb.gguf_mending as gguf_mending
import hpt_nb.models as models
from hpt_nb.gguf_facts import BOS_FIRST, RULE_OF, RULES, WHOLE_PIECES, cuts, pre_tokenizer
from hpt_nb.models import load_lm
from hpt_nb.store import InputError, cache_dir
from tiny import TEXT, tiny_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    "An empty cache for each test."
    monkeypatch.setenv("HPT_CACHE", str(tmp_path / "cache"))


# --- writing a file as llama.cpp's converter does


def spelled(kind="bytelevel"):
    "(tokens, merges) of a tiny tokenizer."
    spec = json.loads(tiny_tokenizer(kind).backend_tokenizer.to_str())["model"]
    return sorted(spec["vocab"], key=spec["vocab"].get), [
        m if isinstance(m, str) else " ".join(m) for m in spec["merges"]
    ]


def stated(writer, meta):
    "Write metadata by the type of each value."
    for k, v in meta.items():
        if isinstance(v, bool):
            writer.add_bool(k, v)
        elif isinstance(v, int):
            writer.add_uint32(k, v)
        elif isinstance(v, float):
            writer.add_float32(k, v)
        elif isinstance(v, str):
            writer.add_string(k, v)
        else:
            writer.add_array(k, v)


def tokenizer_meta(kind="bytelevel", pre="gpt-2", types=None, **more):
    tokens, merges = spelled(kind)
    spm = kind in ("sentencepiece", "gemma")
    if types is None:
        types = [
            2 if t == "<unk>" else 6 if t.startswith("<0x") else 3 if re.fullmatch(r"</?\w+>|<\|\w+\|>", t) else 1
            for t in tokens
        ]
    out = {
        "tokenizer.ggml.model": "llama" if spm else "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": tokens.index(
            "<s>" if kind == "sentencepiece" else "<bos>" if kind == "gemma" else "<|endoftext|>"
        ),
        "tokenizer.ggml.add_bos_token": False,
    }
    if pre is not None:
        out["tokenizer.ggml.pre"] = pre
    if spm:
        out |= {
            "tokenizer.ggml.scores": [-float(i) for i in range(len(tokens))],
            "tokenizer.ggml.unknown_token_id": tokens.index("<unk>"),
        }
    else:
        out["tokenizer.ggml.merges"] = merges
    out |= {f"tokenizer.ggml.{k}": v for k, v in more.items()}
    return {k: v for k, v in out.items() if v is not None}


def turned(w, heads):
    "LLaMA's rows of a query or key matrix, in the order in which llama.cpp rotates them."
    return w.reshape(heads, 2, len(w) // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def write(path, model, arch, meta, tokenizer=None, extra=None):
    "A transformers model as .gguf, its tensors named and turned as llama.cpp's converter does it."
    cfg = model.config
    names = get_tensor_name_map(next(k for k, v in MODEL_ARCH_NAMES.items() if v == arch), cfg.num_hidden_layers)
    w = gguf.GGUFWriter(str(path), arch)
    stated(w, meta | (tokenizer or tokenizer_meta()))
    for name, t in model.state_dict().items():
        if name == "lm_head.weight" and cfg.tie_word_embeddings:
            continue
        to, x = names.get_name(name, try_suffixes=(".weight", ".bias")), t.float().numpy()
        assert to, name
        if arch == "llama" and ".attn_q." in to:
            x = turned(x, cfg.num_attention_heads)
        if arch == "llama" and ".attn_k." in to:
            x = turned(x, cfg.num_key_value_heads)
        if arch in ("gemma2", "gemma3", "nemotron") and to.endswith("norm.weight"):
            x = x + 1
        if arch == "gpt2" and re.search("attn_qkv.weight|ffn_(up|down).weight|attn_output.weight", to):
            x = x.T
        w.add_tensor(to, np.ascontiguousarray(x))
    for name, x in (extra or {}).items():
        w.add_tensor(name, np.asarray(x, "float32"))
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()
    return path


_SMALL = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
)


def tiny(kind, seed=0, **config):
    "A random model whose parts all matter."
    tokens = len(spelled()[0])
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            kind, **{"vocab_size": tokens, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, **config}
        )
    ).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.25) if p.ndim > 1 else p.add_(torch.randn_like(p) * 0.1)
    return model


def facts(arch, **more):
    "The metadata that every file of an architecture has."
    out = {
        "context_length": 256,
        "embedding_length": 32,
        "block_count": 2,
        "feed_forward_length": 64,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 10000.0,
        **{k.replace("__", "."): v for k, v in more.items()},
    }
    return {f"{arch}.{k}": v for k, v in out.items() if v is not None}


IDS = torch.tensor([[5, 77, 140, 33, 201, 8, 250, 61, 99, 40, 41, 42, 5, 5, 77, 12, 19, 230, 71, 64]])


@torch.no_grad()
def same(lm, model):
    ours, right = lm.model(IDS).logits, model(IDS).logits
    return (ours - right).abs().max() <= 1e-4 * right.abs().max()


# --- the model

_LLAMA = dict(_SMALL, rms_norm_eps=1e-6, tie_word_embeddings=False)
_YARN = dict(rope_type="yarn", factor=4.0, rope_theta=1e4, original_max_position_embeddings=64)
# name -> (model type, its configuration, llama.cpp's architecture, metadata beside the usual, further tensors)
MODELS = {
    "llama": ("llama", _LLAMA, "llama", {}, {}),
    "llama-theta": (
        "llama",
        dict(_LLAMA, rope_parameters=dict(rope_type="default", rope_theta=5e5)),
        "llama",
        dict(rope__freq_base=5e5),
        {},
    ),
    "llama-wide-heads": (
        "llama",
        dict(_LLAMA, head_dim=16),
        "llama",
        dict(attention__key_length=16, attention__value_length=16, rope__dimension_count=16),
        {},
    ),
    "llama-biases": (
        "llama",
        dict(_LLAMA, attention_bias=True, mlp_bias=True),
        "llama",
        dict(rope__dimension_count=8),
        {},
    ),
    "llama-tied": ("llama", dict(_LLAMA, tie_word_embeddings=True), "llama", {}, {}),
    "linear": (
        "llama",
        dict(_LLAMA, rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=1e4)),
        "llama",
        dict(rope__scaling__type="linear", rope__scaling__factor=4.0),
        {},
    ),
    "linear-unnamed": (
        "llama",
        dict(_LLAMA, rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=1e4)),
        "llama",
        dict(rope__scaling__factor=4.0),
        {},
    ),
    "linear-old-name": (
        "llama",
        dict(_LLAMA, rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=1e4)),
        "llama",
        dict(rope__scale_linear=2.0),
        {},
    ),
    "none": ("llama", _LLAMA, "llama", dict(rope__scaling__type="none", rope__scaling__factor=4.0), {}),
    "yarn": (
        "llama",
        dict(_LLAMA, rope_parameters=_YARN),
        "llama",
        dict(rope__scaling__type="yarn", rope__scaling__factor=4.0, rope__scaling__original_context_length=64),
        {},
    ),
    "yarn-betas": (
        "llama",
        dict(_LLAMA, rope_parameters=dict(_YARN, beta_fast=8.0, beta_slow=2.0)),
        "llama",
        dict(
            rope__scaling__type="yarn",
            rope__scaling__factor=4.0,
            rope__scaling__original_context_length=64,
            rope__scaling__yarn_beta_fast=8.0,
            rope__scaling__yarn_beta_slow=2.0,
        ),
        {},
    ),
    "yarn-attention": (
        "llama",
        dict(_LLAMA, rope_parameters=dict(_YARN, attention_factor=0.5 * (1 + 0.1 * np.log(4.0)))),
        "llama",
        dict(
            rope__scaling__type="yarn",
            rope__scaling__factor=4.0,
            rope__scaling__original_context_length=64,
            rope__scaling__attn_factor=0.5,
        ),
        {},
    ),
    "rope-freqs": (
        "llama",
        dict(
            _LLAMA,
            rope_parameters=dict(
                rope_type="llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
                rope_theta=1e4,
            ),
        ),
        "llama",
        {},
        "llama3",
    ),
    "rope-freqs-of-one": ("llama", _LLAMA, "llama", {}, {"rope_freqs.weight": [1.0] * 4}),
    "qwen2": ("qwen2", dict(_LLAMA, tie_word_embeddings=True), "qwen2", {}, {}),
    "qwen2-yarn": (
        "qwen2",
        dict(_LLAMA, rope_parameters=_YARN),
        "qwen2",
        dict(rope__scaling__type="yarn", rope__scaling__factor=4.0, rope__scaling__original_context_length=64),
        {},
    ),
    "qwen3": (
        "qwen3",
        dict(_LLAMA, head_dim=16),
        "qwen3",
        dict(attention__key_length=16, attention__value_length=16, rope__freq_base=1e4),
        {},
    ),
    "gemma2": (
        "gemma2",
        dict(
            _LLAMA,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=8,
            attn_logit_softcapping=20.0,
            final_logit_softcapping=15.0,
            tie_word_embeddings=True,
        ),
        "gemma2",
        dict(
            attention__key_length=8,
            attention__value_length=8,
            attention__sliding_window=8,
            attn_logit_softcapping=20.0,
            final_logit_softcapping=15.0,
        ),
        {},
    ),
    "gemma3": (
        "gemma3_text",
        dict(
            _LLAMA,
            num_hidden_layers=7,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=8,
            tie_word_embeddings=True,
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6),
                sliding_attention=dict(rope_type="default", rope_theta=1e4),
            ),
        ),
        "gemma3",
        dict(
            block_count=7,
            attention__key_length=8,
            attention__value_length=8,
            attention__sliding_window=8,
            rope__freq_base=1e6,
            rope__scaling__type="linear",
            rope__scaling__factor=8.0,
        ),
        {},
    ),
    "phi3": (
        "phi3",
        dict(_LLAMA, sliding_window=8),
        "phi3",
        dict(attention__sliding_window=8, rope__dimension_count=8),
        {},
    ),
    "phi3-partly": (
        "phi3",
        dict(
            _LLAMA,
            sliding_window=None,
            rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5),
        ),
        "phi3",
        dict(rope__dimension_count=4),
        {},
    ),
    "phi3-longrope": (
        "phi3",
        dict(
            _LLAMA,
            sliding_window=None,
            original_max_position_embeddings=16,
            rope_parameters=dict(
                rope_type="longrope",
                short_factor=[1.0, 1.1, 1.2, 1.3],
                long_factor=[1.0, 2.0, 4.0, 8.0],
                rope_theta=1e4,
                original_max_position_embeddings=16,
            ),
        ),
        "phi3",
        dict(
            rope__dimension_count=8,
            rope__scaling__original_context_length=16,
            rope__scaling__attn_factor=float(np.sqrt(1 + np.log(16) / np.log(16))),
        ),
        {"rope_factors_short.weight": [1.0, 1.1, 1.2, 1.3], "rope_factors_long.weight": [1.0, 2.0, 4.0, 8.0]},
    ),
    "starcoder2": (
        "starcoder2",
        dict(
            _SMALL,
            rope_parameters=dict(rope_type="default", rope_theta=1e5),
            tie_word_embeddings=True,
            norm_epsilon=1e-5,
        ),
        "starcoder2",
        dict(attention__layer_norm_rms_epsilon=None, attention__layer_norm_epsilon=1e-5, rope__freq_base=1e5),
        {},
    ),
    "stablelm": (
        "stablelm",
        dict(
            _SMALL,
            rope_parameters=dict(rope_type="default", rope_theta=1e5, partial_rotary_factor=0.5),
            layer_norm_eps=1e-5,
            use_qkv_bias=True,
        ),
        "stablelm",
        dict(
            attention__layer_norm_rms_epsilon=None,
            attention__layer_norm_epsilon=1e-5,
            rope__freq_base=1e5,
            rope__dimension_count=4,
        ),
        {},
    ),
    "nemotron": (
        "nemotron",
        dict(
            _SMALL,
            head_dim=8,
            rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5),
            norm_eps=1e-5,
        ),
        "nemotron",
        dict(attention__layer_norm_rms_epsilon=1e-5, rope__dimension_count=4),
        {},
    ),
    "gpt2": (
        "gpt2",
        dict(n_embd=32, n_layer=2, n_head=4, n_positions=256, n_inner=64),
        "gpt2",
        dict(
            attention__layer_norm_rms_epsilon=None,
            attention__layer_norm_epsilon=1e-5,
            attention__head_count_kv=None,
            rope__freq_base=None,
        ),
        {},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_file_gives_the_model_that_its_weights_are(name, tmp_path, capsys):
    "The same weights in a model of the right configuration give the same logits, and nothing is left to remark."
    kind, config, arch, more, extra = MODELS[name]
    model = tiny(kind, **config)
    if extra == "llama3":
        extra = {"rope_freqs.weight": (1e4 ** -(np.arange(0, 8, 2) / 8)) / model.model.rotary_emb.inv_freq.numpy()}
    lm = load_lm(write(tmp_path / "x.gguf", model, arch, facts(arch, **more), extra=extra))
    assert same(lm, model), name
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("converting", "converted"))]
    assert said == []
    load_lm(tmp_path / "x.gguf")
    assert capsys.readouterr().err == ""


SPOILT = {  # what a file states beyond what is read -> what is said of it
    "a weight without a place": (
        "llama",
        {},
        {"blk.0.attn_q_norm.weight": np.ones(8)},
        "1 weights in its files are not used .blk.0.attn_q_norm.weight",
    ),
    "a layer cut off": (
        "llama",
        {},
        {f"blk.2.{n}.weight": np.ones(s) for n, s in (("attn_norm", 32), ("attn_q", (32, 32)), ("ffn_up", (64, 32)))},
        "3 weights in its files are not used .blk.2.attn_norm.weight",
    ),
    "some biases": ("llama", {}, {"blk.0.attn_q.bias": np.ones(32)}, "not used .blk.0.attn_q.bias"),
    "an adapter": (
        "qwen2",
        {},
        {"blk.0.attn_q.weight.lora_a": np.ones((4, 32))},
        "not used .blk.0.attn_q.weight.lora_a",
    ),
    "a scale": ("llama", {"llama.attention.scale": 0.5}, {}, "1 of its settings are not read .attention.scale."),
    "many settings": (
        "llama",
        {f"llama.{k}": 2.0 for k in ("logit_scale", "residual_scale", "embedding_scale", "attention.output_scale")},
        {},
        "4 of its settings are not read .attention.output_scale, embedding_scale, logit_scale, ...",
    ),
    "a part of each head": (
        "llama",
        {"llama.rope.dimension_count": 4},
        {},
        "llama.rope.dimension_count is 50% of a head",
    ),
    "a window": ("llama", {"llama.attention.sliding_window_pattern": 2}, {}, "sliding_window_pattern"),
    "spaces that are lost": (
        "llama",
        {"tokenizer.ggml.remove_extra_whitespaces": True},
        {},
        "settings of its tokenizer are not read .remove_extra_whitespaces.",
    ),
    "lower case": ("llama", {"tokenizer.ggml.normalizer.lowercase": True}, {}, "not read .normalizer.lowercase."),
}


@pytest.mark.parametrize("what", SPOILT)
def test_what_is_not_read_is_said_each_time(what, tmp_path, capsys):
    arch, meta, extra, says = SPOILT[what]
    write(tmp_path / "x.gguf", tiny(arch, **_LLAMA), arch, facts(arch) | meta, extra=extra)
    for _ in range(2):
        load_lm(tmp_path / "x.gguf")
        said = [
            line for line in capsys.readouterr().err.splitlines() if not line.startswith(("converting", "converted"))
        ]
        assert len(said) == 1 and re.search(f"^x: .*{says}", said[0]), said


@pytest.mark.parametrize(
    "meta,extra,says",
    [
        ({"llama.rope.scaling.type": "spiral"}, {}, "'spiral'; need none, linear, yarn or longrope"),
        (
            {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0},
            {"rope_freqs.weight": [1.0, 2.0, 8.0, 8.0]},
            "yarn beside rope_freqs",
        ),
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 4.0}, {}, "no rope_factors_long"),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 4.0,
                "llama.rope.scaling.yarn_ext_factor": 0.5,
            },
            {},
            "only 1 can be read",
        ),
    ],
)
def test_position_scalings_that_cannot_be_read(meta, extra, says, tmp_path):
    write(tmp_path / "x.gguf", tiny("llama", **_LLAMA), "llama", facts("llama") | meta, extra=extra)
    with pytest.raises(InputError, match=f"^x.gguf: .*{says}") as e:
        load_lm(tmp_path / "x.gguf")
    assert "\n" not in str(e.value)
    assert not list((cache_dir() / "models").glob("*")) if (cache_dir() / "models").exists() else True


# llama.cpp's architectures that transformers reads, by its own names for them
# fmt: off
SAME = (
    "llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "nemotron", "stablelm", "starcoder2", "falcon",
    "lfm2", "bloom", "gpt2", "mamba",
)
# fmt: on
TYPES = {a: a for a in SAME} | {
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "gpt-oss": "gpt_oss",
    "minimax-m2": "minimax_m2",
    "deci": "llama",
}
SCALINGS = {  # what a file says -> the type that transformers turns by
    "linear": ({"type": "linear", "factor": 4.0}, {}, "linear"),
    "a factor alone": ({"factor": 4.0}, {}, "linear"),
    "yarn": ({"type": "yarn", "factor": 4.0, "original_context_length": 64}, {}, "yarn"),
    "longrope": (
        {"original_context_length": 64},
        {"rope_factors_short": [1.0, 2.0], "rope_factors_long": [1.0, 8.0]},
        "longrope",
    ),
    "divisors": ({}, {"rope_freqs": [1.0, 8.0]}, "longrope"),
}


@pytest.mark.parametrize("what", SCALINGS)
@pytest.mark.parametrize("arch", TYPES)
def test_no_scaling_is_lost_on_any_architecture(arch, what):
    "It stands in the configuration, or a remark says that it is not read; without it nothing is said."
    stated, divisors, wanted = SCALINGS[what]
    plain = {"general.architecture": arch, **facts(arch)}
    rope = AutoConfig.for_model(TYPES[arch]).get_text_config()
    assert not any("scaling" in r for r in gguf_mending.amend_config(rope, plain, set(), {}))
    remarks = gguf_mending.amend_config(
        rope, plain | {f"{arch}.rope.scaling.{k}": v for k, v in stated.items()}, set(), divisors
    )
    own = getattr(rope, "rope_parameters", None) or {}
    own = own.get("full_attention", own)
    assert own.get("rope_type") == wanted or any("scaling" in r for r in remarks), (own, remarks)
    if arch in gguf_mending.AMENDED:
        assert own.get("rope_type") == wanted and remarks == []


def test_the_architectures_above_are_all_of_them():
    from transformers.integrations import GGUF_CONFIG_MAPPING
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS

    known = {*GGUF_CONFIG_MAPPING, *GGUF_CONFIG_ARCHS} - {"general", "tokenizer", "t5", "umt5"}
    named = {*TYPES, *TYPES.values()}
    assert known - named <= {"qwen35", "qwen35moe"}, known - named  # whose positions are read by code of their own


# --- the tokenizer: the obvious way, written from llama.cpp's description


def pieces(text, rules):
    "Cut by each rule in turn: its matches, and what lies between them."
    parts = [text]
    for rule in rules:
        new = []
        for part in parts:
            at = 0
            for m in regex.finditer(rule, part, regex.V1 if "&&" in rule else 0):  # V1: a set may be cut by another
                new += [part[at : m.start()], m.group()]
                at = m.end()
            new.append(part[at:])
        parts = [p for p in new if p]
    return parts


_BYTES = {b: c for c, b in models.byte_alphabet().items()}


def merged(piece, ranks, vocab, whole):
    "Byte-level BPE, lowest rank first."
    parts = [_BYTES[b] for b in piece.encode()]
    if whole and "".join(parts) in vocab:
        return ["".join(parts)]
    while len(parts) > 1:
        best = min(range(len(parts) - 1), key=lambda i: (ranks.get((parts[i], parts[i + 1]), len(ranks)), i))
        if (parts[best], parts[best + 1]) not in ranks:
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def by_rule(text, pre):
    tokens, merges = spelled()
    vocab, ranks = {t: i for i, t in enumerate(tokens)}, {tuple(m.split(" ")): i for i, m in enumerate(merges)}
    rules = [re.sub(r"\\x\{(\w+)\}", lambda m: re.escape(chr(int(m[1], 16))), r) for r in cuts(pre)]
    return [vocab[t] for piece in pieces(text, rules) for t in merged(piece, ranks, vocab, pre in WHOLE_PIECES)]


HARD = (
    "It's 1980 or 12345, DON'T  stop\n\nnow",
    "a  1\n 2\t3",
    "naïve  Zürich\n\n\n東京 😀",
    "don't DON'T I'LL we'Ve  \r\n\r\n x",
    "   lead",
    "trail   ",
    "x=1;y+=22//3\n\t\tfor",
    "²³½ ٣٤ ৪৫",
    "\n \n",
    "''s 'S",
    "foo_bar fooBar XMLHttp",
    "1234567 12 1,000,000",
    "<|im_end|>",
    "Ünï.Çødé—“q”…",
    "안녕하세요 123",
    "$5.00 + 3% = ~7^2|`x`",
    "It was great. A b c",
    TEXT[0],
)


@pytest.fixture(scope="module")
def by_pre(tmp_path_factory):
    "LM by the name of its pre-tokenizer; a small model is written and converted for each."
    made, folder = {}, tmp_path_factory.mktemp("pre")
    model = tiny("llama", **_LLAMA)

    def get(pre):
        if pre not in made:
            made[pre] = load_lm(
                write(folder / f"{len(made)}.gguf", model, "llama", facts("llama"), tokenizer_meta(pre=pre))
            )
        return made[pre]

    return get


# llama.cpp's names, in its order
# fmt: off
KNOWN = (
    "default", "minicpm5", "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
    "jina-v5-nano", "deepseek-llm", "deepseek-coder", "deepseek-v3", "spark2_5", "youtu", "falcon", "mpt",
    "starcoder", "gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0",
    "mellum", "modern-bert", "jais-2", "gemma4", "granite-embed-multi-311m", "sarvam-moe", "jina-v1-en",
    "jina-v2-code", "roberta-bpe", "whitespace", "refact", "command-r", "qwen2", "deepseek-r1-qwen", "kormo",
    "f2llmv2", "qwen35", "stablelm2", "olmo", "dbrx", "smaug-bpe", "poro-chat", "glm4", "chatglm-bpe", "viking",
    "jais", "tekken", "smollm", "codeshell", "bloom", "gpt3-finnish", "exaone", "exaone4", "exaone-moe",
    "chameleon", "minerva-7b", "megrez", "gpt-4o", "llama4", "kanana2", "talkie", "granite-embed-multi-97m",
    "tiny_aya", "cohere2moe", "superbpe", "trillion", "granite-docling", "bailingmoe", "bailingmoe2", "llada-moe",
    "seed-coder", "hunyuan", "hunyuan-dense", "hy_v4", "joyai-llm", "kimi-k2", "ufakzeka", "grok-2", "afmoe",
    "laguna", "minimax-m2", "solar-open", "mellum2",
)
# fmt: on


@pytest.mark.parametrize("pre", KNOWN)
def test_every_name_has_its_rule_or_a_reason(pre):
    if pre in RULE_OF:
        assert cuts(pre) == RULES[RULE_OF[pre]]
    else:
        with pytest.raises(
            InputError, match="spelled in characters, which cannot be read here; use the model in safetensors"
        ):
            cuts(pre)


FIRST_OF = {rule: pre for pre, rule in sorted(RULE_OF.items(), reverse=True)}  # of each rule its first name


@pytest.mark.parametrize(
    "pre", [pytest.param(p, marks=() if p in FIRST_OF.values() else pytest.mark.slow) for p in sorted(RULE_OF)]
)
def test_ids_by_every_rule_that_a_file_may_name(pre, by_pre):
    lm = by_pre(pre)
    for text in HARD:
        assert lm.encode(text) == by_rule(text, pre), (pre, text)
        assert b"".join(lm.token_bytes[i] for i in lm.encode(text)) == text.encode()


@given(
    text=st.text(st.sampled_from("aB1'sT ß東\n\r\t.,!$_é٣-…"), max_size=24),
    pre=st.sampled_from(sorted(set(RULES) - {"superbpe"})),
)
@settings(max_examples=300, deadline=None)
def test_cuts_are_those_of_the_obvious_way(text, pre):
    rules = [re.sub(r"\\x\{(\w+)\}", lambda m: re.escape(chr(int(m[1], 16))), r) for r in RULES[pre]]
    name = next(n for n, rule in RULE_OF.items() if rule == pre)
    got = [p for p, _ in pre_tokenizer(name).pre_tokenize_str(text)]
    assert got == ["".join(_BYTES[b] for b in p.encode()) for p in pieces(text, rules)]


def test_rules_that_differ_give_other_ids(by_pre):
    "So the table above can fail: no two rules cut all of these texts alike."
    seen = {}
    for rule in RULES:
        cut = tuple(
            tuple(p for p, _ in pre_tokenizer(next(n for n, r in RULE_OF.items() if r == rule)).pre_tokenize_str(t))
            for t in (*HARD, "héÉa ab", "'street", "so!\n\ny!\nx", "東京は a", "x-y\n/z", " " * 300 + "a", "a\u0301b c")
        )
        assert cut not in seen or {rule, seen[cut]} in ({"gpt-4o", "granite-multi"}, {"qwen2", "bailingmoe"}), (
            rule,
            seen[cut],
        )  # one rule, spelled in two ways
        seen[cut] = rule


def test_a_file_that_names_no_rule_or_an_unknown_one(tmp_path, capsys):
    model = tiny("llama", **_LLAMA)
    lm = load_lm(write(tmp_path / "none.gguf", model, "llama", facts("llama"), tokenizer_meta(pre=None)))
    assert "none: it names no rule for cutting text" in capsys.readouterr().err
    assert all(lm.encode(t) == by_rule(t, "default") for t in HARD)
    for pre in ("no-such-rule", "gemma4", "whitespace", ""):
        write(tmp_path / "odd.gguf", model, "llama", facts("llama"), tokenizer_meta(pre=pre))
        if pre:
            with pytest.raises(InputError, match="^odd.gguf: tokenizer.ggml.pre = "):
                load_lm(tmp_path / "odd.gguf")


@pytest.mark.parametrize("pre", ["llama-bpe", "tekken", "chameleon", "gpt-2", "qwen2"])
@pytest.mark.parametrize("stated", [None, True, False])
def test_what_goes_before_a_text(pre, stated, tmp_path):
    lm = load_lm(
        write(
            tmp_path / "x.gguf",
            tiny("llama", **_LLAMA),
            "llama",
            facts("llama"),
            tokenizer_meta(pre=pre, add_bos_token=stated),
        )
    )
    assert lm.bos_ids == ([0] if stated or (stated is None and pre in BOS_FIRST) else [])


@pytest.mark.parametrize("stated", [None, True, False])
def test_what_goes_before_a_text_of_sentencepiece(stated, tmp_path):
    "llama.cpp puts BOS there unless the file says otherwise."
    model = tiny("llama", **dict(_LLAMA, vocab_size=len(spelled("sentencepiece")[0])))
    lm = load_lm(
        write(
            tmp_path / "x.gguf",
            model,
            "llama",
            facts("llama"),
            tokenizer_meta("sentencepiece", pre="default", add_bos_token=stated),
        )
    )
    assert lm.bos_ids == ([] if stated is False else [spelled("sentencepiece")[0].index("<s>")])


def test_another_kind_of_tokenizer_is_named():
    remarks = models.mend_tokenizer(tiny_tokenizer("unigram"), {"tokenizer.ggml.model": "t5"})
    assert len(remarks) == 1 and remarks[0].startswith(
        "its kind of tokenizer (tokenizer.ggml.model = 't5') is read by transformers' rules alone"
    )


def test_tokens_that_are_found_whole(tmp_path, capsys):
    """A user-defined token is found letter for letter before anything else, spaces and all; GPT-NeoX has runs of
    spaces of that kind."""
    tokens, _ = spelled()
    spaces, word = tokens.index("ĠĠ"), tokens.index("Ġfilm")
    types = [3] + [1] * (len(tokens) - 1)
    types[spaces] = types[word] = 4
    lm = load_lm(
        write(
            tmp_path / "x.gguf",
            tiny("llama", **_LLAMA),
            "llama",
            facts("llama"),
            tokenizer_meta(types=types) | {"tokenizer.ggml.tokens": [*tokens[:spaces], "  ", *tokens[spaces + 1 :]]},
        )
    )
    assert lm.encode("a  b") == [tokens.index("a"), spaces, tokens.index("b")] and lm.token_bytes[spaces] == b"  "
    assert lm.encode("a   b")[1] == spaces  # the leftmost, before a cut or a merge
    assert not [line for line in capsys.readouterr().err.splitlines() if line.startswith("x:")]


@pytest.mark.parametrize("kind", ["sentencepiece", "gemma"])
@pytest.mark.parametrize("space", [True, False, None])
def test_the_space_before_a_text(kind, space, tmp_path):
    arch = "gemma2" if kind == "gemma" else "llama"
    tokens = len(spelled(kind)[0])
    model = tiny(
        "gemma2" if kind == "gemma" else "llama",
        **dict(MODELS["gemma2"][1] if kind == "gemma" else _LLAMA, vocab_size=tokens),
    )
    more = MODELS["gemma2"][3] if kind == "gemma" else {}
    lm = load_lm(
        write(
            tmp_path / "x.gguf",
            model,
            arch,
            facts(arch, **more),
            tokenizer_meta(kind, pre="default", add_space_prefix=space),
        )
    )
    wanted = kind == "sentencepiece" if space is None else space
    for text in ("the film was great", "It's 1980  and\n\nnow", "x"):
        assert b"".join(lm.token_bytes[i] for i in lm.encode(text)) == (b" " if wanted else b"") + text.encode()
        assert lm.decode(lm.encode(text)) == text
    assert (lm.token_bytes[lm.encode("film")[0]][:1] == b" ") == wanted


def test_letters_and_their_accents(tmp_path):
    "Qwen's own tokenizer composes them; no other file says that it does."
    for arch in ("qwen2", "llama"):
        lm = load_lm(
            write(tmp_path / f"{arch}.gguf", tiny(arch, **_LLAMA), arch, facts(arch), tokenizer_meta(pre="qwen2"))
        )
        assert (lm.encode("cafe\u0301") == lm.encode("caf\u00e9")) == (arch == "qwen2")


def test_a_conversion_is_read_as_it_was_written(tmp_path):
    "As a folder, and by transformers' own front door where that does not overrule the file by the architecture's name."
    from transformers import AutoTokenizer

    for arch, pre in (("qwen2", "smollm"), ("llama", "qwen2"), ("gemma2", "llama-bpe"), ("qwen2", "qwen2")):
        more, config = (MODELS["gemma2"][3], MODELS["gemma2"][1]) if arch == "gemma2" else ({}, _LLAMA)
        before = set((cache_dir() / "models").glob("*-v*"))
        lm = load_lm(
            write(
                tmp_path / f"{arch}-{pre}.gguf",
                tiny(arch, **config),
                arch,
                facts(arch, **more),
                tokenizer_meta(pre=pre),
            )
        )
        (folder,) = set((cache_dir() / "models").glob("*-v*")) - before
        right = [by_rule(t, pre) for t in HARD]
        assert [lm.encode(t) for t in HARD] == right
        assert [load_lm(folder).encode(t) for t in HARD] == right
        if (arch, pre) == ("qwen2", "smollm"):
            continue
        assert AutoTokenizer.from_pretrained(folder)(list(HARD), add_special_tokens=False)["input_ids"] == right
