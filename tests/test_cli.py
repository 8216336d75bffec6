"The command line on tiny models in folders: the whole path, Ctrl-C and kill -9 half-way, and bad input."

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from hpt_nb.cli import main
from hpt_nb.store import Store
from forked import Program, run as run_program
from tiny import tiny_lm
from tiny_run import PRESET, TASK, make_place, results


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder with two tiny models, a task file with its data, and a preset of both."
    d, old = make_place(tmp_path_factory.mktemp("cli")), os.getcwd()
    os.chdir(d)
    yield d
    os.chdir(old)


def hpt(capsys, *argv):
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys, says, *argv):
    before = sorted(p for p in os.listdir())
    code, out, err = hpt(capsys, *argv)
    lines = [x for x in err.splitlines() if x.strip()]
    assert code == 2 and out == "" and len(lines) == 1, (code, out, err)
    assert says in lines[0], lines[0]
    assert sorted(os.listdir()) == before  # nothing half-written is left
    return lines[0]


def test_vocab_stability_tune_eval(place, capsys, tmp_path):
    code, out, _ = hpt(capsys, "vocab", "./one", "./two", "--out", tmp_path / "v.parquet")
    assert code == 0 and "tokens are common" in out
    code, out, _ = hpt(capsys, "stability", "./one", "./two", "--exact", "--k", "8", "--out", tmp_path / "s.parquet")
    table = pd.read_parquet(tmp_path / "s.parquet")
    assert (
        code == 0 and list(table.columns)[:3] == ["rank", "token", "J"] and {"id:one", "id:two"} <= set(table.columns)
    )
    assert table.J.is_monotonic_decreasing and table.J.between(0, 1).all()
    every = set(table.token)
    for command, own in (
        ("vocab", ()),
        ("stability", ("--k", "4")),
        ("stability", ("--k", "4", "--sample", "8", "--repeats", "2")),
    ):
        code, out, _ = hpt(
            capsys, command, "./one", "./two", "--tokens", "words", *own, "--out", tmp_path / "w.parquet"
        )
        words = set(pd.read_parquet(tmp_path / "w.parquet").token)
        assert (
            code == 0
            and words < every
            and " good" in words
            and all(t[0] == " " and t[1:].strip() == t[1:] != "" for t in words)
        )
    code, out, _ = hpt(
        capsys,
        "tune",
        "./one",
        "--task",
        "mine.toml",
        "--vocab",
        tmp_path / "s.parquet",
        "--top",
        "30",
        "--steps",
        "6",
        "--batch",
        "4",
        "--tokens",
        "4",
        "--seeds",
        "0,1",
        "--eval-every",
        "3",
        "--holdout",
        "8",
        "--quiet",
        "--out",
        tmp_path / "t",
    )
    assert code == 0 and out.count("seed ") == 2
    allowed = set(table.head(30)["id:one"])
    for c in Store(tmp_path / "t").cells("tune"):
        assert set(c["result"]["prompt_ids"]) <= allowed
    code, out, _ = hpt(capsys, "eval", "./one", "--task", "mine.toml", "--prompt", "the film", "--json")
    got = json.loads(out)
    assert code == 0 and set(got) == {
        "accuracy",
        "correct",
        "n",
        "model",
        "task",
        "split",
        "dtype",
        "prompt",
        "prompt_ids",
        "cut",
        "shares",
    }
    assert got["accuracy"] == got["correct"] / got["n"] and got["n"] == 24 and got["prompt"] == "the film"


