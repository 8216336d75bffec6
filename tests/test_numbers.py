"""Every number that a user can set, for every method and by every way: refused in one line, or it means what it says.

NaN passes `if x < 1`, half a step does one, and 10**30 of anything ends in no memory: so each field of each
configuration is driven with each of them, and what is taken is run."""

import math
from dataclasses import MISSING, fields, replace

import pytest
import torch

from hpt_nb import neighbors, premise, strata
from hpt_nb.cli import main
from hpt_nb.experiments import REGISTRY, VocabConfig, method_config, parse_preset
from hpt_nb.pez import RunSpec, SearchSpace
from hpt_nb.practice import transferable, tuning_config
from hpt_nb.readability import rank_correlation
from hpt_nb.scoring import label_logprobs
from hpt_nb.soft import SOFT_METHODS, transfer_soft
from hpt_nb.store import MOST, InputError
from hpt_nb.tasks import Split, Task, hold_out, load_task
from hpt_nb.vocab import common_vocab
from tiny import tiny_lm
from tiny_run import PRESET, make_place

NAN, INF = float("nan"), float("inf")
ODD = [NAN, INF, -INF, 0, -1, -0.5, 0.5, 2.5, 10**30, 1e300, -(10**30), True, False, None, "three", "", [1], 1 + 1j]
ZERO = {"reverse", "weight_decay"}  # 0 means none
BOUNDLESS = {"clip"}  # no bound on a gradient is one too
SHARES = {"polyak", "reverse"}


def one_line(e):
    return "\n" not in str(e) and len(str(e)) < 300


def allowed(f, value, default, soft=False):
    """May this field hold this value? Said anew, from what the field is. Of soft prompts, a bound of 0 on the
    gradient is none."""
    if value is None:
        return "None" in str(f.type)
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int):
        return type(value) is int and 1 <= value <= MOST
    if not isinstance(value, (int, float)) or isinstance(value, bool) or math.isnan(value) or value < 0:
        return False
    if value == INF:
        return f.name in BOUNDLESS
    return (
        (value > 0 or f.name in ZERO or soft and f.name == "clip")
        and (value <= 1 or f.name not in SHARES)
        and (value <= 1e6 or f.name in BOUNDLESS)
    )


def numeric(config):
    return [f for f in fields(config) if isinstance(getattr(config, f.name), (int, float))]


METHODS = [pytest.param(name, f, id=f"{name}-{f.name}") for name, m in REGISTRY.items() for f in numeric(m.config)]


@pytest.mark.parametrize("name, f", METHODS)
def test_each_number_of_each_method(name, f):
    "In a program, and as text from the command line."
    config, soft = REGISTRY[name].config, name in SOFT_METHODS
    for value in ODD:
        if value is None:
            continue  # there it means: as published
        for given in (value, str(value)) if isinstance(value, (int, float)) else (value,):
            try:
                got = getattr(method_config(name, **{f.name: given})[1], f.name)
            except InputError as e:
                assert one_line(e) and (f.name in str(e) or "prompts" in str(e)), (value, e)
            else:
                assert allowed(f, got, getattr(config, f.name), soft) and (got == value or isinstance(given, str)), (
                    name,
                    f.name,
                    given,
                    got,
                )
            if (
                isinstance(given, (int, float))
                and not isinstance(given, bool)
                and not allowed(f, given, getattr(config, f.name), soft)
            ):
                with pytest.raises(InputError):
                    replace(config, **{f.name: given})


@pytest.mark.parametrize(
    "cls", [VocabConfig, strata.StrataStudy, premise.EffectsStudy, premise.Part], ids=lambda c: c.__name__
)
def test_each_number_of_other_configurations(cls):
    needed = {
        f.name: {"str": "a", "int": 3}[getattr(f.type, "__name__", f.type)] for f in fields(cls) if f.default is MISSING
    }
    for f in fields(cls):
        default = needed.get(f.name, f.default)
        if not isinstance(default, (int, float)) and f.name != "h":
            continue
        for value in ODD:
            if f.name == "seed":
                good = type(value) is int and -(2**63) <= value < 2**63
            elif f.name == "h":
                good = type(value) is int and (cls is VocabConfig) <= value <= MOST  # 0 anchors: exact alone
            elif cls is VocabConfig and f.name == "s":
                good = type(value) is int and 0 <= value <= MOST  # 0: all of them
            else:
                good = allowed(f, value, default)
            try:
                cls(**{**needed, f.name: value})
            except InputError as e:
                assert one_line(e) and not good, (f.name, value)
            else:
                assert good, (f.name, value)


