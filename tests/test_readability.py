"""What a prompt reads like: kinds against chapter 3's, shares against a plain count, ranks against pandas,
perplexity against a loop; with and without a word list."""

import math
import random
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from hpt_nb import readability
from hpt_nb.readability import (
    PARTS,
    UNKNOWN,
    describe,
    is_word,
    prompt_perplexities,
    prompt_perplexity,
    rank_correlation,
    token_parts,
)
from hpt_nb.store import InputError
from hpt_nb.vocab import token_kind
from tiny import ARCHS, tiny_lm

LIST = {"great", "good", "bad", "the", "was", "and", "film", "movie", "don't", "well"}

# ---- words ----


def test_wordfreq_knows_english():
    pytest.importorskip("wordfreq")
    for yes in ("movie", " mediocre", "Spirituality", "don't", "CRITICIZING", " a", "Kuwait"):
        assert is_word(yes), yes
    for no in ("uf", "LucMor", " hostedox", "mindim", "ress", "2009", "b", "Москва", "", "inki"):
        assert not is_word(no), no
    assert is_word("uf", zipf=3.0) and not is_word("film", zipf=7.0)


def test_wordfreq_describes_the_papers_prompts():
    pytest.importorskip("wordfreq")
    ours = ["create", " emotional", " fearful", " boring", " dull", " boring", " characters", " this", " an", " true"]
    assert describe(ours)["word"] == 1
    assert describe(["uf", " Garcia", "onde", "Moore", " mindim"])["word"] == 0.2


def test_missing_wordfreq_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    readability._frequency.cache_clear()
    readability._common.cache_clear()
    for ask in (lambda: is_word("film"), lambda: describe([" film"])):
        with pytest.raises(InputError, match="pip install wordfreq") as e:
            ask()
        assert "\n" not in str(e.value)
    assert describe([" film", "s", "12", None, b"\xff"], LIST)["word"] == 0.2  # a list of one's own needs no package
    assert describe([" 12", "!", None])["sign"] == 2 / 3  # no letters: nothing to look up
    readability._frequency.cache_clear()
    readability._common.cache_clear()