def test_a_vocabulary_that_three_models_agree_on_serves_every_method(place, capsys, tmp_path):
    """The artefact of `hpt stability`: J is Eq. 6's mean over the pairs of models, counted here by sets in float64;
    each method takes it, and chooses from its best tokens alone."""
    from itertools import combinations
    import numpy as np
    from hpt_nb.experiments import REGISTRY
    from hpt_nb.joint import JOINT_METHODS
    from hpt_nb.models import load_lm

    lm = tiny_lm("gpt2", 7)
    lm.model.save_pretrained(tmp_path / "third"), lm.tokenizer.save_pretrained(tmp_path / "third")
    models, v = ("./one", "./two", tmp_path / "third"), tmp_path / "three.parquet"
    code, out, err = hpt(capsys, "stability", *models, "--exact", "--k", "8", "--out", v)
    table = pd.read_parquet(v)
    assert code == 0 and {"id:one", "id:two", "id:third"} <= set(table.columns) and len(table) > 60, err
    near = []
    for m in models:
        w = load_lm(str(m), dtype="float32").embeddings[table[f"id:{Path(m).name}"].to_list()].double().numpy()
        w /= np.linalg.norm(w, axis=1, keepdims=True)
        near.append([set(row) for row in np.argsort(-(w @ w.T), axis=1)[:, :8]])
    J = np.mean([[len(a & b) / len(a | b) for a, b in zip(*pair)] for pair in combinations(near, 2)], axis=0)
    assert np.abs(J - table.J).max() < 1e-6 and table.J.nunique() > 3
    allowed = set(table.head(30)["id:one"])
    own = {
        "joint-swaps": ["--also", "./two", tmp_path / "third", "--set", "gradient_n=4", "fresh_n=4", "n_candidates=4"],
        "soft": ["--init", "the film"],
        "optiprompt": ["--init", "the film"],
        "gcg": ["--set", "n_candidates=4", "topk=4", "drop_unstable=false"],
        "autoprompt": ["--set", "n_candidates=4", "topk=4", "drop_unstable=false"],
        "mixed": ["--judge", "./two", "--set", "n_candidates=4", "topk=4", "drop_unstable=false"],
        "rlprompt": ["--set", "prompts=2", "shots=2"],
    } | {m: ["--also", "./two", tmp_path / "third"] for m in JOINT_METHODS if m != "joint-swaps"}
    for method in REGISTRY:
        code, out, err = hpt(
            capsys,
            "tune",
            "./one",
            "--task",
            "mine.toml",
            "--method",
            method,
            *own.get(method, []),
            "--vocab",
            v,
            "--top",
            "30",
            "--steps",
            "2",
            "--tokens",
            "3",
            "--eval-every",
            "1",
            "--holdout",
            "8",
            *(["--batch", "4"] if hasattr(REGISTRY[method].config, "batch") else []),
            "--quiet",
            "--out",
            tmp_path / method,
        )
        assert code == 0, (method, err)
        (cell,) = Store(tmp_path / method).cells("tune")
        start = (
            set(cell["result"]["start_ids"]) if method == "joint-swaps" else set()
        )  # its own tokens stay until they are replaced
        assert (
            cell["config"]["vocab"]["s"] == 30
            and set(cell["result"]["prompt_ids"]) <= allowed | start
            and len(cell["result"]["prompt_ids"]) == 3
        ), method


FEW = (
    PRESET.replace("steps = 30", "steps = 2")
    .replace("eval_every = 10", "eval_every = 2")
    .replace("seeds = [0, 1]", 'seeds = [0, 1]\nrows = ["Empty", "Random", "PEZ", "Ours"]')
    .split('[[source]]\nmodel = "./two"')[0]
)
TAIL = (
    "[vocab]\nk = 8\ns = 40\n"
    + PRESET.partition("[tuning]")[1]
    + PRESET.partition("[tuning]")[2].replace("steps = 30", "steps = 2").replace("eval_every = 10", "eval_every = 2")
)


