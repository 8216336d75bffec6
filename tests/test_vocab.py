"""Eq. 2 against a plain reading of it, for all families of tokenizers; and the vocabulary's file against damage."""

import itertools
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings, strategies as st

from hpt_nb.models import token_text
from hpt_nb.store import InputError
from hpt_nb.vocab import Vocab, common_vocab, ids_by_text, is_word, token_kind, whole_vocab, KINDS as TOKEN_KINDS
from tiny import KINDS, WORDS, tiny_lm


def lm_of(kind, seed=0):
    return tiny_lm("gpt2", seed, tokenizer=kind, name=f"{kind}-{seed}")


def plain(lms):
    "Eq. 2, read plainly: the texts that stand in every model's table of ordinary tokens."
    return set.intersection(*({token_text(b) for b in lm.token_bytes.values()} for lm in lms)) - {None}


def toy(name, tokens):
    "A stand-in for a model that holds these byte strings."
    return SimpleNamespace(
        name=name,
        token_bytes=dict(enumerate(tokens)),
        info=dict(name=name),
        special_ids=set(),
        encode=lambda text: [tokens.index(text.encode())],
        tokenizer=SimpleNamespace(convert_ids_to_tokens=lambda i: repr(tokens[i])),
    )


@pytest.mark.parametrize(
    "kinds",
    [*itertools.combinations(KINDS, 2), ("bytelevel", "sentencepiece", "gemma"), ("neox", "unigram", "qwen")],
    ids="+".join,
)
def test_equals_the_plain_reading(kinds):
    lms = [lm_of(k) for k in kinds]
    v = common_vocab(lms)
    assert set(v.tokens) == plain(lms) and len(v.tokens) == len(set(v.tokens))
    for lm in lms:
        ids = v.ids_for(lm.name).tolist()
        assert [lm.token_bytes[i].decode() for i in ids] == v.tokens
        assert len(set(ids)) == len(ids) and not set(ids) & (lm.special_ids | lm.nameless_ids)
    assert v.ids[0].tolist() == sorted(v.ids[0].tolist())


def test_byte_level_and_sentencepiece_agree_on_words():
    v = common_vocab([tiny_lm("gpt2"), tiny_lm("llama"), tiny_lm("gemma3")])
    assert (
        set(WORDS) <= set(v.tokens)
        and v.ids.shape == (3, len(v))
        and v.models == ["tiny-gpt2-0", "tiny-llama-0", "tiny-gemma3-0"]
    )
    assert "\n" in v.tokens and " " in v.tokens


SPACED = (
    "bytelevel",
    "opt",
    "tiktoken",
    "qwen",
    "neox",
    "sentencepiece",
    "gemma",
    "unigram",
)  # their words carry a space


def plain_words(lms):
    "Wu et al.'s words, read plainly: `w` for which a space and `w` are one token's bytes in each model."

    def own(lm):
        return {b[1:] for b in lm.token_bytes.values() if b.startswith(b" ")}

    shared = set.intersection(*map(own, lms))

    def text(w):
        try:
            return w.decode()
        except UnicodeDecodeError:
            return " "  # part of a character

    return {" " + text(w) for w in shared if text(w) and text(w) == text(w).strip()}


@pytest.mark.parametrize(
    "kinds",
    [*itertools.combinations(SPACED, 2), ("bytelevel", "sentencepiece", "gemma"), ("neox", "unigram", "qwen")],
    ids="+".join,
)
def test_words_are_a_space_and_one_word_in_each_model(kinds):
    lms = [lm_of(k) for k in kinds]
    every, words = common_vocab(lms), common_vocab(lms, tokens="words")
    assert set(words.tokens) == plain_words(lms) >= set(WORDS) & set(every.tokens) and 0 < len(words) < len(every)
    assert words.tokens == [t for t in every.tokens if t in set(words.tokens)]  # the same order, nothing new
    where = [every.tokens.index(t) for t in words.tokens]
    assert (
        torch.equal(words.ids, every.ids[:, where])
        and words.config["tokens"] == "words"
        and "tokens" not in every.config
    )
    for lm in lms:
        for i in words.ids_for(lm.name).tolist():
            assert (
                lm.token_bytes[i][:1] == b" " and lm.token_bytes[i].decode().strip() == lm.token_bytes[i][1:].decode()
            )


