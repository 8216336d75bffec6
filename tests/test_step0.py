"""Step 0 of a reproduction, from the command line: Empty of every model against the paper's counts, in a working
folder that holds tiny models under the paper's names."""

import random
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import pandas as pd
import pytest

from hpt_nb import paper
from hpt_nb.cli import main
from hpt_nb.experiments import load_preset
from hpt_nb.scoring import evaluate
from hpt_nb.store import Store, messages
from hpt_nb.tasks import load_task
from tiny import tiny_lm

ARCHS = {"gpt2": "gpt2", "opt": "opt", "llama": "llama3"}
# fmt: off
WORDS = [
    "the", "film", "was", "great", "good", "bad", "boring", "story", "plot", "characters", "music", "and", "so",
    "very", "a", "world", "people", "team",
]
# fmt: on
TOML = (
    'name = "{name}"\nsuffix = "{suffix}"\nlabels = {labels}\nholdout = 8\n[data]\ntrain = "train-{name}.csv"\n'
    'validation = "{name}.csv"\n'
)
TASKS = {
    "sst2": (". It was", [" bad", " great"], 872),
    "ag_news": (" It was about", [" politics", " sports", " business", " technology"], 40),
}


def names():
    preset = load_preset("paper")
    return list(dict.fromkeys(m for s in preset.sources for m in (s.model, *s.counterparts, *s.targets)))


def rows_of(n, classes, seed):
    made, rng = [], random.Random(seed)
    for i in range(n):
        made.append(
            (" ".join(rng.choices(WORDS, k=rng.randint(1, 2))) + f" {seed}{i} ", i % classes)
        )  # GLUE's space at the end
    return pd.DataFrame(made, columns=["text", "label"])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "Seven tiny models under the paper's names, and its two tasks: 872 made-up texts, and few."
    d = tmp_path_factory.mktemp("step0")
    for i, name in enumerate(names()):
        lm = tiny_lm(next(a for k, a in ARCHS.items() if k in name.lower()), i, num_hidden_layers=1)
        lm.model.save_pretrained(d / name), lm.tokenizer.save_pretrained(d / name)
    (d / "data").mkdir()
    for name, (suffix, labels, n) in TASKS.items():
        rows_of(n, len(labels), 1).to_csv(d / "data" / f"{name}.csv", index=False)
        rows_of(60, len(labels), 2).to_csv(d / "data" / f"train-{name}.csv", index=False)
        (d / "data" / f"{name}.toml").write_text(
            TOML.format(name=name, suffix=suffix, labels=str(labels).replace("'", '"'))
        )
    return d


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    for p in place.iterdir():
        (tmp_path / p.name).symlink_to(p)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines_of(err):
    return [x for x in err.splitlines() if x.strip() and not x.startswith("note:")]


def hpt(capsys, *argv):
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, lines_of(err)


def test_the_dry_run_names_what_is_chosen(here, capsys):
    code, out, _ = hpt(capsys, "run", "paper", "--dry-run", "--rates", "40,40", "--data", "data")
    assert code == 0
    for line in (
        "inputs: format released",
        "starts: pez names, pez-reprojected names",
        "vocabulary: words (K = 64, 5 samples of 8,192 anchors, s = 8,192)",
        "dtype: tuned in float32, scored in float32",
        "step 0: Empty of 7 models on sst2, ag_news",
    ):
        assert line in out, line
    for name in names():
        assert re.search(rf"^  {re.escape(name)}: no BOS, (tuned in float32, )?scored in float32$", out, re.M), name


@pytest.fixture(scope="module")
def stopped(place):
    "A run that step 0 stopped, in `stopped`: [exit code, stdout, lines of stderr]."
    argv = ["run", "paper", "--out", "stopped", "--data", "data", "--quiet"]
    with pytest.MonkeyPatch.context() as m, redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        m.chdir(place)
        with messages():
            code = main(argv)
    return code, out.getvalue(), lines_of(err.getvalue())


def test_step_0_stops_a_run_whose_format_does_not_give_the_paper_s_counts(stopped, here, capsys):
    code, out, err = stopped
    assert code == 2 and len(err) == 1
    assert (
        "step 0: Empty in this preset's format (released) does not give the paper's count: "
        "openai-community/gpt2-large on sst2 gives"
        in err[0]
        and "and the paper 662" in err[0]
        and "--anyway" in err[0]
    )
    assert "opt-1.3b on sst2" not in err[0] and "ag_news" not in err[0]  # no printed count; another number of texts
    assert (
        "facebook/opt-1.3b on sst2: the paper prints no count for this model" in out
        and "the paper's split has 7,600 texts, and this one 40" in out
    )
    assert {c["kind"] for _, c, *_ in Store("stopped").notes("cells")} == {
        "step0"
    }  # nothing was tuned or scored beside it
    cells = Store("stopped").cells("step0")
    assert len(cells) == 7 * 2 and all(sum(r["asked"] for r in c["result"]["rows"]) == 1 for c in cells)
    for c in cells:
        formats = [name for r in c["result"]["rows"] for name in (r["format"], *r["also"])]
        assert {
            f"{f}, {b}, {d}" for f in ("ours", "released") for b in ("no BOS", "BOS") for d in ("float32", "bfloat16")
        } == set(formats)
        assert c["result"]["rows"][0]["asked"] and c["result"]["rows"][0]["format"] == "released, no BOS, float32"
    shutil.copytree("stopped", "x")
    again = hpt(capsys, "run", "paper", "--out", "x", "--data", "data", "--quiet")
    assert again == (code, out, err) and len(Store("x").cells("step0")) == 14  # read back, not scored again


