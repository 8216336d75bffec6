"""Writes what each stored result is, which commit made it and which page shows it: `python tools/inventory.py
[--check]` -> results/README.md.

With `--check` nothing is written; it exits with 1 where the list is not current, or a stored result is shown by no
page.
"""

import json
import re
import sys
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIST = ROOT / "results/README.md"
HEAD = """# Stored results

<!-- Made by tools/inventory.py; `make readme` makes it again. -->

Every number on a page comes from one of the files below. Each result records its configuration, commit, device, \
number format, seeds and computing time. A folder holds one small file for each finished result (chapter \
[00e](../nbs/00e_folders.ipynb)); a pack is such a folder as one compressed file ([00f](../nbs/00f_packing.ipynb)). \
The last column names the chapters that show it.
"""
FOLDERS = {
    "Runs": ("results", ("*.pack", "*/")),
    "Slow cells of chapters": ("nbs/stored", ("*.json",)),
    "Benchmarks": ("benchmarks/results", ("*.json",)),
    "With the package": ("hpt_nb", ("study.json",)),
}


def title(path: Path) -> str:
    "The title of a notebook."
    nb = json.loads(path.read_text(encoding="utf-8"))
    return re.search(r"^# (.*)$", "".join(nb["cells"][0]["source"]), re.M)[1]


def sources() -> dict:
    "page -> what its cells say, without what they show."
    pages = sorted((ROOT / "nbs").glob("[0-9]*_*.ipynb"))
    return {
        p: "\n".join("".join(c["source"]) for c in json.loads(p.read_text(encoding="utf-8"))["cells"]) for p in pages
    }


def metas(path: Path) -> list:
    "What the results in a file, folder or pack say of their origin."
    sys.path.insert(0, str(ROOT))
    from hpt_nb.store import Store

    if path.suffix == ".json":
        return [json.loads(path.read_text(encoding="utf-8"))["meta"]]
    return [c["meta"] for c in Store(path).cells()]


def commits(found) -> str:
    return ", ".join(sorted({m["commit"][:8] for m in found if m.get("commit")}))


def shown_by(path: Path, pages: dict) -> list:
    "Pages that read a result. The study's packs are also read by name."
    names = [path.name, path.stem] if path.suffix != ".json" else [path.name]
    part = path.stem.removeprefix("study-")
    globs = lambda text: any(
        fnmatch(path.name, g) and path.parent.name in text for g in re.findall(r"glob\(\\?\"([^\"\\]+\.json)", text)
    )
    read = lambda text: (
        globs(text)
        or any(re.search(rf"[\"'/]{re.escape(n)}[\"']", text) for n in names)
        or f'("{path.stem}")' in text
        or path.suffix == ".pack"
        and re.search(r"study-\{", text)
        and f'"{part}"' in text
    )
    return [p for p, text in pages.items() if read(text)]


def line(path: Path, pages: dict) -> str:
    found, where = metas(path), shown_by(path, pages)
    if not where and path.name != "study.json":
        sys.exit(f"{path.relative_to(ROOT)}: no page shows it; show it or remove it")
    links = ", ".join(f"[{p.stem}](../nbs/{p.name})" for p in where) or "every page of `hpt report`, the README"
    return f"| `{path.relative_to(ROOT).as_posix()}` | {len(found):,} | {commits(found)} | {links} |"


def large() -> str:
    "Which packs are larger than 1 MiB, and why."
    from hpt_nb.store import Store

    packs = [p for p in sorted((ROOT / "results").glob("*.pack")) if p.stat().st_size > 2**20]
    scores = "; ".join(f"`{p.name}` has {len(list(Store(p).cells('eval'))):,} scores" for p in packs)
    return (
        "\nFor each score a pack keeps the label log-probabilities of every text, so any measure can be computed from "
        f"it later. That makes some packs larger than 1 MiB: {scores}.\n"
    )


def whole() -> str:
    "The list as it should be."
    pages = sources()
    sys.path.insert(0, str(ROOT))
    text = HEAD + large()
    for name, (folder, patterns) in FOLDERS.items():
        paths = sorted(
            p for pattern in patterns for p in (ROOT / folder).glob(pattern) if not p.name.startswith((".", "__"))
        )
        text += (
            f"\n## {name}\n\n| file | results | commit | shown in |\n|---|---|---|---|\n"
            + "\n".join(line(p, pages) for p in paths)
            + "\n"
        )
    return text


def main(check: bool):
    text = whole()
    if not check:
        LIST.write_text(text, encoding="utf-8")
    elif not LIST.is_file() or LIST.read_text(encoding="utf-8") != text:
        sys.exit("results/README.md is not current; run: make readme")


if __name__ == "__main__":
    main("--check" in sys.argv[1:])
