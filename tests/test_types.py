"A user's script under a type checker: quiet where it is right, and not where it is wrong."

import inspect
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import hpt_nb

ROOT = Path(__file__).parents[1]
RIGHT = """\
from hpt_nb import InputError, Prompt, Run, Task, Vocab, audit, common_vocab, label_logprobs
from hpt_nb import load_lm, load_task, stable_vocab, transferable, tune

task: Task = load_task("my.toml")
lm, other = load_lm("smollm2-135m"), load_lm("gemma-3-270m", dtype="float32", device="cpu")
vocab: Vocab = stable_vocab([lm, other], k=64).top(8192)
vocab.save("stable.parquet")
again = Vocab.load("stable.parquet")
print(len(common_vocab([lm, other])), again.models, lm.embeddings.shape, lm.token_bytes[0])
runs: list[Run] = tune(lm, task, vocab, steps=100, seeds=[0, 1], on_judge=lambda steps, runs: runs[0].best_holdout > .9)
best = max(runs, key=lambda r: r.best_holdout)
prompt = Prompt.of(best.prompt_ids, task, [lm, other], calibrate=100)
prompt.save("prompt.json")
few = task.subset("validation", 100)
print(prompt.classify(lm, few.texts, True).head(), label_logprobs(lm, task, few.texts, prompt.text).argmax(-1))
try: found = audit(task, [lm, other], [prompt.text, "Good or bad?"], limit=None)
except InputError as e: print(e)
else: print(found["advice"])
worth = transferable("my.toml", ["smollm2-135m", "gemma-3-270m"], start=None, steps=100)
print(worth["prompt"], best.curve["holdout"], best.best_step + 1)
"""
WRONG = """\
from hpt_nb import Vocab, load_lm, load_task, tune
load_lm(3)
load_lm("a").nonsense
Vocab.load("v").top("many")
load_task("t").subset("train", 3).texts.shape
tune(load_lm("a"), load_task("t"))[0].best_holdout.upper()
from hpt_nb import nothing_of_that_name
"""
# The libraries' own types take minutes to read and are not what is looked at: their names count as anything.
CONFIG = """\
[mypy]
follow_imports = silent
ignore_missing_imports = True
[mypy-@]
follow_imports = skip
"""
SKIPPED = (
    "torch",
    "transformers",
    "pandas",
    "numpy",
    "huggingface_hub",
    "safetensors",
    "pyarrow",
    "scipy",
    "matplotlib",
)
SKIPPED += ("tqdm", "datasets", "sklearn", "seaborn", "gguf")
CONFIG = CONFIG.replace("@", ",".join(f"{name}.*" for name in SKIPPED))


def test_the_type_checker_is_quiet_on_a_users_script_and_only_there(tmp_path):
    assert find_spec("mypy"), "mypy is a requirement of development; run: make setup"
    for name, text in (("right.py", RIGHT), ("wrong.py", WRONG), ("mypy.ini", CONFIG)):
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache", "right.py", "wrong.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "MYPYPATH": str(ROOT)},
    )
    said = re.findall(r"^(\w+\.py):(\d+): error: (.*)", done.stdout, re.M)
    assert [line for line in said if line[0] == "right.py"] == [], done.stdout + done.stderr
    assert [int(n) for _, n, _ in said] == [2, 3, 4, 5, 6, 7], done.stdout + done.stderr


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "hpt_nb" / "py.typed").is_file() and len(RIGHT.splitlines()) <= 20


def test_names_for_the_type_checker_are_those_that_python_finds():
    text = (ROOT / "hpt_nb" / "__init__.py").read_text(encoding="utf-8")
    typed = {}
    for module, names in re.findall(r"^    from \.(\w+) import (.+)$", text, re.M):
        typed.setdefault(module, set()).update(re.findall(r"(\w+) as \1", names))
    assert typed == {m: set(names) for m, names in hpt_nb._FROM.items()}


FRESH = """\
import sys, time
began = time.process_time()
import hpt_nb
took = time.process_time() - began
assert took < .3, took
heavy = [m for m in ("torch", "numpy", "pandas", "transformers", "hpt_nb.store") if m in sys.modules]
assert not heavy, heavy
assert {"load_lm", "tune", "audit", "Prompt", "Task", "Vocab", "transferable"} <= set(dir(hpt_nb))
assert "HardPromptClassifier" in dir(hpt_nb)
from hpt_nb import Task, load_task
assert "torch" not in sys.modules                       # a task needs none
import hpt_nb.transfer
from hpt_nb.transfer import certify
from hpt_nb import transfer, load_lm, tune, audit, Prompt, Vocab, label_logprobs, stable_vocab, stability, common_vocab
assert callable(transfer) and hpt_nb.transfer is transfer and transfer.__module__ == "hpt_nb.transfer"
import hpt_nb.practice
from hpt_nb import transfer as again, transferable
assert again is transfer and callable(transferable) and hpt_nb.transfer.certify is certify
try: transfer()
except TypeError as e: assert "transfer() missing" in str(e)
else: raise SystemExit("not the function")
assert [n for n in hpt_nb.__all__ if not callable(getattr(hpt_nb, n))] == []
try: hpt_nb.nonsense
except AttributeError as e: assert "nonsense" in str(e)
else: raise SystemExit("no AttributeError")
"""


def test_the_package_alone_is_light_and_its_names_come_when_asked_for():
    done = subprocess.run([sys.executable, "-c", FRESH], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def public_functions():
    "(name, function) of the package's functions, and of the methods that its classes define."
    for name in hpt_nb.__all__:
        found = getattr(hpt_nb, name)
        if inspect.ismodule(found):
            found = getattr(found, name)  # `transfer` names a room too
        if not inspect.isclass(found):
            yield name, found
            continue
        for own, value in vars(found).items():
            value = getattr(value, "fget", None) or getattr(value, "func", None) or getattr(value, "__func__", value)
            made_here = getattr(value, "__module__", "").startswith("hpt_nb")
            if inspect.isfunction(value) and made_here and (own == "__init__" or not own.startswith("_")):
                yield f"{name}.{own}", value


def test_every_parameter_of_a_public_function_has_a_type():
    bare, count = [], 0
    for name, f in public_functions():
        signature = inspect.signature(f)
        count += len(signature.parameters)
        bare += [
            f"{name}({p.name})"
            for p in signature.parameters.values()
            if p.annotation is p.empty and p.name not in ("self", "cls")
        ]
        if signature.return_annotation is signature.empty and not name.endswith("__init__"):
            bare.append(f"{name} -> ?")
    assert count > 230 and [b for b in bare if not b.startswith("Callback.__init__")] == []