def test_import_needs_neither_torch_nor_wordfreq():
    code = (
        "import sys; from hpt_nb.readability import describe, rank_correlation; "
        "describe([' film', 'x'], {'film'}); rank_correlation([1,2,3],[3,1,2]); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "wordfreq", "matplotlib"} & set(loaded)


@pytest.mark.parametrize("listed", [set(LIST), frozenset(LIST), sorted(LIST), dict.fromkeys(LIST)])
def test_any_collection_is_a_list(listed):
    assert is_word(" Film", listed) and not is_word("films", listed)


# ---- kinds ----


def test_kinds_agree_with_chapter_3():
    """Of what is plain text, letters-or-signs is decided as `token_kind` decides it, over the whole vocabulary of
    each tokenizer."""
    every = {
        b.decode()
        for arch in ARCHS
        for b in tiny_lm(arch).token_bytes.values()
        if b.decode(errors="ignore").encode() == b
    }
    assert len(every) > 250
    for text in every:
        kind, (part,) = token_kind(text), token_parts([text], LIST)
        assert (part == "sign") == (
            kind in ("number", "punctuation", "space") or kind == "mixed" and not any(c.isalpha() for c in text)
        ), text
        if part == "word":
            assert kind in ("word", "piece") or "'" in text, text


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma3", "qwen2"])
def test_a_models_ids(arch):
    lm = tiny_lm(arch)
    ids = [*lm.encode("x great movie"), min(lm.special_ids), *lm.encode(" film 12")]
    parts = token_parts([lm.token_bytes.get(i) for i in ids], LIST)
    assert parts.count("special") == 1 and parts[len(lm.encode("x great movie"))] == "special"
    assert "word" in parts and parts[-1] == "sign"
    names = [
        lm.decode([i]) if lm.token_bytes.get(i) is None else lm.token_bytes[i].decode() for i in ids
    ]  # as a stored run has them
    assert token_parts(names, LIST) == parts


def test_broken_bytes_are_unknown():
    whole = "é".encode()
    assert token_parts([whole[:1], whole[1:], whole, UNKNOWN, "\ufffdx", b"\xff"], LIST) == [
        "unknown",
        "unknown",
        "piece",
        "unknown",
        "unknown",
        "unknown",
    ]


@pytest.mark.parametrize(
    "tokens, parts",
    [
        (["film", "film", " film"], ["word", "piece", "word"]),
        (["\n", "film"], ["sign", "word"]),
        ([" good ", "film"], ["word", "word"]),
        (["-", "film"], ["sign", "piece"]),
        ([None, "film"], ["special", "piece"]),
        ([" don't", " don", "'t"], ["word", "piece", "piece"]),
        (["film2", " film!"], ["piece", "piece"]),
        ([""], ["sign"]),
    ],
)
def test_where_words_start(tokens, parts):
    assert token_parts(tokens, LIST) == parts


def plain_read(tokens, words):
    "Slow: for each token with letters, walk out to both ends of its letter runs and look them up."
    text = "".join("\0" if t is None or t == UNKNOWN else t for t in tokens)
    letters = [c.isalpha() for c in text]
    inside = [
        c.isalpha() or c == "'" and 0 < i < len(text) - 1 and letters[i - 1] and letters[i + 1]
        for i, c in enumerate(text)
    ]
    hit, at = 0, 0
    for t in tokens:
        t, ok, some = "\0" if t is None or t == UNKNOWN else t, True, False
        for i in range(at, at + len(t)):
            if letters[i]:
                lo = hi = i
                while lo and inside[lo - 1]:
                    lo -= 1
                while hi + 1 < len(text) and inside[hi + 1]:
                    hi += 1
                some, ok = True, ok and is_word(text[lo : hi + 1], words)
        hit, at = hit + (some and ok), at + len(t)
    return hit / len(tokens)


def test_read_equals_the_walk():
    rng = random.Random(3)
    pool = [
        " good",
        "good",
        " fi",
        "lm",
        " ",
        "\n",
        "12",
        None,
        UNKNOWN,
        "don",
        "'",
        "t",
        "ть",
        " well-",
        "a",
        "!",
        " the film ",
    ]
    seen = set()
    for _ in range(2000):
        tokens = rng.choices(pool, k=rng.randint(1, 10))
        got = describe(tokens, LIST)
        assert got["read"] == pytest.approx(plain_read(tokens, LIST)), tokens
        assert sum(got[k] for k in PARTS) == pytest.approx(1) and got["tokens"] == len(tokens)
        seen.add(got["read"])
    assert len(seen) > 10


# ---- ranks ----


@pytest.mark.parametrize("seed", range(5))
def test_rho_is_pandas_spearman(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 6, 40) / 10, rng.normal(size=40).round(1)  # ties in both
    want = pd.Series(x).rank().corr(pd.Series(y).rank())
    assert rank_correlation(x, y, repeats=50)[0] == pytest.approx(want)


def test_interval_holds_rho_is_seeded_and_shrinks():
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    y = x + rng.normal(size=200)
    rho, low, high = rank_correlation(x, y)
    assert -1 <= low < rho < high <= 1 and low > 0
    assert rank_correlation(x, y) == (rho, low, high) == rank_correlation(list(x), pd.Series(y), groups=range(200))
    assert rank_correlation(x, y, seed=1)[1:] != (low, high)
    small = rank_correlation(x[:20], y[:20])
    assert small[2] - small[1] > 2 * (high - low)
    narrow = rank_correlation(x, y, level=0.5)
    assert narrow[2] - narrow[1] < 0.6 * (high - low)


def test_groups_widen_the_interval_where_rows_share():
    rng = np.random.default_rng(4)
    g = np.repeat(np.arange(10), 5)
    x, y = rng.normal(size=10)[g] + 0.1 * rng.normal(size=50), rng.normal(size=10)[g] + 0.1 * rng.normal(size=50)
    alone, rows = rank_correlation(x, y), rank_correlation(x, y, groups=[f"row {i}" for i in g])
    assert rows[0] == alone[0] and rows[2] - rows[1] > 1.5 * (alone[2] - alone[1])


def test_unequal_groups_are_drawn_whole():
    "Two groups of 1 and 9: a draw has 2, 10 or 18 prompts, so the interval's ends are those of three possible draws."
    x, y = np.arange(10.0), np.array([9, 0, 1, 2, 3, 4, 5, 6, 7, 8.0])
    g = [0] + [1] * 9
    rho, low, high = rank_correlation(x, y, groups=g)
    assert (low, high) == (-1, 1)  # the lone prompt drawn twice has no rho: it counts at both ends
    assert rho == pytest.approx(1 - 6 * ((x - y) ** 2).sum() / 990)


@pytest.mark.parametrize(
    "args, says",
    [
        (([1, 2], [1, 2]), "2 pairs"),
        (([1, 2, 3], [1, 2]), "as many numbers"),
        (([[1, 2, 3]], [[1, 2, 3]]), "as many numbers"),
        (([1, 2, math.inf], [1, 2, 3]), "infinite"),
        (([1, 2, 3], [1, 2, 3], [0, 1]), "2 group labels"),
        (([1, 2, 3], [1, 2, 3], [0, 0, 0]), "in one group"),
    ],
)
def test_rank_faults(args, says):
    with pytest.raises(InputError, match=says):
        rank_correlation(*args)


def test_no_spread_no_rho():
    assert all(map(math.isnan, rank_correlation([1, 2, 3], [5, 5, 5])))


# ---- perplexity ----


@pytest.mark.parametrize("arch", ["gpt2", "opt", "llama", "gemma3"])
def test_perplexity_equals_the_loop(arch):
    "One token at a time, each after all before it."
    lm = tiny_lm(arch)
    ids = lm.encode("a great film and the story")
    nll = []
    for j in range(len(ids)):
        before = [*lm.bos_ids, *ids[:j]]
        if before:
            with torch.no_grad():
                p = lm.model(input_ids=torch.tensor([before])).logits[0, -1].double().softmax(-1)
            nll.append(-math.log(p[ids[j]]))
    assert len(nll) == len(ids) - (not lm.bos_ids)
    assert prompt_perplexity(lm, ids) == pytest.approx(math.exp(sum(nll) / len(nll)), rel=1e-4)
    assert prompt_perplexity(lm, torch.tensor(ids)) == prompt_perplexity(lm, ids)


def test_perplexity_faults():
    lm, led = tiny_lm("gpt2"), tiny_lm("llama")
    for model, ids, says in (
        (lm, [5], "at least 2"),
        (led, [], "at least 1"),
        (lm, [5, lm.n_rows], "outside"),
        (lm, [-1, 5], "outside"),
    ):
        with pytest.raises(InputError, match=says):
            prompt_perplexity(model, ids)
    assert prompt_perplexity(led, [5]) > 1


ROPES = [
    None,
    dict(rope_type="dynamic", factor=4.0, rope_theta=1e4),
    dict(rope_type="yarn", factor=2.0, rope_theta=1e4),
]


@pytest.mark.parametrize("rope", ROPES, ids=lambda r: r and r["rope_type"])
def test_perplexity_does_not_feel_what_was_read_before(rope):
    "A dynamic rotary embedding keeps the frequencies of the longest input so far."
    lm = tiny_lm("llama", max_position_embeddings=16, **(dict(rope_parameters=rope) if rope else {}))
    prompt, long = [30 + i % 9 for i in range(20)], [40 + i % 7 for i in range(60)]
    alone = prompt_perplexity(lm, prompt)
    prompt_perplexity(lm, long)
    assert prompt_perplexity(lm, prompt) == alone
    assert prompt_perplexities(lm, [prompt, prompt[::-1]])[0] == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_a_perplexity_is_a_number_or_an_error_that_names_the_prompt(value):
    lm = tiny_lm("llama")
    lm.model.get_input_embeddings().weight.data[37] = value
    for ask in (lambda ids: prompt_perplexity(lm, ids), lambda ids: prompt_perplexities(lm, [[30, 31, 32], ids])[1]):
        try:
            assert ask([30, 37, 31]) >= 1
        except InputError as e:
            assert "has no perplexity in float32" in str(e) and value != 1e38
        assert ask([30, 31, 33]) >= 1
