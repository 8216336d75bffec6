"""What users expect of a package: callbacks that end a run, trackers by a word, a version, an example, advice that
can be followed."""

import ast
import logging
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

import hpt_nb
from hpt_nb.cli import main
from hpt_nb.experiments import load_preset
from hpt_nb.following import tune
from hpt_nb.pez import Callback, Standing
from hpt_nb.store import InputError
from hpt_nb.tasks import load_task
from hpt_nb.trackers import SERVICES, Tracker, check_tracker, new_points
from tiny import tiny_lm
from tiny_run import make_place
from test_project import LIB, ROOT, SETTINGS


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    d = make_place(tmp_path_factory.mktemp("manners"))
    old = os.getcwd()
    os.chdir(d)
    yield d
    os.chdir(old)


@pytest.fixture(scope="module")
def parts(place):
    return tiny_lm("llama3", 0), tiny_lm("gemma3", 1), load_task("mine.toml")


def hpt(capsys, *argv):
    code = main(list(map(str, argv)))
    return code, *capsys.readouterr()


# ---- callbacks ----

SMALL = dict(n_tokens=2, batch=2, eval_every=2, holdout_n=4)
SWAPS = dict(SMALL, topk=4, n_candidates=3, drop_unstable=False)
WAYS = {
    "pez": SMALL,
    "pez-reprojected": SMALL,
    "gcg": SWAPS,
    "autoprompt": dict(SWAPS, judge_n=2),
    "soft": SMALL,
    "joint": SMALL,
    "rlprompt": dict(n_tokens=2, eval_every=2, holdout_n=4, prompts=2, shots=2, hidden=8, top_k=4),
    "joint-swaps": dict(
        n_tokens=2, eval_every=2, holdout_n=4, gradient_n=2, fresh_n=2, topk=4, n_candidates=2, finalists=1
    ),
}


def settings_of(method):
    "Of the small settings those that the method has."
    from hpt_nb.experiments import REGISTRY

    return {k: v for k, v in WAYS[method].items() if k in asdict(REGISTRY[method].config)}


def tuned(parts, method, steps, **kw):
    lm, other, task = parts
    return tune(
        lm,
        task,
        method=method,
        steps=steps,
        seeds=(0, 1),
        progress=False,
        **settings_of(method),
        **needed(parts, method),
        **kw,
    )


def needed(parts, method):
    from hpt_nb.vocab import common_vocab

    return dict(also=parts[1], vocab=common_vocab(parts[:2])) if method.startswith("joint") else {}


def plain(runs):
    return [(r.prompt_ids, r.best_step, r.best_holdout, dict(r.curve.items()), r.stopped_at) for r in runs]


def stop_at(step, told):
    def callback(steps, runs):
        told.append((steps, runs))
        return steps == step

    return callback


@pytest.mark.parametrize("method", WAYS)
def test_a_callback_ends_a_pass_and_the_same_call_goes_on(parts, method, tmp_path):
    told, ckpt = [], tmp_path / "pass.safetensors"
    ended = tuned(parts, method, 6, on_judge=stop_at(4, told), checkpoint=ckpt)
    assert (
        [s for s, _ in told] == [2, 4]
        and {r.stopped_at for r in ended} == {4}
        and {r.result()["stopped_at"] for r in ended} == {4}
    )
    assert all(isinstance(r, Standing) for _, runs in told for r in runs)
    assert [(r.seed, r.best_holdout, r.best_step) for r in told[-1][1]] == [
        (r.seed, r.best_holdout, r.best_step) for r in ended
    ]
    if method != "soft":
        assert [r.prompt_text for r in told[-1][1]] == [r.prompt_text for r in ended]
    assert [(p, s, h, c) for p, s, h, c, _ in plain(ended)] == [
        (p, s, h, c) for p, s, h, c, _ in plain(tuned(parts, method, 4))
    ]
    assert ckpt.exists()
    whole = tuned(parts, method, 6, checkpoint=ckpt)
    assert plain(whole) == plain(tuned(parts, method, 6)) and not ckpt.exists()
    assert all(r.stopped_at is None and "stopped_at" not in r.result() for r in whole)


def test_a_tracker_changes_nothing_for_other_methods(parts):
    for method in ("gcg", "rlprompt", "soft"):
        told = []
        runs = tuned(
            parts,
            method,
            4,
            on_judge=[Tracker(lambda v, s: told.append((s, v))), lambda *_: "no answer", lambda *_: None],
        )
        alone = tuned(parts, method, 4)
        assert plain(runs) == plain(alone) and [(r.forward_tokens, r.backward_tokens) for r in runs] == [
            (r.forward_tokens, r.backward_tokens) for r in alone
        ]
        assert told == new_points(alone)


