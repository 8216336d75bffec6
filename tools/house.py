"""Checks what a machine can check of the house style (CONTRIBUTING.md): `python tools/house.py [--write]`.

Exits with 1 where a file breaks a rule, and where tools/untidy.json lists a rule that its file no longer breaks.
That list is what is still to do: a file's name, and the rules that it breaks. It should only get shorter;
`--write` writes it anew.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
UNTIDY = ROOT / "tools/untidy.json"
LINES, WIDTH, FUNCTION, CELLS = 350, 120, 40, 70
BY_HAND = ("hpt_nb/__init__.py", "hpt_nb/__main__.py")  # the other modules are written by nbdev, from what is checked
PAINTERS = ("00y_methods.ipynb", "00z_palette.ipynb")  # where the colours of methods and of all else are written down
COLOUR = re.compile(r"""["'](#[0-9A-Fa-f]{6}|tab:\w+|(light|dark)(gr[ae]y|red|orange|green|blue))["']""")
CHECKED = ("nbs", "tests", "tools", "benchmarks", "examples", "setup.py", *BY_HAND)


def wide(source: str) -> bool:
    "Is a line too long? What nbdev writes itself does not count: the list of public names."
    lines, ours = source.splitlines(), True
    for line in lines:
        if line.startswith(("__all__ = [", "# %%")):
            ours = not line.startswith("__all__")
        if ours and len(line) > WIDTH:
            return True
    return False


def functions(tree) -> list:
    return [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def borrowed(tree) -> list:
    "Private names that are imported from another room."
    rooms = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    names = [a.name for n in rooms if n.level or (n.module or "").startswith("hpt_nb") for a in n.names]
    return [name for name in names if name.startswith("_") and not name.startswith("__")]


def attached(tree) -> list:
    "Methods that are put on a class after it was made, and classes that inherit from an earlier self."
    classes = {n.name for n in tree.body if isinstance(n, ast.ClassDef)}
    targets = [t for n in tree.body if isinstance(n, ast.Assign) for of in n.targets for t in getattr(of, "elts", [of])]
    late = [t.attr for t in targets if isinstance(t, ast.Attribute) and getattr(t.value, "id", None) in classes]
    grown = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name in [getattr(b, "id", "") for b in n.bases]]
    return late + [n.name for n in grown]


def named(tree) -> set:
    "Names that a module takes from others at its top: a room that offers them all is there for users, not for rooms."
    return {a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}


def passed_on(tree, taken: dict) -> list:
    "Names that are imported from a room which itself imports them. `taken`: module -> what it imports."
    rooms = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
    ours = [(n.module.removeprefix("hpt_nb."), n) for n in rooms if n.level or n.module.startswith("hpt_nb.")]
    return [a.name for module, n in ours for a in n.names if a.name in taken.get(module, ())]


def of_module(source: str, taken: dict) -> set:
    "Rules that a module breaks."
    tree = ast.parse(source)
    broken = {
        f"over {LINES} lines": len(source.splitlines()) > LINES,
        f"a line over {WIDTH} characters": wide(source),
        f"a function of {FUNCTION} lines or more": any(
            f.end_lineno - f.lineno + 1 >= FUNCTION for f in functions(tree)
        ),
        "a private name of another room": bool(borrowed(tree)),
        "a method attached to a class": bool(attached(tree)),
        "a name imported from a room that does not define it": bool(passed_on(tree, taken)),
    }
    return {rule for rule, is_broken in broken.items() if is_broken}


def painted(cells: list) -> list:
    "Colours that a chapter writes down itself, outside its tests."
    lines = [line for c in cells if c["cell_type"] == "code" for line in c["source"]]
    return [line for line in lines if COLOUR.search(line) and not line.lstrip().startswith(("test_", "assert"))]


def of_chapter(name: str, cells: list) -> set:
    "Rules that a notebook breaks."
    broken = {
        f"over {CELLS} cells": len(cells) > CELLS,
        "a colour that is not the palette's": name not in PAINTERS and bool(painted(cells)),
    }
    return {rule for rule, is_broken in broken.items() if is_broken}


def by_ruff() -> dict:
    "file -> rules, of what ruff has to say."
    paths = [p for p in CHECKED if (ROOT / p).exists()]
    ruff = [sys.executable, "-m", "ruff"]
    how = dict(cwd=ROOT, capture_output=True, text=True)
    found = subprocess.run([*ruff, "check", "--no-cache", "--output-format", "json", *paths], **how)
    laid_out = subprocess.run([*ruff, "format", "--no-cache", "--check", *paths], **how)
    if found.returncode not in (0, 1) or laid_out.returncode not in (0, 1):
        raise SystemExit(found.stderr + laid_out.stderr)
    out = {}
    for fault in json.loads(found.stdout):
        name = Path(fault["filename"]).relative_to(ROOT).as_posix()
        out.setdefault(name, set()).add(f"ruff {fault['code'] or 'syntax'}")
    for line in laid_out.stdout.splitlines():
        if line.startswith("Would reformat: "):
            out.setdefault(line.removeprefix("Would reformat: "), set()).add("ruff format")
    return out


def broken() -> dict:
    "file -> rules that it breaks, sorted."
    out = by_ruff()
    modules = {p.stem: p.read_text(encoding="utf-8") for p in ROOT.glob("hpt_nb/*.py") if p.name != "_modidx.py"}
    taken = {name: named(ast.parse(source)) for name, source in modules.items()}
    for name, source in modules.items():
        of = {} if name == "__init__" else taken  # it names the rooms that users know
        out.setdefault(f"hpt_nb/{name}.py", set()).update(of_module(source, of))
    for p in ROOT.glob("nbs/*.ipynb"):
        cells = json.loads(p.read_text(encoding="utf-8"))["cells"]
        out.setdefault(f"nbs/{p.name}", set()).update(of_chapter(p.name, cells))
    return {name: sorted(rules) for name, rules in sorted(out.items()) if rules}


def differences(found: dict, listed: dict) -> list:
    "Lines on what is broken and not listed, and on what is listed and no longer broken."
    out = []
    for name in sorted(found.keys() | listed.keys()):
        now, known = set(found.get(name, ())), set(listed.get(name, ()))
        out += [f"{name}: {rule}" for rule in sorted(now - known)]
        out += [f"{name}: take {rule!r} out of tools/untidy.json, it is mended" for rule in sorted(known - now)]
    return out


def main(args):
    found = broken()
    if "--write" in args:
        UNTIDY.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return
    lines = differences(found, json.loads(UNTIDY.read_text(encoding="utf-8")))
    print(*lines, sep="\n", end="\n" if lines else "")
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