def test_what_goes_before_a_text_is_part_of_a_model(place, capsys, tmp_path):
    "Without BOS the scores are other scores: they have names of their own in a store, and one table does not mix them."
    from hpt_nb.models import load_lm

    assert load_lm("./two").bos_ids and "bos" not in load_lm("./two").info
    for name, bos in (("with", ""), ("without", '[bos]\n"./two" = false\n')):
        (place / f"{name}.toml").write_text(FEW + bos + TAIL)
    for name in ("with", "without"):
        assert main(["run", f"{name}.toml", "--out", str(tmp_path / name), "--quiet"]) == 0
    ids = {
        name: {c["config"]["target_id"] for c in Store(tmp_path / name).cells("eval") if c["config"]["target"] == "two"}
        for name in ("with", "without")
    }
    assert {i + "-bos" for i in ids["with"]} == ids["without"]
    assert results(tmp_path / "with").keys() & results(tmp_path / "without").keys() != results(tmp_path / "with").keys()
    assert (
        main(["run", "without.toml", "--out", str(tmp_path / "with"), "--quiet"]) == 0
    )  # nothing of the other run is taken for its own
    assert {
        c["config"]["target_id"] for c in Store(tmp_path / "with").cells("eval") if c["config"]["target"] == "two"
    } == ids["with"] | ids["without"]
    capsys.readouterr()
    refused(capsys, "models that are both called two", "report", tmp_path / "with", "--out", tmp_path / "site")
    got = [
        json.loads(
            hpt(capsys, "eval", "./two", "--task", "mine.toml", "--prompt", "the film", "--bos", bos, "--json")[1]
        )
        for bos in ("auto", "yes", "no")
    ]
    assert got[0] == got[1] and got[2]["prompt_ids"] == got[0]["prompt_ids"]


def test_levels_of_a_setting_are_announced_and_none_stops_the_others(place, capsys, tmp_path, monkeypatch, plain_pages):
    (place / "vary.toml").write_text(FEW + TAIL + "[vary]\nk = [4, 6]\n")
    from hpt_nb import jobs

    own, seen = jobs.scored_vocab, []

    def picky(store, preset, *a):
        seen.append(preset.vocab.k)
        if preset.vocab.k == 8:
            raise RuntimeError("no such neighbours")
        return own(store, preset, *a)

    monkeypatch.setattr(jobs, "scored_vocab", picky)
    code, _, err = hpt(capsys, "run", "vary.toml", "--out", tmp_path / "v", "--quiet")
    assert (
        code == 2 and "no such neighbours" in err and {8, 4, 6} <= set(seen)
    )  # the first level fails, the others are done
    monkeypatch.setattr(jobs, "scored_vocab", own)
    code, out, _ = hpt(capsys, "status", tmp_path / "v")
    assert (
        code == 0
        and [line.rstrip(":") for line in out.splitlines() if line.endswith(":") and " " not in line]
        == ["as-given", "k-4", "k-6"]
        and out.count("nothing is left") == 3
    )
    refused(capsys, "as-given is unfinished", "report", tmp_path / "v", "--out", tmp_path / "site")
    assert main(["run", "vary.toml", "--out", str(tmp_path / "v"), "--quiet", "--retry-failed"]) == 0
    assert main(["report", str(tmp_path / "v"), "--out", str(tmp_path / "site"), "--preset", "vary.toml"]) == 0
    assert main(["pack", str(tmp_path / "v"), "--out", str(tmp_path / "v.hpt")]) == 0
    assert main(["report", str(tmp_path / "v.hpt"), "--out", str(tmp_path / "site3"), "--preset", "vary.toml"]) == 0
    assert (tmp_path / "site3" / "index.html").read_text() == (tmp_path / "site" / "index.html").read_text()
    (place / "vary.toml").write_text(FEW + TAIL + "[vary]\nk = [4, 7]\n")
    capsys.readouterr()
    for place_of in ("v", "v.hpt"):
        refused(
            capsys,
            "no results of k-7",
            "report",
            tmp_path / place_of,
            "--out",
            tmp_path / "site2",
            "--preset",
            "vary.toml",
        )
    refused(capsys, "name it", "report", tmp_path / "v", "--out", tmp_path / "site2", "--partial")


HPT = "from hpt_nb.cli import main; raise SystemExit(main())"


@pytest.fixture(scope="module")
def unbroken(place):
    assert main(["run", "preset.toml", "--out", "whole", "--quiet"]) == 0
    return results(place / "whole")


