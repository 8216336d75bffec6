"""Runs the chapters and keeps what their cells show: `python tools/chapters.py [--check] [NAME ...]` (default: all of them).

With `--check` nothing is written: each chapter is run anew, and what it shows as text must be what it keeps. Pictures need only be there, since fonts differ from machine to machine.
A cell that takes minutes, a GPU or a hub is not run, and keeps what it showed; the cell after it reads what it stored.
"""
import argparse
import difflib
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat

from book import CHAPTERS, run_chapter

PICTURES = ("image/png", "image/svg+xml")
_STYLER = re.compile(r"\bT_[0-9a-f]{5}\b")    # pandas draws a new one for each styled table

def steady(text:str)->str:
    "A styled table under a name that is the same each time."
    names = {}
    return _STYLER.sub(lambda m: names.setdefault(m[0], f"T_{len(names):05d}"), text)

def kept(output):
    "An output without what changes from run to run; None for what a page does not show."
    if output.get("name") == "stderr": return None
    if "text" in output: return nbformat.v4.new_output("stream", name="stdout", text=output.text)
    data = dict(output.data)
    if any(kind in data for kind in PICTURES): data.pop("text/plain", None)
    if "text/html" in data or "text/markdown" in data: data.pop("text/plain", None)
    return nbformat.v4.new_output("display_data", data={k: steady(v) if isinstance(v, str) else v for k, v in data.items()})

def shown(cell)->str:
    "What a cell shows, as text; a picture is only named."
    parts = []
    for o in cell.get("outputs", []):
        data = {} if "text" in o else o.data
        parts += [o.text] if "text" in o else [f"[{k}]" if k in PICTURES else str(v) for k, v in sorted(data.items())]
    return "\n".join(p.rstrip() for p in parts)

def run(path:Path):
    "The chapter with its outputs, as they are kept."
    nb = run_chapter(path)
    for cell in nb.cells:
        if cell.cell_type != "code": continue
        cell.execution_count, cell.metadata = None, {}
        cell.outputs = [o for o in map(kept, cell.get("outputs", [])) if o is not None]
    nb.metadata = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    return nb

def differences(path:Path)->list[str]:
    "What a chapter shows now and does not keep, or the other way round."
    old, new = nbformat.read(path, as_version=4), run(path)
    lines = []
    for a, b in zip(old.cells, new.cells):
        if a.cell_type == "code" and shown(a) != shown(b):
            lines += [f"{path.name}, cell {a.id}:", *difflib.unified_diff(shown(a).splitlines(), shown(b).splitlines(), "kept", "now", lineterm="", n=0)]
    return lines

def write(path:Path)->list[str]:
    "Keep what the chapter shows."
    nbformat.write(run(path), path)
    return []

def attempt(job, path:Path)->list[str]:
    "The lines that `job` has to say of a chapter; one that fails says its error."
    try: return job(path)
    except Exception as e: return [f"{path.name}: {e}"]

def main(argv=None)->int:
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("names", nargs="*", help="chapters, such as 03_vocab; default: all")
    p.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a chapter fails, or shows other text than it keeps")
    p.add_argument("--workers", type=int, default=2)
    args = p.parse_args(argv)
    paths = [c for c in CHAPTERS if not args.names or c.stem in args.names]
    os.environ["OMP_NUM_THREADS"] = "1"
    job = differences if args.check else write
    from tqdm import tqdm
    with ThreadPoolExecutor(args.workers) as pool:
        said = list(tqdm(pool.map(lambda path: attempt(job, path), paths), total=len(paths), desc="chapters", unit="chapter"))
    lines = [line for found in said for line in found]
    print("\n".join(lines), end="\n" if lines else "")
    return bool(lines)

if __name__ == "__main__": sys.exit(main())
