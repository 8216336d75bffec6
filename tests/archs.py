"""Every causal architecture of transformers, tiny and random: its scores beside those of the plain pass, or the line
that refuses it.

`python tests/archs.py [NAME ...]` prints what happens to each (all, without a name); with `--write` it goes into the
list that test_archs.py holds to."""

import copy
import gc
import json
import sys
import warnings
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

from hpt_nb.models import LM
from hpt_nb.scoring import PrefixScorer, label_ids, label_logprobs
from hpt_nb.store import InputError
from tiny import tiny_tokenizer

LIST = Path(__file__).with_name("archs.json")
LISTED = json.loads(LIST.read_text(encoding="utf-8"))["types"] if LIST.exists() else {}
LARGEST = 50_000_000  # weights; more is not tiny


def _each(value, names):
    return dict.fromkeys(names.split(), value)


SIZES = {  # a configuration's fields, by whatever name an architecture has for them
    **_each(
        32,
        "hidden_size d_model n_embd n_embed embed_dim embedding_size word_embed_proj_dim dim model_dim "
        "emb_dim attention_hidden_size lru_width block_dim",
    ),
    **_each(
        48,
        "intermediate_size ffn_dim d_ff n_inner decoder_ffn_dim encoder_ffn_dim ffn_hidden_size dim_ff "
        "mlp_hidden_size dff d_inner ffn_intermediate_size "
        "block_ff_dim intermediate_size_mlp prefix_dense_intermediate_size dense_intermediate_size",
    ),
    **_each(
        24,
        "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size "
        "shared_intermediate_size moe_shared_expert_intermediate_size",
    ),
    **_each(
        2,
        "num_hidden_layers num_layers n_layer n_layers decoder_layers encoder_layers num_decoder_layers "
        "num_encoder_layers num_blocks "
        "num_key_value_heads num_kv_heads multi_query_group_num swa_num_key_value_heads n_mamba_heads "
        "linear_num_key_heads altup_num_inputs index_n_heads",
    ),
    **_each(
        4,
        "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads "
        "num_decoder_attention_heads "
        "num_encoder_attention_heads swa_num_attention_heads linear_num_value_heads conv_kernel "
        "mamba_d_conv time_step_rank mamba_dt_rank laurel_rank index_topk",
    ),
    **_each(
        8,
        "head_dim attention_head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim kv_lora_rank q_lora_rank "
        "kv_channels global_head_dim d_kv swa_head_dim "
        "swa_v_head_dim rotary_dim rotary_ndims query_pre_attn_scalar state_size mamba_d_state "
        "ssm_state_size mamba_n_heads mamba_d_head mamba_num_heads "
        "mamba_head_dim chunk_size mamba_chunk_size linear_key_head_dim linear_value_head_dim "
        "hidden_size_per_layer_input index_head_dim block_size",
    ),
    **_each(
        8, "sliding_window attention_window_size window_size attention_chunk_size local_attention"
    ),  # shorter than the texts
    **_each(4, "num_experts n_routed_experts num_local_experts moe_num_experts"),
    **_each(2, "num_experts_per_tok num_experts_per_token moe_topk moe_top_k moe_k top_k_experts"),
    **_each(
        1,
        "n_shared_experts n_group topk_group num_expert_group first_k_dense_replace num_dense_layers "
        "decoder_sparse_step num_shared_experts n_groups "
        "mamba_n_groups num_random_blocks",
    ),
    **_each(340, "vocab_size text_vocab_size vocab_size_per_layer_input"),
    **_each(256, "max_position_embeddings n_positions max_seq_len n_ctx max_target_positions max_sequence_length"),
    **_each(
        0, "pad_token_id bos_token_id eos_token_id decoder_start_token_id moe_layer_start_index num_kv_shared_layers"
    ),
    **_each(0.2, "initializer_range init_std"),
    **_each(330, "image_token_id image_token_index"),
    **_each(331, "audio_token_id"),
    **_each(332, "video_token_id"),
    "qk_head_dim": 16,
    "mamba_d_ssm": 64,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "dropout": 0.0,
    "is_decoder": True,
}
_MAY_BE_NONE = {
    "sliding_window",
    "q_lora_rank",
    "head_dim",
    "rotary_dim",
    "n_inner",
    "num_kv_shared_layers",
    "moe_num_experts",
}
OWN = {  # what one architecture needs besides; None: leave that field alone
    "cohere_compass_text": dict(
        rope_parameters={
            "full_attention": dict(rope_type="default", rope_theta=1e4),
            "sliding_attention": dict(rope_type="default", rope_theta=1e4),
        },
        layer_types=["sliding_attention", "full_attention"],
    ),
    "dbrx": dict(
        attn_config=dict(kv_n_heads=2, rope_theta=1e4, clip_qkv=8.0),
        ffn_config=dict(hidden_size=32, ffn_hidden_size=48, moe_num_experts=4, moe_top_k=2),
    ),
    "gpt_neo": dict(attention_types=[[["global", "local"], 1]]),
    "hunyuan_v1_dense": dict(head_dim=8),
    "hunyuan_v1_moe": dict(head_dim=8),
    "ministral": dict(head_dim=8),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"]),
    "mamba2": dict(num_heads=8),
    "zamba": dict(
        num_hidden_layers=3,
        layers_block_type=["linear_attention", "hybrid", "hybrid"],
        attention_hidden_size=64,
        attention_head_dim=16,
    ),
    "zamba2": dict(
        layers_block_type=["linear_attention", "hybrid"],
        num_key_value_heads=4,
        hybrid_layer_ids=[1],
        attention_hidden_size=64,
        attention_head_dim=16,
    ),
    "xmod": dict(languages=["en_XX"], default_language="en_XX"),
    "reformer": dict(
        axial_pos_shape=(16, 16),
        axial_pos_embds_dim=(8, 24),
        attn_layers=["local", "lsh"],
        attention_head_size=8,
        feed_forward_size=48,
        num_buckets=4,
        local_attn_chunk_length=16,
        lsh_attn_chunk_length=16,
        num_hidden_layers=None,
    ),
    "roc_bert": dict(shape_embed_dim=8, pronunciation_embed_dim=8, shape_vocab_size=20, pronunciation_vocab_size=20),
    "blt": dict(encoder_hash_byte_group_vocab=50),
    "blt_local_encoder": dict(hidden_size_global=32),
    "blt_local_decoder": dict(hidden_size_global=32),
    "dots3_note_vision_encoder": dict(per_layer_config={}),
    "dots3_note_audio_encoder": dict(per_layer_config={}),
    "zaya": dict(num_experts_per_tok=1),
}


