"""A toy results folder for the chapters of the report: two "models", eight texts, two seeds, hits chosen by hand.

And, for the chapters on statistics, two invented methods, and an invented study, with known skill.
"""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from hpt_nb.store import Store

HITS = {  # row: hits on the source, then on the target; a string for each seed, a digit for each text, 1 = right
    "Empty": [["11110000"], ["11100000"]],
    "Random": [["10101010", "11110000"], ["10000001", "11000000"]],
    "PEZ": [["11111000", "11111100"], ["11110000", "11111000"]],
    "Ours": [["11111110", "11111100"], ["11111100", "11111100"]],
}
MADE = dict(device="cpu", commit="c0ffee")


def toy_eval(store, row, seed, target, role, mode, hits, /, **changes):
    "Store one scored prompt."
    tuned = row not in ("Empty", "Random")
    cfg = dict(task="toy_reviews", task_hash="t0", split="validation", n=len(hits), source="toy-a")
    cfg |= dict(counterpart="toy-b" if row == "Ours" else None, row=row, seed=seed)
    cfg |= dict(steps=20 if tuned else None, method="pez" if tuned else None, target=target, role=role, mode=mode)
    cfg |= dict(prompt_ids=[] if row == "Empty" else [1, 2], dtype="float32")
    labels = "01" * (len(hits) // 2)
    predictions = "".join(y if h == "1" else str(1 - int(y)) for h, y in zip(hits, labels))
    result = dict(correct=hits.count("1"), n=len(hits), predictions=predictions, labels=labels, wall_s=0.5)
    store.put("eval", cfg | changes, result, MADE | dict(wall_s=0.5))


def toy_tune(store, row, seed, text, /, **changes):
    "Store one tuning run."
    kind = dict(kind="stable", s=4, seed=None, hash="v0")
    vocab = kind if row == "Ours" else dict(kind="whole", s=None, seed=None, hash="w0")
    cfg = dict(task="toy_reviews", task_hash="t0", source="toy-a", counterpart="toy-b" if row == "Ours" else None)
    cfg |= dict(row=row, method="pez", vocab=vocab, seed=seed, steps=20, batch=4, lr=0.3, n_tokens=2)
    cfg |= dict(dtype="float32", eval_every=10, holdout_n=8)
    curve = dict(step=[0, 10, 20], loss=[0.9, 0.7, 0.6 - 0.1 * seed], holdout=[0.5, 0.5, 0.625 + 0.125 * seed])
    result = dict(prompt_ids=[1, 2], prompt_text=text, tokens=[text, "{unknown}"], best_step=20, runs_in_pass=2)
    result |= dict(forward_tokens=640, wall_s=3.0, curve=curve)
    store.put("tune", cfg | changes, result, MADE | dict(wall_s=3.0))


def toy_vocab(store):
    "Store one scored vocabulary of eight tokens."
    tokens = [" in", " the", " film", " of", "ing", "fal", "\x1b[31m", "\u202e"]
    J = pd.DataFrame({"rank": range(8), "token": tokens, "J": [0.9, 0.8, 0.8, 0.6, 0.4, 0.2, 0.1, 0.0]})
    path = store.file("stable-v0.parquet")
    path.parent.mkdir(exist_ok=True)
    J.to_parquet(path)
    store.put(
        "vocab",
        dict(models=["toy-a", "toy-b"], k=3, h=4, repeats=2, seed=0, include_self=True),
        dict(c=len(J), file=path.name, J_quantiles=list(np.quantile(J.J, np.linspace(0, 1, 21)))),
        MADE | dict(wall_s=2.0),
    )


def toy_store(path):
    "The whole toy folder: scored prompts, tuning runs, one vocabulary."
    store = Store(path)
    for row, (source, target) in HITS.items():
        for i, (a, b) in enumerate(zip(source, target)):
            seed = None if row == "Empty" else i
            for mode in ("ids", "text"):
                toy_eval(store, row, seed, "toy-a", "original", mode, a)
            toy_eval(store, row, seed, "toy-b", "transfer", "text", b)
            if row in ("PEZ", "Ours"):
                toy_tune(store, row, seed, f" good{i}")
    toy_vocab(store)
    return store


def toy_neighbors(store):
    "The nearest tokens of two words: one whose two nearest are the same in both models, one whose are not."
    near = dict(
        stable={"toy-a": [[" one", 0.9], [" two", 0.8]], "toy-b": [[" two", 0.7], [" one", 0.6]]},
        unstable={"toy-a": [["ing", 0.3], [" one", 0.2]], "toy-b": [["fal", 0.4], ["\x1b", 0.1]]},
    )
    one = lambda i, what: dict(what=what, token=f" {what}", rank=i + 1, J=0.9 - 0.8 * i, near=near[what])
    examples = [one(i, what) for i, what in enumerate(near)]
    store.put("neighbors", dict(models=["toy-a", "toy-b"], k=2), dict(examples=examples), dict(device="cpu"))
    return store


def toy_methods(path):
    "The toy folder with two more methods: GCG, which takes its second model along, and prompt tuning."
    store = toy_store(path)
    for row in ("PEZ", "Ours"):
        for seed, hits in enumerate(("11111110", "11111111")):
            own = dict(method="gcg", steps=5, counterpart="toy-b")
            toy_tune(store, row, seed, f" gcg{seed}", second_id="b0", **own)
            _toy_scores(store, row, seed, hits, own)
        for seed, hits in enumerate(("11100000", "11110000")):
            own = dict(method="soft", steps=20)
            toy_tune(store, row, seed, f" soft{seed}", **own)
            _toy_scores(store, row, seed, hits, own)
            for target, role in (("toy-a", "original"), ("toy-b", "transfer")):
                toy_eval(store, row, seed, target, role, "vectors", "11111111", **own)
    return store


def _toy_scores(store, row, seed, hits, own):
    for target, role, mode in (
        ("toy-a", "original", "ids"),
        ("toy-a", "original", "text"),
        ("toy-b", "transfer", "text"),
    ):
        toy_eval(store, row, seed, target, role, mode, hits, **own)


def toy_two(df):
    "The results of the toy folder as if PEZ and Ours had been tuned in three ways."
    tuned = df[df.row.isin(("PEZ", "Ours"))]
    return pd.concat([df, tuned.assign(steps=40), tuned.assign(method="pez-reprojected")], ignore_index=True)


def toy_merged(df):
    "The results as if the text of one prompt of Ours gave other ids, which the source reads as something else."
    out = df.copy()
    mine = (out.row == "Ours") & (out.seed == 1) & (out.role == "original") & (out["mode"] == "text")
    at = out.index[mine][0]
    out.at[at, "prompt_ids"], out.at[at, "accuracy"] = [7], 0.5
    return out


PEZ = dict(steps=20, batch=4, lr=0.3, n_tokens=2, eval_every=10, holdout_n=8)


def toy_preset(
    tasks=("toy_reviews",),
    rows=tuple(HITS),
    seeds=(0, 1),
    methods=("pez",),
    n=8,
    dtype="float32",
    k=3,
    s=4,
    source="toy-a",
    others=("toy-b",),
    compiled=False,
    **tuning,
):
    "The preset that would make the toy folder; the arguments change one thing."
    vocab = SimpleNamespace(k=k, h=4, repeats=2, seed=0, include_self=True, s=s)
    of = SimpleNamespace(model=source, counterparts=others, targets=others, tasks=())
    fields = dict(name="toy", tasks=tasks, rows=rows, seeds=seeds, tuned_rows=rows, sources=(of,), vocab=vocab)
    fields |= dict(scoring_dtype="float32", tuning_dtype=dtype, holdout=0)
    fields |= dict(rules_for=lambda task: SimpleNamespace(config=dict))
    asked = dict(
        all_rows=lambda task: list(rows),
        vocab_for=lambda row: vocab,
        n_for=lambda task: n,
        seeds_for=lambda task: seeds,
        methods_for=lambda task: methods,
        config_for=lambda method, task, row: SimpleNamespace(**PEZ | tuning),
        budgets_for=lambda task, method, row: ((PEZ | tuning)["steps"],),
        compiles=lambda task, method, row: compiled,
    )
    return SimpleNamespace(**fields, **asked)


def simulated_auc(rng, S, T, seed_sd, gain=(1.3, 1.1)):
    "Two methods: skill varies over seeds, texts have a difficulty that both share."
    labels, hard = np.tile([0, 1], T // 2), rng.normal(size=T)

    def arm(mean):
        margin = (mean + seed_sd * rng.normal(size=(S, 1))) * (labels == 0) + hard + 0.8 * rng.normal(size=(S, T))
        return np.stack([margin / 2, -margin / 2], -1)

    return arm(gain[0]), arm(gain[1]), labels


MODELS = ("a", "b", "c")


def invented_score(rng, texts, skill, lean):
    "(n, 2) log-probabilities: the class, as far as this prompt's skill goes; a lean; and what makes a text hard."
    hard, labels = texts
    margin = skill * np.where(labels == 0, 1, -1) + hard + 0.5 * rng.normal(size=len(labels)) - lean
    return np.stack([-np.logaddexp(0, -margin), -np.logaddexp(0, margin)], 1)


def _invented_row(source, target, row, s, labels, held, logp, held_logp):
    "One scored prompt of the invented study; `s`: its seed."
    here = target == source
    one = dict(task="sst2", source=source, target=target, row=row, method=None if s is None else "pez", seed=s)
    one |= dict(steps=None if s is None else 100, counterpart=None, dtype="bfloat16")
    one |= dict(
        prompt_ids=[MODELS.index(source), len(row), 9 if s is None else s], start_ids=None if s is None else [0]
    )
    one |= dict(labels=labels, holdout_labels=held, logp=logp, holdout_logp=held_logp)
    one |= dict(role="original", mode="ids") if here else dict(role="transfer", mode="text")
    return one | dict(correct=int((logp.argmax(1) == labels).sum()))


def invented_study(seeds=8, n=120, better=0.3, seed=0):
    "A frame as the study's, with rows Empty, PEZ, Ours and one hand-written prompt."
    rng, rows = np.random.default_rng(seed), []
    texts = {m: (rng.normal(size=n), np.arange(n) % 2) for m in MODELS}
    held = {m: (rng.normal(size=60), np.arange(60) % 2) for m in MODELS}
    tuned = lambda row: row in ("PEZ", "Ours")
    arms = [(source, row) for source in MODELS[:2] for row in ("Empty", "Manual 1", "PEZ", "Ours")]
    for source, row, s in [(*arm, s) for arm in arms for s in (range(seeds) if tuned(arm[1]) else (None,))]:
        own = rng.normal(0, 0.15) if s is not None else 0
        for target in MODELS:
            skill = 0.8 + own + (better if row == "Ours" and target == source else 0)
            lean = (0.9 if row == "Empty" else 0.3) + (rng.normal(0, 0.4) if s is not None else 0)
            drawn = [invented_score(rng, of[target], skill, lean) for of in (texts, held)]
            rows.append(_invented_row(source, target, row, s, texts[target][1], held[target][1], *drawn))
    return pd.DataFrame(rows).assign(seed=lambda d: d.seed.astype("Int64"), steps=lambda d: d.steps.astype("Int64"))