def test_the_protocol_is_public_and_documented():
    assert hpt_nb.Callback is Callback and "True ends the pass" in Callback.__call__.__doc__


def test_a_callback_that_fails_is_not_hidden(parts):
    def broken(steps, runs):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tuned(parts, "pez", 4, on_judge=broken)


# ---- messages ----


def test_nothing_is_printed_by_the_library():
    "But by the handler that shows messages, and by the command line."
    found = []
    for path in sorted(LIB.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
                found.append(path.name)
    assert set(found) == {"base.py", "cli.py", "options.py"} and found.count("base.py") == 1


def test_messages_go_to_whoever_asks_for_them(caplog):
    from hpt_nb.store import remark

    with caplog.at_level(logging.INFO, "hpt_nb"):
        remark("5 texts of a test are not used")
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [
        ("hpt_nb.store", "WARNING", "5 texts of a test are not used")
    ]


def test_a_script_sees_warnings_on_stderr_without_settings():
    done = subprocess.run(
        [sys.executable, "-c", "from hpt_nb.store import remark; remark('to be known')"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "to be known\n")


# ---- the command line ----


def test_version_and_module(capsys):
    with pytest.raises(SystemExit) as e:
        main(["--version"])
    assert e.value.code == 0 and capsys.readouterr().out == f"hpt_nb {SETTINGS['version']}\n"
    done = subprocess.run([sys.executable, "-m", "hpt_nb", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"hpt_nb {hpt_nb.__version__}\n")
    done = subprocess.run(
        [sys.executable, "-m", "hpt_nb", "status", "no such folder"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_an_example_runs_as_it_is(place, capsys):
    code, out, _ = hpt(capsys, "init", "mine", "--models", "./one", "./two")
    assert code == 0 and "mine/preset.toml" in out
    text = Path("mine/preset.toml").read_text()
    for old, new in (
        ("steps      = 100", "steps = 2"),
        ("eval_every = 20 ", "eval_every = 2 "),
        ("k = 64 ", "k = 4 "),
        ("s = 8192 ", "s = 40 "),
        ("seeds   = [0, 1]", "seeds = [0]"),
        ("# tracker", "tracker"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    Path("mine/preset.toml").write_text(text)
    assert load_preset("mine/preset.toml").tracker == "log"
    assert hpt(capsys, "run", "mine/preset.toml", "--dry-run", "--rates", "1,1")[0] == 0
    code, out, err = hpt(capsys, "run", "mine/preset.toml", "--out", "own", "--quiet")
    assert code == 0, err
    assert out.startswith("done: ") and re.search(r"step 2, pez-Ours-two-0: loss [\d.]+, holdout [\d.]+", err)
    code, out, err = hpt(capsys, "run", "mine/preset.toml", "--out", "own")
    assert code == 0 and "my-first: finished before" in err and "left |" not in err and "loss" not in err
    assert hpt(capsys, "status", "own")[1].strip().endswith("finished: nothing is left")
    code, _, err = hpt(capsys, "init", "mine")
    assert code == 2 and "preset.toml exists already" in err
    assert main(["init", "few", "--models", "a"]) == 2 and not Path("few").exists()


def test_explore_makes_the_page(place, capsys, tmp_path):
    assert hpt(capsys, "stability", "./one", "./two", "--k", "8", "--out", "s.parquet")[0] == 0
    code, out, _ = hpt(
        capsys,
        "explore",
        "s.parquet",
        "--models",
        "./one",
        "./two",
        "--k",
        "3",
        "--tokens",
        "5",
        "--out",
        tmp_path / "e.html",
    )
    text = (tmp_path / "e.html").read_text(encoding="utf-8")
    assert (
        code == 0 and out.strip() == str(tmp_path / "e.html") and '"neighbors":{"one":[[' in text and '"two":[[' in text
    )
    for argv, says in (
        (("none.parquet",), "no such vocabulary file"),
        (("nowhere",), "no such folder"),
        (("s.parquet", "--k", "99999"), "99999 neighbours"),
        (("s.parquet", "--out", "e.txt"), "ends in .html"),
    ):
        code, out, err = hpt(capsys, "explore", "--out", tmp_path / "x.html", *argv)
        assert code == 2 and says in err and err.count("\n") == 1 and not (tmp_path / "x.html").exists()


def test_tune_is_followed_by_a_word_and_says_when_it_is_finished(place, capsys):
    argv = [
        "tune",
        "./one",
        "--task",
        "mine.toml",
        "--method",
        "gcg",
        "--steps",
        "2",
        "--eval-every",
        "1",
        "--tokens",
        "2",
        "--holdout",
        "4",
        "--batch",
        "2",
        "--set",
        "topk=4",
        "n_candidates=2",
        "drop_unstable=false",
        "--out",
        "gcg",
        "--quiet",
    ]
    code, out, err = hpt(capsys, *argv, "--tracker", "log")
    assert code == 0 and len(re.findall(r"^step [12], gcg-0: loss", err, re.M)) == 2 and "finished" not in out
    code, again, err = hpt(capsys, *argv)
    assert code == 0 and again.startswith("finished before") and again.endswith(out)
    code, _, err = hpt(capsys, *argv[:-2], "other", "--tracker", "mlflow")
    assert code == 2 and "known: log, tensorboard, trackio, wandb" in err and not Path("other").exists()


def test_transferable_dry_run_and_finished(place, capsys):
    argv = [
        "transferable",
        "--task",
        "mine.toml",
        "--models",
        "./one",
        "./two",
        "--steps",
        "2",
        "--batch",
        "2",
        "--tokens",
        "2",
        "--holdout",
        "4",
        "--limit",
        "12",
        "--seeds",
        "0",
        "--k",
        "4",
        "--out",
        "worth",
    ]
    code, out, err = hpt(capsys, *argv, "--dry-run")
    assert (
        code == 0
        and not Path("worth").exists()
        and "one: tuned on" in out
        and "on this machine" in out
        and "dry run: nothing was loaded, fetched or written" in out
    )
    assert (
        main([*argv, "--dry-run", "--method", "soft"]) == 2
        and main(["transferable", "--task", "mine.toml", "--models", "./one", "--dry-run"]) == 2
    )
    capsys.readouterr()
    code, first, err = hpt(capsys, *argv, "--tracker", "log")
    assert code == 0 and "about" in err and "on this machine" in err and "step 2, pez-0: loss" in err
    code, again, err = hpt(capsys, *argv)
    assert (
        code == 0
        and again == first
        and "finished before" in err
        and "on this machine" not in err
        and "left |" not in err
        and "loss" not in err
    )
    code, _, err = hpt(capsys, *argv, "--against", "Is it good?", "--quiet")
    assert code == 0
    code, _, err = hpt(capsys, *argv, "--against", "Is it bad?")  # one thing more: not finished
    assert code == 0 and "on this machine" in err and "finished before" not in err


# ---- advice ----


def texts_of(path):
    "String constants of a module; a part that is computed is shown by its expression, in braces."
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(v.value) if isinstance(v, ast.Constant) else "{" + ast.unparse(v.value) + "}" for v in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_an_error_never_advises_an_installation_that_does_not_exist():
    "What it names is a package that settings.ini asks for, or that a tracker is; this package itself is on no index."
    from packaging.requirements import Requirement

    known = {
        Requirement(r).name.lower()
        for key, value in SETTINGS.items()
        if key.endswith("requirements")
        for r in value.split()
    }
    trackers = {package for package, *_ in SERVICES.values() if package}
    asked = {}
    for path in sorted(LIB.glob("*.py")):
        for text in texts_of(path):
            for name in re.findall(r"pip install (?:-\S+ )*[\"']?([^\s\"',;)]+)", text):
                asked.setdefault(name, set()).add(path.name)
    assert len(asked) >= 4
    assert {n for n in asked if n.startswith("{")} == {"{service}", "{package}"} and asked["{service}"] == asked[
        "{package}"
    ] == {"trackers.py"}
    assert {n for n in asked if not n.startswith("{")} <= known | trackers
    assert "hpt_nb" not in known and not any(n.startswith("hpt") for n in asked)


def test_trackers_packages_are_asked_for_by_name(monkeypatch):
    for name in ("tensorboard", "trackio", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(InputError, match=f"pip install {name}, or"):
            check_tracker(f"{name}:x")


def test_the_notice_names_what_is_stored():
    text = (ROOT / "NOTICE").read_text(encoding="utf-8")
    from hpt_nb.models import SHIPPED

    assert all(name in text for name in ("SmolLM2-135M", "Gemma-3-270M", "Qwen2.5-Coder-0.5B")) and len(SHIPPED) == 3
    assert "Gemma Terms of Use" in text and "hold the texts and numbers of tokens of Gemma's tokenizer" in " ".join(
        text.split()
    )


def test_the_book_is_published_by_the_workflow_that_makes_it():
    import yaml

    flow = yaml.safe_load((ROOT / ".github/workflows/docs.yml").read_text())
    build, publish = flow["jobs"]["build"]["steps"], flow["jobs"]["publish"]
    assert (
        any(s.get("run") == "make docs" for s in build)
        and publish["needs"] == "build"
        and publish["permissions"] == {"pages": "write", "id-token": "write"}
    )
    assert any(s.get("with", {}).get("path") == "_docs" for s in build)