def test_what_step_0_counts_is_what_a_task_in_that_format_scores(stopped, here):
    from hpt_nb.models import load_lm

    name = "meta-llama/Llama-3.2-3B"
    rows = {
        r["format"]: r["correct"]
        for c in Store("stopped").cells("step0")
        if c["config"]["target"] == "Llama-3.2-3B" and c["config"]["task"] == "sst2"
        for r in c["result"]["rows"]
    }
    for f in ("ours", "released"):
        for bos in (False, True):
            task = load_task("data/sst2.toml", format=f)
            assert (
                rows[f"{f}, {'BOS' if bos else 'no BOS'}, float32"]
                == evaluate(load_lm(name, dtype="float32", bos=bos), task, task.validation)["correct"]
            )
    assert len(set(rows.values())) > 1


SMALL = """name = "small paper"
tasks = ["sst2"]
rows = ["Empty"]
seeds = [0]
format = "{format}"
step0 = true
[[source]]
model = "openai-community/gpt2-large"
targets = ["openai-community/gpt2-xl"]
[bos]
"openai-community/gpt2-large" = false
"openai-community/gpt2-xl" = false
"""


def printed(monkeypatch, counts):
    for model, count in counts.items():
        monkeypatch.setitem(paper.COUNTS, ("sst2", model), count)


def test_a_format_that_gives_the_counts_goes_on_and_another_names_it(here, capsys, monkeypatch, plain_pages):
    from hpt_nb.models import load_lm

    task = load_task("data/sst2.toml", format="ours")
    right = {
        m: evaluate(load_lm(f"openai-community/{m}", dtype="float32", bos=False), task, task.validation)["correct"]
        for m in ("gpt2-large", "gpt2-xl")
    }
    printed(monkeypatch, right)
    for f in ("ours", "released"):
        (here / f"{f}.toml").write_text(SMALL.format(format=f))
    run = ("--data", "data", "--quiet")
    code, out, err = hpt(capsys, "run", "released.toml", "--out", "r", *run)
    assert (
        code == 2 and "ours, no BOS, float32" in err[0] and f"and the paper {right['gpt2-large']}" in err[0]
    )  # named, not chosen
    code, out, err = hpt(capsys, "run", "released.toml", "--out", "r", "--anyway", *run)
    assert (
        code == 0
        and "step 0" in out
        and {c["config"]["task_hash"] for c in Store("r").cells("eval")}
        == {load_task("data/sst2.toml", format="released").hash}
    )
    code, out, err = hpt(capsys, "run", "ours.toml", "--out", "o", *run)
    assert code == 0 and len(re.findall(r"\* ours, no BOS, float32 +\d+ +872 +\d+ +yes", out)) == 2
    scores = {(c["config"]["target"], c["result"]["correct"]) for c in Store("o").cells("eval")}
    assert scores == set(right.items())  # Empty as the table has it
    for command in (
        ("status", "o"),
        ("report", "o", "--out", "site"),
        ("pack", "o", "--out", "o.pack"),
    ):  # its cells are in nobody's way
        assert hpt(capsys, *command)[0] == 0, command


def test_a_task_that_cannot_be_had_does_not_hide_what_the_other_shows(stopped, here, capsys, monkeypatch):
    def no_network(*args, **kw):
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", no_network)
    (here / "one").mkdir()
    for p in (here / "data").iterdir():
        if "ag_news" not in p.name:
            (here / "one" / p.name).symlink_to(p)
    shutil.copytree("stopped", "x")  # so sst2 is read back
    code, out, err = hpt(capsys, "run", "paper", "--out", "x", "--data", "one", "--quiet")
    assert (
        code == 2
        and len(err) == 1
        and "every model on ag_news cannot be scored" in err[0]
        and "gpt2-large on sst2 gives" in err[0]
    )
    assert "every model on ag_news: data set" in out


def test_presets_without_step_0_are_as_they_were(here, capsys):
    (here / "plain.toml").write_text(SMALL.format(format="ours").replace("step0 = true\n", ""))
    code, out, err = hpt(capsys, "run", "plain.toml", "--out", "p", "--data", "data", "--quiet")
    assert code == 0 and "step 0" not in out and not Store("p").cells("step0")
    for bad, says in (
        ('format = "theirs"', "format = 'theirs'; need one of ours, released"),
        ("format = 3", "format = 3"),
        ('step0 = "yes"', "step0 = 'yes'; need true or false"),
    ):
        (here / "bad.toml").write_text(
            bad
            + "\n"
            + SMALL.format(format="ours").replace(
                'format = "ours"\nstep0 = true\n', "step0 = false\n" if "format" in bad else ""
            )
        )
        code, out, err = hpt(capsys, "run", "bad.toml", "--out", "b", "--data", "data", "--quiet")
        assert code == 2 and len(err) == 1 and says in err[0], err