@pytest.mark.parametrize("kind", ["wordpiece", "suffix"])
def test_words_of_a_tokenizer_that_keeps_no_space_are_refused(kind):
    for lms in ([lm_of("bytelevel"), lm_of(kind)], [lm_of(kind), lm_of("gemma")]):
        with pytest.raises(InputError, match=f"{kind}-0: the words of its tokenizer carry no space") as e:
            common_vocab(lms, tokens="words")
        assert "\n" not in str(e.value)
        assert len(common_vocab(lms))


def test_unknown_tokens_are_refused():
    for bad in ("word", "", None, ["words"]):
        with pytest.raises(InputError, match="need one of any, words"):
            common_vocab([lm_of("bytelevel"), lm_of("gemma")], tokens=bad)


@given(st.text(max_size=4))
@settings(max_examples=300, deadline=None)
def test_a_word_is_a_space_and_what_stripping_leaves(text):
    assert is_word(text) == any(text == " " + w for w in (text.strip(), text[1:]) if w and w == w.strip())


@given(
    st.lists(st.lists(st.binary(min_size=1, max_size=2), min_size=1, max_size=40, unique=True), min_size=2, max_size=4),
    st.randoms(),
)
@settings(max_examples=60, deadline=None)
def test_any_vocabularies_in_any_order(vocabularies, rng):
    lms = [toy(f"m{i}", t) for i, t in enumerate(vocabularies)]
    want = plain(lms)
    if not want:
        with pytest.raises(InputError, match="no token is common"):
            common_vocab(lms)
        return
    other = rng.sample(lms, len(lms))
    a, b = common_vocab(lms), common_vocab(other)
    assert set(a.tokens) == set(b.tokens) == want
    as_dict = lambda v, lm: dict(zip(v.tokens, v.ids_for(lm.name).tolist()))
    assert all(as_dict(a, lm) == as_dict(b, lm) for lm in lms)


@pytest.mark.parametrize("kind,text", [("gemma", "\n"), ("neox", "  "), ("neox", "    ")])
def test_a_text_held_twice_gets_the_id_that_the_tokenizer_uses(kind, text):
    lm = lm_of(kind)
    twice = [i for i, b in lm.token_bytes.items() if b == text.encode()]
    if kind == "gemma":
        assert len(twice) == 2  # the added token and <0x0A>
    assert ids_by_text(lm)[text] in twice and lm.encode(text) == [ids_by_text(lm)[text]]


def test_one_model_twice_and_two_models_of_one_name():
    lm = lm_of("bytelevel")
    v = common_vocab([lm, lm])
    assert v.models == ["bytelevel-0", "bytelevel-0#2"] and torch.equal(v.ids[0], v.ids[1])
    assert not set(lm.special_ids) & set(v.ids[0].tolist())
    with pytest.raises(InputError, match="both called 'x'"):
        common_vocab([tiny_lm("gpt2", name="x"), tiny_lm("gemma3", name="x")])


def test_whole_vocabulary_names_specials_and_leaves_padding_out():
    lm = tiny_lm("opt")
    v = whole_vocab(lm)
    assert {"<pad>", "</s>", "madeupword0000", "{unknown}"} <= set(v.tokens)
    assert set(v.ids[0].tolist()) == set(range(lm.n_rows)) - lm.nameless_ids and lm.nameless_ids


