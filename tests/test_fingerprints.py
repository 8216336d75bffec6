"The search for an input format: counts against plain passes, equal ids once, planted formats found, faults named."

import json
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch

from hpt_nb.fingerprints import (
    COUNTS,
    EMPTY,
    SIZES,
    Format,
    count_of,
    distinct,
    explain,
    fingerprint,
    formats,
    paper_count,
)
from hpt_nb.scoring import PrefixScorer, evaluate, plain_logits, text_ids
from hpt_nb.store import InputError
from hpt_nb.tasks import Split, Task, task_format
from tiny import tiny_lm

CHOICES = ("text", "before", "join", "suffix", "end", "bos", "labels", "dtype", "limit")
TEXTS = [
    "the film was great .",
    " a bad movie, 12 people left ",
    "good",
    "it was the story .  ",
    "boring characters and a terrible plot in 1980",
    "caf\u00e9 business.",
    "not so good!",
    "a great day for sports ",
]
SPLIT = Split(
    tuple(f"{t}" if k < 2 else f"so {t}" for k in range(3) for t in TEXTS), tuple(i % 2 for i in range(3 * len(TEXTS)))
)
QUICK = dict(dtypes=["float32"], progress=False)


def task_of(**kw):
    return Task(
        **{
            **dict(
                name="toy",
                suffix=". It was",
                labels=(" great", " bad"),
                train=SPLIT,
                holdout=SPLIT,
                validation=SPLIT,
                max_text_tokens=24,
            ),
            **kw,
        }
    )


def format_of(row):
    return Format(*(row[c] for c in CHOICES))


def slow_count(lm, f, task, split=SPLIT):
    "One full pass a text, its ids put together here."
    lm, correct = lm.cast(f.dtype), 0
    bos = (list(lm.bos_ids) or [i for i in [lm.tokenizer.bos_token_id] if i is not None]) if f.bos else []
    labels = torch.tensor([lm.encode(w)[0] for w in f.labels])
    for text, y in zip(split.texts, split.labels):
        t = f.before + {"stripped": text.strip(), "as given": text, "spaced": text.strip() + " "}[f.text]
        s = f.suffix + (" " if f.end == "space" else "")
        room = task.max_text_tokens - (
            len(bos) + len(lm.encode(s)) + (len(lm.encode(" ")) if f.end == "own" else 0) if f.limit == "whole" else 0
        )
        ids = lm.encode(t)[:room] + lm.encode(s)
        if f.join == "whole" and len(lm.encode(t)) <= room:
            ids = lm.encode(t + s)
        if f.end == "own":
            ids = ids + lm.encode(" ")
        with torch.no_grad():
            got = plain_logits(lm, labels, lm.embeddings[torch.tensor(bos, dtype=torch.long)][None], [ids])
        correct += int(got.argmax(-1)) == y
    return correct


# ---- the paper's counts ----


def test_counts_are_those_of_the_protocol():
    assert {m: COUNTS["sst2", m] for m in EMPTY["sst2"]} == {
        "gpt2-large": 662,
        "gpt2-xl": 636,
        "opt-2.7b": 640,
        "llama-3.2-3b": 618,
        "llama-3.2-3b-instruct": 639,
        "llama-3.2-1b-instruct": 716,
    }
    assert {m: COUNTS["ag_news", m] for m in EMPTY["ag_news"]} == {
        "opt-1.3b": 2486,
        "gpt2-xl": 3984,
        "opt-2.7b": 3966,
        "llama-3.2-3b": 3285,
        "llama-3.2-3b-instruct": 3126,
        "llama-3.2-1b-instruct": 3126,
    }
    assert all(f"{100 * c / SIZES[t]:.2f}" == EMPTY[t][m] for (t, m), c in COUNTS.items())


def test_names_of_models():
    for name in ("openai-community/gpt2-xl", "gpt2-xl", "models/GPT2-XL/"):
        assert paper_count("sst2", name) == 636
    assert paper_count("sst2", "opt-1.3b") is None and paper_count("movie_snippets", "gpt2-xl") is None


@pytest.mark.parametrize(
    "percent, n, says", [("75.93", 872, "no counts"), ("50.0", 7600, "7 counts"), ("101.00", 50, "no counts")]
)
def test_a_percentage_must_name_one_count(percent, n, says):
    with pytest.raises(InputError, match=says):
        count_of(percent, n)


# ---- formats ----