# ---- what is taken is run ----

SPLIT = Split(
    tuple(f"{'the film was good' if i % 2 else 'a bad plot'} {i}" for i in range(12)), [i % 2 for i in range(12)]
)
TASK = Task("t", " It was", (" bad", " great"), SPLIT, SPLIT, SPLIT)
SMALL = dict(
    steps=2,
    eval_every=1,
    n_tokens=3,
    holdout_n=6,
    batch=4,
    topk=4,
    n_candidates=4,
    prompts=3,
    shots=2,
    hidden=8,
    top_k=8,
    gradient_n=4,
    fresh_n=4,
    finalists=2,
)
EXTREMES = {int: [1, MOST], float: [1e-300, 1e6]}
SLOW = {
    "steps",
    "batch",
    "n_tokens",
    "prompts",
    "hidden",
    "gradient_n",
    "fresh_n",
    "n_candidates",
    "topk",
}  # so many of these mean so much work, or more than the model reads: their upper end is not run


@pytest.fixture(scope="module")
def lms():
    return [tiny_lm("llama3", 0, name="one"), tiny_lm("gpt2", 1, name="two")]


@pytest.mark.parametrize("name", REGISTRY)
def test_what_is_allowed_runs_or_is_refused_in_one_line(name, lms):
    "Each number at both ends, the others small: finite results, or a line that says what ran away."
    method, base = method_config(
        name,
        **{k: v for k, v in SMALL.items() if hasattr(REGISTRY[name].config, k)},
        **({"init": " the good film"} if name == "optiprompt" else {}),
    )
    space = SearchSpace(lms[0], common_vocab(lms))
    more = {method.extra: lms[1:] if method.extra == "also" else lms[1]} if method.needed else {}
    for f in numeric(base):
        if isinstance(getattr(base, f.name), bool):
            continue
        ends = EXTREMES[type(f.default)] + ([INF] if f.name in BOUNDLESS else []) + ([0] if f.name in ZERO else [])
        for value in ends:
            if value == MOST and f.name in SLOW or not allowed(f, value, f.default) or f.name == "prompts":
                continue
            cfg = replace(base, **{f.name: value})
            try:
                (run,) = method.run(lms[0], TASK, [RunSpec(space, name, 0)], cfg, progress=False, **more)
            except InputError as e:
                assert one_line(e) and (
                    "diverged" in str(e)
                    or "finite" in str(e)
                    or "survives" in str(e)
                    or "at least one text of each" in str(e)
                ), (f.name, value, e)
            else:
                assert (
                    0 <= run.best_holdout <= 1
                    and all(map(math.isfinite, run.curve["loss"]))
                    and len(run.prompt_ids) == (cfg.n_tokens if not getattr(cfg, "start", "") else len(run.prompt_ids))
                )


@pytest.mark.parametrize("name", [n for n, m in REGISTRY.items() if hasattr(m.config, "n_tokens")])
def test_a_prompt_longer_than_the_model_reads_is_refused_before_the_first_step(name, lms):
    method, cfg = method_config(
        name,
        **{k: v for k, v in SMALL.items() if hasattr(REGISTRY[name].config, k)} | dict(n_tokens=600),
        **({"init": " the good film"} if name == "optiprompt" else {}),
    )
    more = {method.extra: lms[1:] if method.extra == "also" else lms[1]} if method.needed else {}
    said = []
    with pytest.raises(InputError, match="reads 512") as e:
        method.run(
            lms[0],
            TASK,
            [RunSpec(SearchSpace(lms[0], common_vocab(lms)), name, 0)],
            cfg,
            progress=False,
            on_step=said.append,
            **more,
        )
    assert one_line(e.value) and not said