def scored(c=30, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Vocab(
        [f" w{i}" for i in range(c)],
        torch.stack([torch.arange(c), torch.arange(c) + 100]),
        ["a/b", "c"],
        (torch.randint(0, 5, (c,), generator=g) / 5),
        dict(kind="t"),
    )


@given(st.integers(0, 10), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_top_is_the_best_and_sample_is_a_subset(seed, s):
    v = scored(seed=seed)
    J, pos = v.J.tolist(), {t: i for i, t in enumerate(v.tokens)}
    assert v.top(s).tokens == [v.tokens[i] for i in sorted(range(len(v)), key=lambda i: (-J[i], i))[:s]]
    drawn = v.sample(s, seed)
    at = [pos[t] for t in drawn.tokens]
    assert (
        at == sorted(set(at))
        and len(at) == s
        and torch.equal(drawn.ids, v.ids[:, at])
        and torch.equal(drawn.J, v.J[at])
    )
    assert v.sample(s, seed).hash == drawn.hash


def test_samples_of_different_seeds_differ():
    assert len({scored().sample(10, seed).hash for seed in range(20)}) > 15


def test_file_is_best_first_and_comes_back_whole(tmp_path):
    v, path = scored(), tmp_path / "v.parquet"
    v.save(path)
    table = pd.read_parquet(path)
    assert (
        list(table) == ["rank", "token", "J", "id:a/b", "id:c"]
        and table["rank"].tolist() == list(range(1, 31))
        and table["J"].is_monotonic_decreasing
    )
    back = Vocab.load(path)
    assert (
        back.hash == v.top(30).hash
        and torch.equal(back.J, v.top(30).J)
        and back.config == v.config
        and back.models == v.models
    )
    assert [p.name for p in tmp_path.iterdir()] == ["v.parquet"]
    assert back.save(tmp_path / "w.parquet").read_bytes() == path.read_bytes()


def test_unscored_file_keeps_its_order(tmp_path):
    v = common_vocab([lm_of("bytelevel"), lm_of("gemma")])
    back = Vocab.load(v.save(tmp_path / "v.parquet"))
    assert back.J is None and back.hash == v.hash and back.tokens == v.tokens
    with pytest.raises(InputError, match="no scores J"):
        back.top(3)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_damage_goes_unnoticed(tmp_path_factory, data):
    path = scored().save(tmp_path_factory.mktemp("v") / "v.parquet")
    whole, good = path.read_bytes(), Vocab.load(path)
    at = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(data.draw(st.sampled_from([whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]])))
    try:
        got = Vocab.load(path)
    except InputError as e:
        assert "\n" not in str(e)
    else:
        assert (got.hash, got.J.tolist(), got.config) == (
            good.hash,
            good.J.tolist(),
            good.config,
        )  # a byte that carries nothing


@pytest.mark.parametrize(
    "edit,says",
    [
        (lambda t: t.assign(J=t["J"] + 0.1), "does not match its checksum"),
        (lambda t: t.iloc[1:], "does not match its checksum"),
        (lambda t: t.drop(columns="J"), "not a vocabulary of ours"),
        (lambda t: t.drop(columns="id:c"), "not a vocabulary of ours"),
    ],
)
def test_edited_files_are_refused(tmp_path, edit, says):
    path = scored().save(tmp_path / "v.parquet")
    old = pq.read_table(path)
    new = edit(old.to_pandas())
    pq.write_table(pa.Table.from_pandas(new, preserve_index=False).replace_schema_metadata(old.schema.metadata), path)
    with pytest.raises(InputError, match=says):
        Vocab.load(path)


def test_foreign_files_are_refused(tmp_path):
    pd.DataFrame(dict(rank=[1], token=["a"], J=[1.0])).to_parquet(tmp_path / "f.parquet")
    with pytest.raises(InputError, match="not a vocabulary of ours"):
        Vocab.load(tmp_path / "f.parquet")
    (tmp_path / "t.parquet").write_text("rank,token\n1,a\n")
    with pytest.raises(InputError, match="not a whole parquet file"):
        Vocab.load(tmp_path / "t.parquet")
    with pytest.raises(InputError, match="no such vocabulary file"):
        Vocab.load(tmp_path)


@given(st.text(min_size=1, max_size=5))
@settings(max_examples=200, deadline=None)
def test_every_text_has_a_kind(text):
    assert token_kind(text) in TOKEN_KINDS