def test_joint_tunes_on_several_models(place, capsys, tmp_path):
    (
        main(["vocab", "./one", "./two", "--out", str(tmp_path / "v.parquet")]),
        main(["stability", "./one", "./two", "--k", "8", "--out", str(tmp_path / "s.parquet")]),
        capsys.readouterr(),
    )
    tune = (
        "tune",
        "./one",
        "--task",
        "mine.toml",
        "--steps",
        "4",
        "--batch",
        "4",
        "--tokens",
        "3",
        "--eval-every",
        "2",
        "--holdout",
        "8",
        "--quiet",
    )
    for method, vocab in (("joint", "v"), ("joint-choice", "s")):
        code, out, err = hpt(
            capsys,
            *tune,
            "--method",
            method,
            "--also",
            "./two",
            "--vocab",
            tmp_path / f"{vocab}.parquet",
            "--seeds",
            "0,1",
            "--out",
            tmp_path / method,
        )
        assert code == 0 and out.count("seed ") == 2, err
        cells, table = Store(tmp_path / method).cells("tune"), pd.read_parquet(tmp_path / f"{vocab}.parquet")
        for c in cells:
            assert (
                set(c["result"]["prompt_ids"]) <= set(table["id:one"])
                and len(c["config"]["also"]) == 1
                and c["config"]["method"] == method
            )
    code, out, _ = hpt(
        capsys,
        *tune,
        "--method",
        "joint",
        "--also",
        "./two",
        "--vocab",
        tmp_path / "s.parquet",
        "--set",
        "by_J=true",
        "--out",
        tmp_path / "J",
    )
    assert code == 0 and Store(tmp_path / "J").cells("tune")[0]["config"]["by_J"] is True
    joint = (*tune, "--out", "x", "--method", "joint")
    main(["vocab", "./one", "./one", "--out", str(tmp_path / "own.parquet")]), capsys.readouterr()
    refused(capsys, "method joint needs --also MODEL", *joint)
    refused(
        capsys,
        "method joint needs --vocab, tokens that all its models share; "
        "make them with hpt vocab or hpt stability ./one ./two",
        *joint,
        "--also",
        "./two",
    )
    refused(capsys, "does not cover two", *joint, "--also", "./two", "--vocab", tmp_path / "own.parquet")
    refused(capsys, "two different", *joint, "--also", "./one", "--vocab", tmp_path / "v.parquet")
    refused(
        capsys,
        "by_J needs a scored vocabulary",
        *joint,
        "--also",
        "./two",
        "--vocab",
        tmp_path / "v.parquet",
        "--set",
        "by_J=true",
    )
    refused(capsys, "no_such_model", *joint, "--also", "./no_such_model", "--vocab", tmp_path / "v.parquet")
    refused(capsys, "--also does not go with method pez", *tune, "--out", "x", "--also", "./two")
    refused(capsys, "--judge does not go with method joint", *joint, "--judge", "./two")