def test_each_choice_multiplies():
    task, every = task_of(), formats(task_of())
    sizes = {c: len({getattr(f, c) for f in every}) for c in CHOICES}
    assert (
        sizes == dict(text=3, before=2, join=2, suffix=2, end=3, bos=2, labels=2, dtype=2, limit=1)
        and len(every) == len(set(every)) == 576
    )
    assert len(formats(task, limit=["text", "whole"])) == 2 * 576
    assert (
        {f.labels for f in every}
        == {(" great", " bad"), ("great", "bad")}
        == {f.labels for f in formats(task_of(labels=("great", "bad")))}
    )
    assert (
        {f.suffix for f in every} == {". It was", " It was"} == {f.suffix for f in formats(task_of(suffix=" It was "))}
    )
    assert formats(task, dtype=["float16"], text=["spaced"])[0] == Format(
        "spaced", "", "apart", ". It was", "", False, (" great", " bad"), "float16"
    )
    assert len({str(f) for f in every}) == len(every)  # a format is known by how it is shown


@pytest.mark.parametrize(
    "only, says",
    [
        (dict(joiner=[""]), "no choice 'joiner'"),
        (dict(text=["raw"]), "'raw' is no value"),
        (dict(bos=[]), "need a list"),
        (dict(limit=["prompt"]), "'prompt' is no value"),
        (dict(suffix=" It was"), "need a list"),
    ],
)
def test_wrong_choices(only, says):
    with pytest.raises(InputError, match=says):
        formats(task_of(), **only)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma3"])
def test_distinct_formats_differ_and_their_twins_do_not(arch):
    lm, task = tiny_lm(arch), task_of()
    pool, left, cannot = distinct(lm, task, TEXTS[:5], formats(task))

    @cache
    def written(f):
        return tuple(tuple(f.ids(lm, t, 24)) for t in TEXTS[:5])

    plain = dict(bos=False, labels=(), dtype="")  # these change no id of the text

    def received(f):
        return (tuple(f.bos_ids(lm)), written(replace(f, **plain)), tuple(lm.encode(w)[0] for w in f.labels), f.dtype)

    seen = [received(f) for f, *_ in left]
    assert len(seen) == len(set(seen))
    for f, *_, same in left:
        assert all(received(g) == received(f) for g in same)
    lost = sum(len(same) + 1 for *_, same in left)
    assert lost == 576 if not cannot else lost == 288
    assert len({tuple(s) for s in pool.seqs}) == len(pool)


# ---- the search ----