@pytest.mark.parametrize("seed", [s for s in ODD if not (type(s) is int and abs(s) < 2**63)], ids=repr)
def test_a_seed_is_a_whole_number_of_63_bits(seed, lms):
    with pytest.raises(InputError, match="seed"):
        RunSpec(SearchSpace(lms[0]), "pez", seed)


# ---- functions ----

E = [torch.eye(8, 6), torch.eye(8, 5)]
CALLS = {  # what is called with an odd number, and which odd ones it takes
    "stability k": (lambda x: neighbors.stability(E, k=x, h=None), {}),
    "stability h": (lambda x: neighbors.stability(E, k=2, h=x), {10**30: False, None: True}),
    "stability repeats": (lambda x: neighbors.stability(E, k=2, h=4, repeats=x), {}),
    "stability seed": (lambda x: neighbors.stability(E, k=2, h=4, seed=x), {0: True, -1: True}),
    "stability max_bytes": (lambda x: neighbors.stability(E, k=2, h=None, max_bytes=x), {None: True}),
    "hold_out n": (lambda x: hold_out(SPLIT, x), {}),
    "subset n": (lambda x: TASK.subset("train", x), {10**30: True}),
    "max_text_tokens": (lambda x: replace(TASK, max_text_tokens=x), {10**30: True}),
    "transfer_soft keep": (lambda x: transfer_soft([E[0][:2]], [E[0]], E[1], E[1], keep=x, steps=1), {}),
    "transfer_soft steps": (lambda x: transfer_soft([E[0][:2]], [E[0]], E[1], E[1], steps=x), {}),
    "transfer_soft lr": (
        lambda x: transfer_soft([E[0][:2]], [E[0]], E[1], E[1], steps=1, lr=x),
        {0.5: True, 2.5: True},
    ),
    "rank level": (lambda x: rank_correlation([1, 2, 3], [1, 3, 2], level=x), {0.5: True}),
    "rank repeats": (lambda x: rank_correlation([1, 2, 3], [1, 3, 2], repeats=x), {}),
    "rank seed": (lambda x: rank_correlation([1, 2, 3], [1, 3, 2], seed=x, repeats=2), {0: True}),
    "transferable s": (lambda x: transferable(TASK, ["a", "b"], s=x), {}),
    "transferable k": (lambda x: transferable(TASK, ["a", "b"], k=x), {}),
    "transferable limit": (lambda x: transferable(TASK, ["a", "b"], limit=x), {}),
    "transferable seeds": (lambda x: transferable(TASK, ["a", "b"], seeds=[x]), {}),
    "tuning_config steps": (lambda x: tuning_config("pez", steps=x), {None: True}),
    "tuning_config lr": (lambda x: tuning_config("pez", lr=x), {None: True, 0.5: True, 2.5: True}),
}


@pytest.mark.parametrize("what", CALLS)
def test_each_number_of_a_function(what):
    call, takes = CALLS[what]
    for value in ODD:
        if (
            isinstance(value, bool)
            or (what, value) == ("transferable seeds", 0)
            or (what, value) == ("transferable seeds", -1)
        ):
            continue
        good = any(type(value) is type(k) and value == k for k, v in takes.items() if v)
        if good:
            call(value)
        else:
            with pytest.raises(InputError) as e:
                call(value)
            assert one_line(e.value), (what, value)


def test_label_logprobs_in_passes_of_a_size(lms):
    for value in ODD:
        if value is None or isinstance(value, bool):
            continue
        with pytest.raises(InputError):
            label_logprobs(lms[0], TASK, ["a"], max_tokens=value)
    assert torch.equal(label_logprobs(lms[0], TASK, ["a"], max_tokens=1), label_logprobs(lms[0], TASK, ["a"]))


# ---- the command line and presets ----


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("numbers"))