def test_swaps_on_several_models_and_starts_of_ones_own(place, capsys, tmp_path):
    "What both models have in common is found where no vocabulary is given; a written start is in the results."
    tune = ("tune", "./one", "--task", "mine.toml", "--steps", "2", "--eval-every", "1", "--holdout", "8", "--quiet")
    few = ("--set", "gradient_n=4", "fresh_n=6", "n_candidates=3", "topk=4", "objective=centred")
    code, out, err = hpt(
        capsys,
        *tune,
        "--method",
        "joint-swaps",
        "--also",
        "./two",
        "--start",
        "The film was great",
        *few,
        "--seeds",
        "0,1",
        "--out",
        tmp_path / "swaps",
    )
    assert code == 0 and out.count("seed ") == 2, err
    for c in Store(tmp_path / "swaps").cells("tune"):
        assert (
            c["config"]["vocab"]["kind"] == "common"
            and c["config"]["start"] == c["result"]["start_text"] == "The film was great"
            and len(c["result"]["curve"]["ids"]) == 2
        )
    code, out, err = hpt(
        capsys,
        *tune,
        "--batch",
        "4",
        "--start",
        "The film was great",
        "--set",
        "objective=centred",
        "--out",
        tmp_path / "pez",
    )
    config, result = (Store(tmp_path / "pez").cells("tune")[0][k] for k in ("config", "result"))
    assert code == 0 and (config["start"], config["objective"]) == (result["start_text"], "centred") == (
        "The film was great",
        "centred",
    ), err
    assert "pad_row" not in config  # what stands as it always did is not named
    for init in ("labels", "names"):
        assert (
            hpt(
                capsys,
                *tune,
                "--batch",
                "4",
                "--method",
                "pez-reprojected",
                *([] if init == "names" else ["--init", init]),
                "--out",
                tmp_path / init,
            )[0]
            == 0
        )
    assert [Store(tmp_path / k).cells("tune")[0]["config"]["init"] for k in ("labels", "names")] == ["labels", "names"]
    assert not list((tmp_path / "pez").rglob("*.safetensors"))  # a finished pass leaves no checkpoint
    refused(capsys, "--start is empty", *tune, "--start", "", "--out", "x")
    refused(capsys, "init='Review:'; need 'labels', 'names' or 'random'", *tune, "--init", "Review:", "--out", "x")
    refused(capsys, "objective='bias'; need 'labels' or 'centred'", *tune, "--set", "objective=bias", "--out", "x")
    refused(capsys, "set loss=labels too", *tune, "--method", "gcg", "--set", "objective=centred", "--out", "x")
    refused(
        capsys,
        "loss='margin'; need 'vocabulary' or 'labels'",
        *tune,
        "--method",
        "autoprompt",
        "--set",
        "loss=margin",
        "--out",
        "x",
    )
    refused(
        capsys,
        "method rlprompt has no setting 'start'",
        *tune,
        "--method",
        "rlprompt",
        "--start",
        "A film",
        "--out",
        "x",
    )
    refused(capsys, "method joint-swaps needs --also MODEL", *tune, "--method", "joint-swaps", "--out", "x")
    refused(
        capsys,
        "texts per round, but there are",
        *tune,
        "--method",
        "joint-swaps",
        "--also",
        "./two",
        "--start",
        "The film was great",
        "--out",
        "x",
    )