@pytest.mark.parametrize(
    "arch, planted",
    [
        (
            "gpt2",
            dict(
                text="spaced",
                before="",
                join="apart",
                suffix=" It was",
                end="space",
                bos=True,
                labels=(" great", " bad"),
            ),
        ),
        (
            "opt",
            dict(
                text="stripped", before=" ", join="whole", suffix=". It was", end="", bos=False, labels=("great", "bad")
            ),
        ),
        (
            "llama",
            dict(
                text="as given",
                before="",
                join="apart",
                suffix=". It was",
                end="own",
                bos=True,
                labels=(" great", " bad"),
            ),
        ),
        (
            "gemma3",
            dict(
                text="stripped",
                before="",
                join="whole",
                suffix=" It was",
                end="space",
                bos=False,
                labels=(" great", " bad"),
            ),
        ),
    ],
)
def test_a_planted_format_is_named(arch, planted):
    lm, task, planted = tiny_lm(arch), task_of(), Format(**planted, dtype="float32")
    want = slow_count(lm, planted, task)
    found = fingerprint(lm, task, want=want, **QUICK)
    assert found.distance.is_monotonic_increasing and found.distance[0] == 0
    hits = found[found.distance == 0]
    assert sum(format_of(r) == planted or str(planted) in r["also"] for _, r in hits.iterrows()) == 1
    assert found.attrs["want"] == want and f"{want} of {len(SPLIT)}" in explain(found)
    some = found.iloc[:: max(1, len(found) // 5)]
    for _, r in some.iterrows():
        assert r.correct == slow_count(lm, format_of(r), task), str(format_of(r))
    assert found.correct.nunique() > 2  # the choices matter, so the test can fail


def test_the_projects_own_format_is_the_first():
    lm, task = tiny_lm("opt"), task_of()
    first = formats(task, bos=[bool(lm.bos_ids)])[0]
    row = fingerprint(lm, task, choices={c: [getattr(first, c)] for c in CHOICES if c != "dtype"}, **QUICK)
    assert (
        len(row) == 1
        and row.correct[0] == evaluate(lm, task, SPLIT)["correct"]
        and row.accuracy[0] == row.correct[0] / len(SPLIT)
    )


@pytest.mark.parametrize("arch, most", [("opt", 24), ("gemma3", 24), ("llama", 24), ("gpt2", 10)])
def test_the_released_format_is_one_of_them(arch, most):
    "What a task in the released format scores, the search finds under the same description, cut texts included."
    lm, task = tiny_lm(arch), task_of(max_text_tokens=most, format="released")
    f = task_format(task, bos=bool(lm.bos_ids))
    assert str(f).startswith(
        f"{'BOS + ' if lm.bos_ids else ''}'TEXT. It was ', text as given, pieces apart, the limit counts all of it"
    )
    found = fingerprint(lm, task_of(max_text_tokens=most), **QUICK)  # its texts are as given: `task_of` strips none
    row = [r for _, r in found.iterrows() if format_of(r) == f or str(f) in r["also"]]
    assert len(row) == 1 and row[0].correct == evaluate(lm, task, SPLIT)["correct"] == slow_count(lm, f, task)
    if most == 10:
        whole = [list(lm.bos_ids) + ids for ids in text_ids(lm, task, SPLIT.texts)]
        assert max(map(len, whole)) == most and any(
            len(w) > most for w in text_ids(lm, task_of(max_text_tokens=most), SPLIT.texts)
        )


def test_equal_inputs_are_scored_once(monkeypatch):
    lm, task, scored = tiny_lm("gpt2"), task_of(), []
    whole = PrefixScorer.logits
    monkeypatch.setattr(
        PrefixScorer,
        "logits",
        lambda self, prefix, seqs, *a, **kw: (
            scored.extend((prefix.shape[1], tuple(s)) for s in seqs),
            whole(self, prefix, seqs, *a, **kw),
        )[1],
    )
    found = fingerprint(lm, task, Split(SPLIT.texts * 2, SPLIT.labels * 2), **QUICK)
    assert len(scored) == len(set(scored)) == found.attrs["inputs"]
    assert {n for n, _ in scored} == {0, 1}


def test_both_dtypes():
    lm, task = tiny_lm("llama3"), task_of()
    found = fingerprint(lm, task, choices=dict(text=["stripped"], bos=[True], before=[""]), progress=False)
    assert set(found.dtype) == {"float32", "bfloat16"} and lm.dtype == torch.float32
    one = found[found.dtype == "bfloat16"].iloc[0]
    assert abs(one.correct - slow_count(lm, format_of(one), task)) <= 2  # close calls may turn with the batch
    with pytest.raises(InputError, match="load it with dtype='float32'"):
        fingerprint(lm.cast("bfloat16"), task, progress=False)


def test_the_papers_count_is_looked_up_where_it_fits(monkeypatch):
    monkeypatch.setitem(SIZES, "sst2", len(SPLIT))
    few = dict(choices=dict(text=["stripped"], before=[""], join=["apart"], end=[""]), **QUICK)
    lm = tiny_lm("gpt2", name="openai-community/gpt2-large")
    assert fingerprint(lm, task_of(name="sst2"), **few).attrs["want"] == 662
    part = fingerprint(lm, task_of(name="sst2"), SPLIT.take(range(9)), **few)
    assert part.attrs["want"] is None and part.distance.isna().all() and "no count to compare" in explain(part)
    assert fingerprint(lm, task_of(name="sst2"), want=5, **few).attrs["want"] == 5


def test_label_words_that_start_alike_are_left_out():
    lm = tiny_lm("llama")
    bad = SimpleNamespace(labels=(" xxa", " xxb"))
    alike = lm.encode(bad.labels[0])[0] == lm.encode(bad.labels[1])[0]
    assert alike
    with pytest.raises(InputError, match="both start with"):
        fingerprint(lm, task_of(labels=bad.labels), choices=dict(labels=[bad.labels]), **QUICK)
    found = fingerprint(
        lm, task_of(), choices=dict(labels=[bad.labels, (" great", " bad")], text=["stripped"]), **QUICK
    )
    assert set(found.labels) == {(" great", " bad")} and "both start with" in found.attrs["cannot"][0]


def test_a_long_text_is_cut_like_everywhere():
    lm, task = tiny_lm("gpt2"), task_of(max_text_tokens=5)
    for f in formats(task, end=["", "space"]):
        assert len(f.ids(lm, "the film was great and " * 9, 5)) == 5 + len(lm.encode(f.suffix + (" " if f.end else "")))


@pytest.mark.parametrize(
    "split, kw, says", [(Split((), ()), {}, "no texts"), (Split(("",), (0,)), dict(suffix=""), "both empty")]
)
def test_nothing_to_score(split, kw, says):
    with pytest.raises(InputError, match=says):
        fingerprint(tiny_lm("gpt2"), task_of(**kw), split, **QUICK)


def test_explain_says_how_near():
    found = fingerprint(tiny_lm("gpt2"), task_of(), want=1000, choices=dict(text=["stripped"], before=[""]), **QUICK)
    top = int(found.correct.max())
    assert explain(found).startswith(
        f"No format gives 1000 of {len(SPLIT)}. The nearest"
    ) and f"{1000 - top} away" in explain(found)
    assert f"give {top} of" in explain(found, top) or f"gives {top} of" in explain(found, top)
    assert str(format_of(found.iloc[0])) in explain(found, top)
    json.dumps(found.drop(columns="distance").to_dict("records"))  # every value is one that JSON holds
