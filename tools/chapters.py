"""Runs the chapters and keeps what their cells show: `python tools/chapters.py [--check] [NAME ...]` (default: all).

With `--check` nothing is written: each chapter runs anew, as nbdev_test runs it, and the text that it shows must be the
text that it keeps. Numbers may differ in their last digits, and pictures only have to be there: processors round and
fonts are drawn differently. A cell that takes minutes, a GPU or a hub does not run, and keeps what it showed; the cell
after it reads what it stored.

The libraries are loaded once and every chapter starts from a copy of that process, so a chapter costs its own seconds.
"""

import argparse
import difflib
import gc
import importlib
import multiprocessing
import os
import re
import sys
from configparser import ConfigParser
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded: several chapters run at once

import nbformat

ROOT = Path(__file__).parents[1]
NBS = ROOT / "nbs"
CHAPTERS = sorted(NBS.glob("[0-9][0-9]*_*.ipynb"))  # 05a stands between 05 and 06
PICTURES = ("image/png", "image/svg+xml")
RICH = (*PICTURES, "text/html", "text/markdown")
STYLED = re.compile(r"\bT_[0-9a-f]{5}(?=_|\b)")  # pandas draws a new name for each styled table
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w])")
LOADED = ["datasets", "execnb.shell", "fastcore.test", "jinja2", "matplotlib.pyplot", "scipy.stats", "seaborn"]
LOADED += [f"transformers.models.{m}.modeling_{m}" for m in ("gpt2", "llama", "gemma3")]
LOADED += ["hpt_nb.experiments", "hpt_nb.report", "hpt_nb.run_commands"]  # and with them most rooms
TOLERANCE = 0.002  # relative, of numbers with a decimal point


def left_out() -> set:
    "Directives of cells that the tests do not run."
    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    return set(settings["DEFAULT"]["tst_flags"].split())


def runs(source: str, skip: set) -> bool:
    "Does the cell run in a test?"
    directives = re.findall(r"^#\|\s*(.+?)\s*$", source, re.M)
    return not any(d.split()[0] in skip or d.replace(" ", "") == "eval:false" for d in directives)


def steady(text: str) -> str:
    "Text with a styled table under a name that is the same each time."
    names = {}
    return STYLED.sub(lambda found: names.setdefault(found[0], f"T_{len(names):05d}"), text)


def kept(output: dict):
    "An output without what changes from run to run; None for what a page does not show."
    if output.get("name") == "stderr":
        return None
    if "text" in output:
        return nbformat.v4.new_output("stream", name="stdout", text="".join(output["text"]))
    data = {k: "".join(v) if isinstance(v, list) else v for k, v in output["data"].items()}
    if any("widget" in kind for kind in data):
        return None  # a progress bar
    if any(kind in data for kind in RICH):
        data.pop("text/plain", None)
    return nbformat.v4.new_output("display_data", data={k: steady(v) for k, v in data.items()})


def shown(cell) -> str:
    "What a cell shows, as text; a picture is only named."
    parts = []
    for output in cell.get("outputs", []):
        if "text" in output:
            parts.append("".join(output["text"]))
            continue
        data = output["data"]
        parts += [f"[{kind}]" if kind in PICTURES else "".join(data[kind]) for kind in sorted(data)]
    return "\n".join(part.rstrip() for part in parts)


def close(a: str, b: str) -> bool:
    "Are two numbers, as written, the same to their last digits? Whole numbers must be equal."
    if a == b:
        return True
    if "." not in a and "." not in b:
        return False
    x, y = float(a), float(b)
    digits = max(len(n.partition(".")[2].partition("e")[0]) for n in (a, b))
    return abs(x - y) <= max(TOLERANCE * max(abs(x), abs(y)), 1.5 * 10.0**-digits)


def same(a: str, b: str) -> bool:
    "Do two texts say the same, but for the last digits of their numbers?"
    if NUMBER.sub("#", a) != NUMBER.sub("#", b):
        return False
    return all(close(x, y) for x, y in zip(NUMBER.findall(a), NUMBER.findall(b)))


class Failed(Exception):
    "A cell that raised."


def run(path: Path):
    "The chapter with its outputs, as they are kept."
    from execnb.shell import CaptureShell

    os.environ["IN_TEST"] = "1"
    os.chdir(NBS)
    notebook, skip = nbformat.read(path, as_version=4), left_out()
    shell = CaptureShell(path, mpl_format="png")
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.execution_count, cell.metadata = None, {}
        if not runs(cell.source, skip):
            continue
        outputs = shell.run(cell.source)
        if shell.exc:
            raise Failed(f"cell {cell.id}: {type(shell.exc).__name__}: {shell.exc}\n{cell.source}")
        cell.outputs = [o for o in map(kept, outputs) if o is not None]
    notebook.metadata = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    return notebook


def differences(path: Path) -> list[str]:
    "What a chapter shows now and does not keep, or the other way round."
    lines = []
    for old, new in zip(nbformat.read(path, as_version=4).cells, run(path).cells):
        if old.cell_type == "code" and not same(shown(old), shown(new)):
            both = shown(old).splitlines(), shown(new).splitlines()
            changed = difflib.unified_diff(*both, "kept", "now", lineterm="", n=0)
            lines += [f"{path.name}, cell {old.id}:", *changed]
    return lines


def write(path: Path) -> list[str]:
    "Keep what the chapter shows."
    nbformat.write(run(path), path)
    return []


def spent_s() -> float:
    "Processor seconds of this process and of those that it waited for: on a busy machine the clock says little."
    return sum(os.times()[:4])


def attempt(job: tuple) -> tuple:
    "(name, processor seconds, lines to say) of one chapter; one that fails says its error."
    path, check = job
    began = spent_s()
    try:
        lines = (differences if check else write)(path)
    except Exception as e:
        lines = [f"{path.name}: {e}"]
    return path.stem, spent_s() - began, lines


def load():
    "Load what the chapters import, once for all of them; a computation here would start threads that a copy lacks."
    sys.path.insert(0, str(ROOT))
    os.fsync = lambda fd: None  # a chapter's folders are gone with it; tests/test_faults.py looks at what is flushed
    for name in LOADED:
        importlib.import_module(name)
    from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    gc.freeze()  # no copy looks through what all of them share


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="chapters, such as 03_vocab; default: all")
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit with 1 where a chapter fails or shows other text than it keeps",
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timing", action="store_true", help="say what each chapter took in processor seconds")
    args = parser.parse_args(argv)
    jobs = [(path, args.check) for path in CHAPTERS if not args.names or path.stem in args.names]
    load()
    from tqdm import tqdm

    # "fork": each chapter is a copy of this process, its libraries loaded; one chapter a copy, so none sees another's
    with multiprocessing.get_context("fork").Pool(args.workers, maxtasksperchild=1) as pool:
        bar = tqdm(pool.imap_unordered(attempt, jobs), total=len(jobs), desc="chapters", unit="chapter")
        results = sorted(bar)
    if args.timing:
        for name, seconds, _ in sorted(results, key=lambda r: -r[1]):
            print(f"{seconds:6.1f} s  {name}")
    lines = [line for _, _, said in results for line in said]
    print("\n".join(lines), end="\n" if lines else "")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