STOPPED = """
import signal, sys, os
from hpt_nb import pez
from hpt_nb.cli import main
own = pez.PezPass.advance
def advance(self):
    if self.step == 3: os.kill(os.getpid(), int(sys.argv[1]))
    own(self)
pez.PezPass.advance = advance
raise SystemExit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_tune_that_is_told_to_stop_goes_on_where_it_was(place, name, tmp_path):
    "Exit code and message say what is kept; the same command ends as if nothing had happened."
    sent = getattr(signal, name)
    tune = [
        "tune",
        "./one",
        "--task",
        "mine.toml",
        "--steps",
        "6",
        "--batch",
        "4",
        "--tokens",
        "3",
        "--eval-every",
        "2",
        "--holdout",
        "8",
        "--quiet",
        "--out",
        str(tmp_path / "out"),
    ]
    first = run_program(STOPPED, int(sent), *tune, cwd=place)
    assert first.returncode == 128 + sent
    assert (
        first.stderr.strip().splitlines()[-1]
        == "hpt: stopped; finished cells and the pass up to step 4 of 6 are kept; run the same command to continue"
    )
    assert not Store(tmp_path / "out").cells("tune") and len(list((tmp_path / "out").rglob("*.safetensors"))) == 1
    assert main(tune) == main([*tune[:-1], str(tmp_path / "whole")]) == 0
    kept = lambda folder: {
        k: v for k, v in Store(tmp_path / folder).cells("tune")[0]["result"].items() if k != "wall_s"
    }
    assert kept("out") == kept("whole") and not list((tmp_path / "out").rglob("*.safetensors"))


def test_readme_names_every_method():
    from hpt_nb.experiments import REGISTRY

    said = (
        (Path(__file__).parent.parent / "README.md")
        .read_text(encoding="utf-8")
        .split("`--method` takes")[1]
        .split("The presets")[0]
    )
    for name in REGISTRY:
        assert f" {name}" in said


def test_run_and_report(place, unbroken, capsys, plain_pages):
    assert len(unbroken) == 2 * 3 * (1 + 1 + 2 + 4 * 2)
    code, out, err = hpt(capsys, "report", "whole", "--out", "site")
    assert code == 0, err
    assert "PEZ" in (place / "site" / "index.html").read_text()


def test_a_pack_stands_in_for_its_folder(place, unbroken, capsys, tmp_path, plain_pages):
    assert hpt(capsys, "report", "whole", "--out", tmp_path / "site")[0] == 0
    code, out, _ = hpt(capsys, "pack", "whole", "--out", tmp_path / "p.hpt")
    assert code == 0 and f"{len(Store('whole').cells()):,} cells in " in out and out.count("\n") == 1
    assert (tmp_path / "p.hpt").stat().st_size < 0.3 * sum(
        f.stat().st_size for f in (place / "whole").rglob("*") if f.is_file()
    )
    assert hpt(capsys, "status", tmp_path / "p.hpt")[1] == hpt(capsys, "status", "whole")[1]
    assert hpt(capsys, "report", tmp_path / "p.hpt", "--preset", "preset.toml", "--out", tmp_path / "site2")[0] == 0
    assert (tmp_path / "site2" / "index.html").read_text() == (tmp_path / "site" / "index.html").read_text()
    assert results(tmp_path / "p.hpt") == unbroken and not (tmp_path / "p").exists()  # nothing was unpacked so far
    code, out, err = hpt(capsys, "run", "preset.toml", "--out", tmp_path / "p.hpt", "--quiet")
    assert code == 0 and f"p.hpt is a pack: unpacked, the run goes on in {tmp_path / 'p'}" in out, err
    assert results(tmp_path / "p") == unbroken and [c["meta"] for c in Store(tmp_path / "p").cells()] == [
        c["meta"] for c in Store("whole").cells()
    ]  # and nothing was computed again
    (tmp_path / "p.hpt").write_bytes((tmp_path / "p.hpt").read_bytes()[:-9])
    (tmp_path / "foreign").write_bytes(b"PK\x03\x04")
    for command in ("status", "report"):
        refused(
            capsys,
            "cut short or damaged",
            command,
            tmp_path / "p.hpt",
            *(("--out", "x") if command == "report" else ()),
        )
        refused(
            capsys,
            "foreign is a file; need a folder for results, or a file that hpt pack made from one",
            command,
            tmp_path / "foreign",
            *(("--out", "x") if command == "report" else ()),
        )
    refused(capsys, "cut short or damaged", "run", "preset.toml", "--out", tmp_path / "p.hpt")
    refused(capsys, "cut short or damaged", "pack", tmp_path / "p.hpt", "--out", "x")
    refused(capsys, "not JSON", "export", tmp_path / "foreign", "--to", "json", "--out", "x.json")
    refused(capsys, "no results in it", "pack", "no_such_results", "--out", "x")


def test_what_another_processor_has_tuned_is_not_tuned_again(place, unbroken, monkeypatch, capsys):
    "dtype auto takes what the processor has; results that one with other formats finished are as good."
    shutil.copytree(place / "whole", place / "elsewhere")
    (place / "auto.toml").write_text(PRESET.replace('dtype = "float32"', 'dtype = "auto"'))
    monkeypatch.setattr("hpt_nb.tuned.fast_dtype", lambda device: torch.bfloat16)
    for _ in range(2):
        code, _, err = hpt(capsys, "run", "auto.toml", "--out", "elsewhere", "--quiet")
        assert code == 0, err
        assert {c["config"]["dtype"] for c in Store(place / "elsewhere").cells("tune")} == {"float32"} and results(
            place / "elsewhere"
        ) == unbroken
    one = next((place / "elsewhere/cells").glob("tune-*"))
    source = json.loads(one.read_text())["config"]["source"]
    one.unlink()  # now its pass is not finished, and is tuned in this processor's format
    assert hpt(capsys, "run", "auto.toml", "--out", "elsewhere", "--quiet")[0] == 0
    assert {
        c["config"]["source"] for c in Store(place / "elsewhere").cells("tune") if c["config"]["dtype"] == "bfloat16"
    } == {source}


def test_compiled_layers_are_said_in_the_results(place, monkeypatch, capsys, plain_pages):
    "A preset and a command that ask for them; too few steps go without, and say so. What compiling does: test_scoring."
    monkeypatch.setattr("hpt_nb.compiled._compiled_forward", lambda layer, *_: layer.forward)
    (place / "fast.toml").write_text(
        (FEW + TAIL)
        .replace("[tuning]", "[tuning]\ncompile = true")
        .replace("seeds = [0, 1]", "seeds = [0]")
        .replace('rows = ["Empty", "Random", "PEZ", "Ours"]', 'rows = ["Empty", "PEZ"]')
    )
    for least, want in ((3, {None}), (2, {True})):
        monkeypatch.setattr("hpt_nb.presets.COMPILE_STEPS", least)
        code, _, err = hpt(capsys, "run", "fast.toml", "--out", f"fast{least}", "--quiet")
        assert code == 0, err
        assert {c["config"].get("compiled") for c in Store(f"fast{least}").cells("tune")} == want
        assert hpt(capsys, "report", f"fast{least}", "--preset", "fast.toml", "--out", f"fast{least}-site")[0] == 0
        assert ("float32, compiled" in (place / f"fast{least}-site/index.html").read_text()) == (want == {True})
    few = (
        "tune",
        "./one",
        "--task",
        "mine.toml",
        "--steps",
        "2",
        "--eval-every",
        "1",
        "--holdout",
        "8",
        "--batch",
        "4",
        "--compile",
        "--quiet",
    )
    code, out, err = hpt(capsys, *few, "--out", "few")
    assert code == 0 and "2 steps are too few to make compiling worthwhile (it takes at least 200)" in out
    monkeypatch.setattr("hpt_nb.pez.COMPILE_STEPS", 2)
    code, out, err = hpt(capsys, *few, "--out", "enough")
    assert (
        code == 0
        and "too few" not in out
        and [c["config"]["compiled"] for c in Store("enough").cells("tune")] == [True]
    )


@pytest.mark.parametrize("sig, code", [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_run_that_was_stopped_goes_on_with_the_same_numbers(place, unbroken, sig, code):
    out = place / f"cut{int(sig)}"
    first = Program(HPT, "run", "preset.toml", "--out", out)
    for _ in range(6000):  # stopped once the first source has been tuned
        if list((out / "cells").glob("tune-*")) or not first.process.is_alive():
            break
        time.sleep(0.01)
    first.send_signal(sig)
    assert first.wait() == code, first.stderr
    if sig == signal.SIGINT:
        assert "run the same command to continue" in first.stderr and "Traceback" not in first.stderr
    done = {p.name: p.stat().st_mtime_ns for p in (out / "cells").glob("*.json")}
    assert 0 < len(done) < len(list((place / "whole" / "cells").iterdir()))
    assert main(["run", "preset.toml", "--out", str(out), "--quiet"]) == 0
    assert results(out) == unbroken
    now = {p.name: p.stat().st_mtime_ns for p in (out / "cells").glob("*.json")}
    assert all(now[n] == t for n, t in done.items())  # nothing that was finished was computed again


def test_unknown_names(place, capsys):
    refused(capsys, "no_such_model", "eval", "./no_such_model", "--task", "mine.toml")
    refused(capsys, "no task 'no_such_task'; known: ", "eval", "./one", "--task", "no_such_task")
    refused(capsys, "no preset 'no_such'; known: ", "run", "no_such", "--out", "x")
    refused(
        capsys,
        "unknown method 'magic'; known: pez",
        "tune",
        "./one",
        "--task",
        "mine.toml",
        "--method",
        "magic",
        "--out",
        "x",
    )
    refused(capsys, "no_such_results", "report", "no_such_results", "--out", "x")


def test_model_files(place, capsys):
    refused(capsys, "missing.gguf", "eval", "missing.gguf", "--task", "mine.toml")
    (place / "short.gguf").write_bytes(b"GGUF\x03\0\0\0")
    refused(capsys, "short.gguf", "eval", "short.gguf", "--task", "mine.toml")
    os.remove("short.gguf")


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(label="sentiment"), "sentiment"),
        (dict(text="review"), "review"),
        (dict(train="gone.csv"), "gone.csv"),
        (dict(labels='[" bad"]'), "label"),
        (dict(labels='[" bad", " bad"]'), "two classes"),
        (dict(labels='[" great film", " great plot"]'), "start with"),
    ],
)
def test_task_files(place, capsys, change, says):
    text = TASK
    for key, value in change.items():
        old = next(line for line in TASK.splitlines() if line.startswith(f"{key} = "))
        text = text.replace(old, f"{key} = {value if value.startswith('[') else json.dumps(value)}")
    (place / "bad.toml").write_text(text)
    refused(capsys, says, "eval", "./one", "--task", "bad.toml")
    os.remove("bad.toml")


@pytest.mark.parametrize(
    "rows, says",
    [
        ([("a", 0), ("b", 7)], "row 2 has the unknown label '7'"),
        ([], "no rows"),
        ([("a", 1), ("b", 1), ("c", 1)], "at least 2 classes"),
    ],
)
def test_data_of_a_task(place, capsys, rows, says):
    pd.DataFrame(rows, columns=["text", "label"]).to_csv("bad.csv", index=False)
    (place / "bad.toml").write_text(TASK.replace("dev.csv", "bad.csv"))
    refused(capsys, says, "eval", "./one", "--task", "bad.toml")
    os.remove("bad.toml"), os.remove("bad.csv")


def test_sizes(place, capsys, tmp_path):
    line = refused(capsys, "99999", "stability", "./one", "./two", "--k", "99999", "--out", "x.parquet")
    assert "neighbours" in line or "k=" in line
    main(["stability", "./one", "./two", "--k", "8", "--out", str(tmp_path / "s.parquet")]), capsys.readouterr()
    refused(
        capsys,
        "99999 tokens requested",
        "tune",
        "./one",
        "--task",
        "mine.toml",
        "--vocab",
        tmp_path / "s.parquet",
        "--top",
        "99999",
        "--out",
        "x",
    )
    refused(capsys, "--vocab", "tune", "./one", "--task", "mine.toml", "--top", "5", "--out", "x")
    (place / "empty.parquet").write_bytes(b"no parquet")
    refused(capsys, "empty.parquet", "tune", "./one", "--task", "mine.toml", "--vocab", "empty.parquet", "--out", "x")
    os.remove("empty.parquet")


def test_presets(place, capsys):
    for change, says in (
        (("steps = 30", "steps = -1"), "steps=-1"),
        (("[vocab]", "[vocabulary]"), "vocabulary"),
        (("seeds = [0, 1]", "seeds = [0, 0]"), "seeds"),
        (('tasks = ["mine.toml"]', 'tasks = ["gone.toml"]'), "gone.toml"),
        (("name = ", "name : "), "TOML"),
        (("s = 40", "s = 999999"), "999999"),
    ):
        (place / "bad.toml").write_text(PRESET.replace(*change))
        code, out, err = hpt(capsys, "run", "bad.toml", "--out", "x", "--quiet")
        lines = [x for x in err.splitlines() if x.strip()]
        assert code == 2 and len(lines) == 1 and says in lines[0], err
        os.remove("bad.toml")