def small(cls, **own):
    "A tiny configuration of a class, and of the configurations within it."
    default = cls()
    values, aliases = vars(default) | default.to_dict(), getattr(cls, "attribute_map", None) or {}
    known = {*values} - {*aliases}
    fields = {k: v for k, v in SIZES.items() if k in known and not (k in _MAY_BE_NONE and values.get(k) is None)}
    if "kv_lora_rank" in known and "num_key_value_heads" in known:
        fields["num_key_value_heads"] = 4  # compressed together: one each
    for k, within in vars(default).items():
        if isinstance(within, PreTrainedConfig) and within.model_type:
            fields[k] = small(type(within), **OWN.get(within.model_type, {}))
    return cls(**{k: v for k, v in (fields | own).items() if v is not None})


def config(name):
    return small(CONFIG_MAPPING[name], **OWN.get(name, {}))


def _weights(cfg):
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(cfg, dtype=torch.float32).parameters())


def model(name):
    "A random model of an architecture whose parts all matter. `ValueError` where it comes out large."
    cfg = config(name)
    if (n := _weights(cfg)) > LARGEST:
        raise ValueError(f"{n / 1e6:.0f} million weights where all fields known here are small")
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(cfg, dtype=torch.float32).eval()
    gen = torch.Generator().manual_seed(1)
    for p in made.requires_grad_(False).parameters():
        if p.ndim >= 2:
            p.normal_(0, 0.15, generator=gen)
        elif p.std() == 0 and p.numel() > 1:
            p.add_(torch.randn(p.shape, generator=gen) * 0.1)
    return made


# longer than every window
LONG = "We think the team can win the game and they were happy about the great story, 12 people left in 1980"
TEXTS = ("good", LONG, "The film was great", LONG[:40], "no")
TASK = SimpleNamespace(labels=(" great", " bad", " film"), suffix=" It was", max_text_tokens=128, strip=True)
PROMPT = " the film"


def _alone(lm, text):
    "Label scores of one text by the model's own call."
    ids = lm.bos_ids + lm.encode(PROMPT) + lm.encode(text) + lm.encode(TASK.suffix)
    out = copy.deepcopy(lm.model)(input_ids=torch.tensor([ids]), use_cache=False)
    return out.logits[0, -1, label_ids(lm, TASK)].float().log_softmax(-1)


@torch.no_grad()
def outcome(name):
    "One line on an architecture: the way in which it is scored, `refused: ...`, `not built: ...`, or `WRONG: ...`."
    try:
        made = model(name)
    except Exception as e:
        return f"not built: {type(e).__name__}: {' '.join(str(e).split())[:160]}"
    try:
        with redirect_stderr(StringIO()):
            lm = LM.wrap(made, tiny_tokenizer("bytelevel"), name=name)
            right = torch.stack([_alone(lm, t) for t in TEXTS])
            off = float((label_logprobs(lm, TASK, TEXTS, PROMPT) - right).abs().max())
            way = PrefixScorer(lm, label_ids(lm, TASK)).way
    except InputError as e:
        return "refused: " + str(e).removeprefix(f"{name}: ")
    except Exception as e:
        return f"WRONG: {type(e).__name__}: {' '.join(str(e).split())[:160]}"
    if float(right.std(0).mean()) < 1e-3:
        return "WRONG: the texts do not matter to it, so nothing was tested"
    return way if off < 1e-4 else f"WRONG: {off:.1e} off, {way}"


def kind(line):
    """What a line says without the words of another library, which change by themselves: the way, `not built`, or
    `refused` with its reason."""
    if line.startswith("not built"):
        return "not built"
    return line.partition(" (")[0].partition(";")[0]


def main(names):
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    write = "--write" in names
    names = [n for n in names if n != "--write"] or sorted(NAMES)
    found = {k: v for k, v in LISTED.items() if k in NAMES}
    for name in names:
        found[name] = outcome(name)
        print(f"{name:28}{found[name]}", flush=True)
        gc.collect()
        if write:
            LIST.write_text(
                json.dumps(dict(transformers=transformers.__version__, types=dict(sorted(found.items()))), indent=1)
                + "\n",
                encoding="utf-8",
            )


if __name__ == "__main__":
    main(sys.argv[1:])