TEXTS = [
    "nan",
    "inf",
    "-inf",
    "0",
    "-1",
    "1e3",
    "2.5",
    "9" * 30,
    "1" * 5000,
    "\u00b2",
    "\u0663",
    "",
    " ",
    "0x10",
    "1_0",
    "three",
]
OPTIONS = [
    ("eval", "--limit"),
    ("fingerprint", "--limit"),
    ("stability", "--k"),
    ("stability", "--sample"),
    ("stability", "--repeats"),
    ("stability", "--seed"),
    ("tune", "--steps"),
    ("tune", "--batch"),
    ("tune", "--tokens"),
    ("tune", "--holdout"),
    ("tune", "--eval-every"),
    ("tune", "--top"),
    ("tune", "--lr"),
    ("tune", "--seeds"),
    ("run", "--split"),
    ("run", "--cpus"),
    ("run", "--rates"),
    ("transferable", "--steps"),
    ("transferable", "--limit"),
    ("transferable", "--top"),
    ("transferable", "--k"),
    ("transferable", "--seeds"),
    ("export", "--seed"),
    ("export", "--limit"),
]
REST = {
    "eval": ["no-model", "--task", "gone.toml"],
    "fingerprint": ["no-model", "--task", "gone.toml"],
    "stability": ["./no-model", "./no-other", "--out", "x.parquet"],
    "tune": ["./no-model", "--task", "gone.toml", "--out", "x"],
    "run": ["gone.toml", "--out", "x"],
    "transferable": ["--task", "gone.toml", "--models", "a", "b", "--out", "x"],
    "export": ["gone.json", "--to", "json", "--out", "x.json"],
}


@pytest.mark.parametrize("command, option", OPTIONS)
def test_each_number_of_the_command_line(command, option, tmp_path, monkeypatch, capsys):
    "Whatever stands there: one line, exit 2. (What is a number gets as far as the files that are missing.)"
    monkeypatch.chdir(tmp_path)
    for text in TEXTS:
        code = main([command, *REST[command], f"{option}={text}"])
        out, err = capsys.readouterr()
        assert code == 2 and out == "" and err.count("\n") == 1 and "Traceback" not in err and len(err) < 6000, (
            text,
            err,
        )
        taken = any(w in err for w in ("gone", "no-model", "no-other", "no task", "no such"))
        if text in ("nan", "inf", "-inf", "2.5", "", " ", "0x10", "three", "\u00b2"):
            assert not taken or option == "--lr" and text == "2.5", (text, err)
        if text in ("0", "-1") and option not in ("--seed", "--seeds"):
            assert not taken, (text, err)
        if text == "9" * 30:
            assert not taken or option == "--lr", (text, err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        "steps = 30",
        "batch = 4",
        "n_tokens = 4",
        "eval_every = 10",
        "holdout_n = 8",
        "k = 8",
        "s = 40",
        "seeds = [0, 1]",
    ],
)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "2.5", "true", '"4"', "[4]", "9" * 18])
def test_each_number_of_a_preset(line, value):
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    name, old = line.split(" = ")
    doc = tomllib.loads(PRESET.replace(line, f"{name} = [{value}]" if name == "seeds" else f"{name} = {value}", 1))
    if name == "seeds" and value in ("-1", "9" * 18):
        assert parse_preset(doc, "p").seeds == (int(value),)
        return
    with pytest.raises(InputError) as e:
        parse_preset(doc, "p")
    assert one_line(e.value) and name in str(e.value)


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1", "2.5", "true", '"4"', "9" * 30])
@pytest.mark.parametrize("key", ["max_text_tokens", "holdout"])
def test_each_number_of_a_task_file(place, tmp_path, key, value):
    text = (
        (place / "mine.toml")
        .read_text()
        .replace('"train.csv"', f'"{place / "train.csv"}"')
        .replace('"dev.csv"', f'"{place / "dev.csv"}"')
    )
    (tmp_path / "t.toml").write_text(f"{key} = {value}\n{text}")
    if (key, value) == ("max_text_tokens", "9" * 30):
        return  # nothing is cut
    with pytest.raises(InputError) as e:
        load_task(tmp_path / "t.toml")
    assert one_line(e.value) and ("hold out" in str(e.value) or key in str(e.value))
