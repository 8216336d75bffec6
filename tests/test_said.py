"""What carries nothing is not scored, what is read otherwise is said: label words, templates, prompts on every kind
of tokenizer."""

from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings, strategies as st
from tokenizers import normalizers

from hpt_nb import base
from hpt_nb.practice import reads_as_tuned
from hpt_nb.scoring import evaluate, label_ids, prompt_to_ids, read_text
from hpt_nb.store import InputError
from hpt_nb.tasks import Split, Task
from hpt_nb.transfer import certify, transfer
from tiny import KINDS, tiny_lm

LMS = {kind: tiny_lm("llama", 1, tokenizer=kind, name=kind) for kind in KINDS}
LMS["lower"] = tiny_lm("llama", 1, tokenizer="unigram", name="lower")
LMS["lower"].tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
LMS["nfkc"] = tiny_lm("llama", 1, tokenizer="bytelevel", name="nfkc")
LMS["nfkc"].tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
WORDS = (
    " great",
    " bad",
    "great",
    " \u7cdf",
    " \uc88b\uc544\uc694",
    " \U0001f44e",
    " \u0434\u0430",
    "\u0434\u0430",
    " caf\u00e9",
    " 7",
    " !",
    "\u00a0x",
    "\u200bx",
    " x",
    "\u3000x",
    " <unk>",
    " </s>",
)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(base, "_SAID", {})


def words_of(lm, *labels, suffix=" It was"):
    return label_ids(lm, SimpleNamespace(labels=labels, suffix=suffix))


# ---- label words ----


@pytest.mark.parametrize("kind", LMS)
@pytest.mark.parametrize("word", WORDS)
def test_a_first_token_that_says_nothing_is_refused(kind, word):
    "Judged slowly: the token is one of the tokenizer's special ones, or its text is blank."
    lm = LMS[kind]
    first = lm.tokenizer(word, add_special_tokens=False, split_special_tokens=True)["input_ids"][0]
    own = lm.tokenizer.decode([first])
    nothing = first in lm.tokenizer.all_special_ids or not own.strip(" \u3000\u00a0\u200b") and "\ufffd" not in own
    try:
        got = words_of(lm, word)
    except InputError as e:
        assert (
            nothing and word in str(e).encode().decode() + word and "starts with token" in str(e) and "\n" not in str(e)
        ), (kind, word, first)
    else:
        assert not nothing and got.tolist() == [first], (kind, word, first)


@pytest.mark.parametrize(
    "labels, suffix, says",
    [
        ((" bad", " great"), " It was", ""),
        (("bad", "great"), " It was", "label word 'bad' has no space before it (and 1 more)"),
        ((" bad", "great"), " It was", "label word 'great' has no space before it:"),
        (("bad", "great"), " It was ", "the template ' It was ' ends in white space"),
        ((" bad", " great"), " It was ", "ends in white space"),
        ((" bad", " great"), " It was\n", "ends in white space"),
        ((" bad", " great"), "\u00a0", "ends in white space"),
        (("bad", "great"), ' It was "', ""),
        (("bad", "great"), " (", ""),
        (("bad", "great"), " sentiment/", ""),
        (("bad", "great"), "", "has no space before it"),
        ((" bad", " great"), "", ""),
        (("\u597d", "\u9ad8"), "\u8fd9\u662f", ""),
        (("good", "the"), "\u2014", ""),
    ],
)
def test_spaces_are_said(capsys, labels, suffix, says):
    words_of(LMS["bytelevel"], *labels, suffix=suffix)
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == bool(says), err
    words_of(LMS["bytelevel"], *labels, suffix=suffix)
    assert capsys.readouterr().err == ""  # once


@pytest.mark.parametrize("kind", LMS)
def test_spaces_are_said_where_they_change_a_token(kind, capsys):
    "A tokenizer that puts a space before each text reads both alike."
    lm = LMS[kind]
    changes = lm.encode("great")[0] != lm.encode(" great")[0]
    words_of(lm, "great")
    assert ("no space before it" in capsys.readouterr().err) == changes
    words_of(lm, " great")
    assert capsys.readouterr().err == ""


# ---- prompts ----

TEXT = st.lists(
    st.sampled_from([*" aegrtfilmGR.!\n\u2581\ufb01\u6620\u00e9", "great", " film", "</s>", "<unk>"]), max_size=8
).map("".join)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(LMS)), TEXT)
@example("wordpiece", "\u6620\u753b\u306e")
@example("wordpiece", " Great FILM")
@example("lower", " Great FILM")
@example("nfkc", " \ufb01lm")
@example("gemma", "a\u2581b")
def test_a_certificate_holds_the_text_that_comes_back_against_the_one_that_went_in(kind, text):
    lm = LMS[kind]
    cert, back = certify(lm, text), lm.decode(lm.encode(text))
    assert cert["text"] == text and cert["ids"] == lm.encode(text)
    assert cert["agrees"] == (
        back.removeprefix(" ") == text.removeprefix(" ") and not set(cert["ids"]) & set(lm.special_ids)
    ), (kind, text, back)
    if lm.tokenizer.unk_token_id in cert["ids"]:
        assert cert["unknown"] > 0 and not cert["agrees"]
    by_ids = certify(lm, cert["ids"])  # of ids: do they come back?
    assert by_ids["agrees"] == (lm.encode(back) == cert["ids"]) and by_ids["text"] == back


@pytest.mark.parametrize(
    "kind, prompt, says",
    [
        ("wordpiece", " \u6620\u753b", "wordpiece reads the prompt ' 映画' as '[UNK]', 1 of 1 tokens unknown to it"),
        ("lower", " Great", "lower reads the prompt ' Great' as 'great';"),
        ("bytelevel", " \u6620\u753b \U0001f44e", ""),
        ("sentencepiece", " \u6620\u753b", ""),
        ("suffix", "a\nb", "reads the prompt"),
        ("unigram", " great film", ""),
        ("sentencepiece", "great", ""),
    ],
)
def test_every_way_to_a_score_says_what_is_read(capsys, kind, prompt, says):
    lm = LMS[kind]
    split = Split(("a film", "the bad"), (0, 1))
    task = Task("t", " was", (" great", " bad"), split, split, split)
    ways = [
        lambda: evaluate(lm, task, split, prompt),
        lambda: prompt_to_ids(lm, prompt),
        lambda: read_text(lm, prompt),
        lambda: certify(lm, prompt),
    ]
    if kind != "bytelevel":
        ways.append(
            lambda: transfer(LMS["bytelevel"], LMS["bytelevel"].encode(prompt), [lm], task, split)
        )  # a model is no target of itself
    for work in ways:
        base._SAID.clear()
        work()
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == bool(says), err


def test_transfer_says_of_a_target_whether_the_text_came_back():
    lm, split = LMS["bytelevel"], Split(("a film", "the bad"), (0, 1))
    task = Task("t", " was", (" great", " bad"), split, split, split)
    rows = transfer(lm, lm.encode(" Great film"), [LMS["lower"], LMS["sentencepiece"]], task)
    assert [r["agrees"] for r in rows] == [True, True, False, True]


def test_two_special_tokens_are_no_reading():
    "A source's special token, and the sign for what a target does not know: both have no bytes."
    source, target = LMS["opt"], LMS["wordpiece"]
    ids = [*source.encode(" great"), source.tokenizer.convert_tokens_to_ids("madeupword0000")]
    assert (
        len(target.encode(source.decode(ids))) >= 2
        and not reads_as_tuned(source, ids, target)
        and not reads_as_tuned(source, ids, source)
    )
    assert reads_as_tuned(source, source.encode(" great film"), LMS["bytelevel"]) and reads_as_tuned(
        source, source.encode(" great film"), source
    )
