"""The project's frame: notebooks and modules agree, nothing is stale, nothing belongs to one machine only."""

import ast
import configparser
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from functools import cache
from pathlib import Path

import pytest

from forked import ANEW, needs_copies, run as run_copy

ROOT = Path(__file__).parents[1]
NBS, LIB = ROOT / "nbs", ROOT / "hpt_nb"
NOTEBOOKS = sorted(NBS.glob("*.ipynb"))
CHAPTERS = [p for p in NOTEBOOKS if re.match(r"\d\d[a-z]{0,2}_", p.name)]  # 05a stands between 05 and 06
REPORTS = [p for p in CHAPTERS if p.name.startswith(("23_", "29_", "3"))]
BY_HAND = ("__init__.py", "__main__.py")  # the names of the package, and `python -m hpt_nb`: no notebook makes them
MODULES = sorted(p for p in LIB.glob("*.py") if p.name not in (*BY_HAND, "_modidx.py"))
SETTINGS = configparser.ConfigParser(delimiters=["="], interpolation=None)
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = SETTINGS["DEFAULT"]
FLAGS = SETTINGS["tst_flags"].split()


@cache
def book(path) -> list:
    "A notebook's cells; each file is read once for all tests."
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def cells(path, kind="code"):
    "Sources of a notebook's cells of one kind."
    return ["".join(c["source"]) for c in book(path) if c["cell_type"] == kind]


def directives(source):
    return re.findall(r"^#\|\s*(.+?)\s*$", source, re.M)


def flagged(source, *flags):
    return any(d.split()[0].rstrip(":") in flags for d in directives(source))


def module_of(path):
    "Module that a notebook exports to, or None."
    return next((d.split()[1] for s in cells(path) for d in directives(s) if d.startswith("default_exp ")), None)


def project_files():
    "Files of the project: everything that .gitignore does not name."
    ignored = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line} | {".git"}
    for folder, subs, names in os.walk(ROOT):
        subs[:] = [s for s in subs if s not in ignored and not s.endswith(".egg-info")]
        yield from (Path(folder) / n for n in names)


def run(*args, cwd=ROOT, **env):
    "Run a command; its standard output. A failure shows what it printed."
    done = subprocess.run([str(a) for a in args], cwd=cwd, capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tool(name: str):
    "One of the project's programs, as a module of this process."
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


# ---- notebooks and modules ----


def test_each_module_has_its_notebook():
    assert {p.stem: re.search(r"File to edit: (\S+\.ipynb)", p.read_text(encoding="utf-8"))[1] for p in MODULES} == {
        module_of(p): f"../nbs/{p.name}" for p in NOTEBOOKS if module_of(p)
    }


def test_chapters_stand_in_reading_order():
    assert NOTEBOOKS and [p.name for p in NOTEBOOKS if p not in CHAPTERS] == ["index.ipynb"]
    for p in CHAPTERS:
        if p not in REPORTS:
            assert module_of(p) == p.stem.partition("_")[2], f"{p.name} exports to {module_of(p)}"


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    "A copy of the notebooks, exported and cleaned anew."
    root = tmp_path_factory.mktemp("fresh")
    shutil.copy(ROOT / "settings.ini", root)
    shutil.copytree(NBS, root / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (root / "hpt_nb").mkdir()
    for name in BY_HAND:
        shutil.copy(LIB / name, root / "hpt_nb")
    bin_ = Path(sys.executable).parent
    run(bin_ / "nbdev_export", cwd=root)
    run(bin_ / "nbdev_clean", cwd=root)
    return root


def test_export_is_current(fresh):
    made = {p.name: p.read_text(encoding="utf-8") for p in (fresh / "hpt_nb").glob("*.py")}
    here = {p.name: p.read_text(encoding="utf-8") for p in LIB.glob("*.py")}
    assert made.keys() == here.keys()
    assert [n for n in made if made[n] != here[n]] == [], "run: make readme"


def faults(paths, of) -> list:
    "`<name>: <fault>` for each that `of` finds in one of the files."
    return [f"{path.name}: {fault}" for path in paths for fault in of(path)]


def test_notebooks_are_clean(fresh):
    def of(path):
        if (fresh / "nbs" / path.name).read_text(encoding="utf-8") != path.read_text(encoding="utf-8"):
            yield f"run: nbdev_clean --fname {path}"
        for cell in book(path):
            shown = cell.get("outputs", [])
            if cell.get("execution_count") is not None:
                yield "counts its runs"
            if any(o.get("name") == "stderr" or o["output_type"] == "error" for o in shown):
                yield f"an error or a warning: {cell['source']}"
            parts = [(kind, str(v)) for o in shown for kind, v in o.get("data", o).items()]
            text = "".join(v for kind, v in parts if not kind.startswith("image/"))
            if re.search(r"\b0x[0-9a-f]{8,}\b", text):
                yield f"an address of this process: {cell['source']}"

    assert faults(NOTEBOOKS, of) == []


def test_notebooks_keep_their_figures():
    "A chapter that draws keeps a picture; `tools/chapters.py --check`, in `make test`, compares what the rest show."

    def of(path):
        kinds = {kind for cell in book(path) for o in cell.get("outputs", []) for kind in o.get("data", {})}
        drawn = [s for s in cells(path) if not flagged(s, "hide", "export", *FLAGS) and "Figure()" not in s]
        draws = any(re.search(r"^(ax = )?plot_\w+\(", s, re.M) for s in drawn)
        if draws and not kinds & {"image/png", "image/svg+xml"}:
            yield f"run: python tools/chapters.py {path.stem}"
        if path.stat().st_size >= 2**20:
            yield "1 MiB or more"

    assert faults(CHAPTERS, of) == []


def test_notebooks_run():
    "No notebook is left out of the tests, and no exported cell."

    def of(path):
        code = cells(path)
        runs = [s for s in code if not flagged(s, *FLAGS) and "eval: false" not in directives(s)]
        if len(runs) < len(code) / 2:
            yield "most of its cells do not run"
        if re.search(r"skip_exec:\s*true", "\n".join(cells(path, "raw") + cells(path, "markdown"))):
            yield "is not run at all"
        if any(flagged(s, "default_exp") and flagged(s, *FLAGS) for s in code):
            yield "the cell that names its module does not run"
        for s in code:
            if flagged(s, "export", "exporti", "exports") and s not in runs:
                yield f"exported, and does not run: {s}"

    assert faults(CHAPTERS, of) == []


def test_slow_cells_are_read_back():
    "A run of slow cells ends by storing its result, which the next cell reads: the notebook stands on a laptop too."

    def of(path):
        code = cells(path)
        for i, source in enumerate(code):
            if flagged(source, "slow") and not flagged(code[i + 1], "slow"):
                if not re.search(r"\bkeep\w*\(", source):
                    yield f"slow cell {i} stores nothing"
                if "recall(" not in code[i + 1]:
                    yield f"slow cell {i} is not read back"

    assert faults(CHAPTERS, of) == []


def test_chapters_open_with_title_and_subtitle():
    assert [p.name for p in CHAPTERS if not re.match(r"# .+\n\n> .+", cells(p, "markdown")[0])] == []


# ---- the library ----


def imports(path):
    "Modules of this package that a module imports, inside functions too."
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level == 0 and not module.startswith("hpt_nb"):
                continue
            module = module.removeprefix("hpt_nb").strip(".")
            yield from [module.split(".")[0]] if module else [a.name for a in node.names if a.name != "__version__"]
            assert all(a.name != "*" for a in node.names), f"{path.name} imports * from {module}"
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("hpt_nb."))


def test_imports_only_earlier_chapters():
    order = [module_of(p) for p in CHAPTERS if module_of(p)]
    later = lambda path: set(imports(path)) - set(order[: order.index(path.stem)])
    assert faults(MODULES, later) == []


# ---- the house style ----


def test_the_house_is_in_order():
    "Sizes of rooms, functions, lines and chapters; ruff; what still breaks a rule stands in tools/untidy.json."
    house = tool("house")
    assert house.differences(house.broken(), json.loads(house.UNTIDY.read_text(encoding="utf-8"))) == []


@pytest.fixture(scope="session")
def house():
    return tool("house")


SOURCES = {  # a module that breaks each rule, and one that nearly does
    "over 350 lines": ("x = 1\n" * 351, "x = 1\n" * 350),
    "a line over 120 characters": ("# %% a\n# " + "x" * 119, "__all__ = ['" + "x" * 120 + "']\n# %% a\n# " + "x" * 118),
    "a function of 40 lines or more": ("def f():\n" + "    x\n" * 39, "@g\ndef f():\n" + "    x\n" * 38),
    "a private name of another room": ("from .store import _x", "from os import _exit\nfrom . import __version__"),
    "a method attached to a class": ("class A: pass\nA.f = 1", "class A: pass\na.f = A"),
    "a name imported from a room that does not define it": ("from .store import x", "from .base import x"),
}
TAKEN = {"store": {"x"}}


@pytest.mark.parametrize("rule", SOURCES)
def test_each_rule_of_the_house_can_be_broken(house, rule):
    bad, good = SOURCES[rule]
    assert (house.of_module(bad, TAKEN), house.of_module(good, TAKEN)) == ({rule}, set())


def test_other_rules_of_the_house_can_be_broken(house):
    grown, pair = "class A: pass\nclass A(A): pass", "class A: pass\nA.f, A.g = 1, 2"
    assert house.of_module(grown, {}) == house.of_module(pair, {}) == {"a method attached to a class"}
    blank = dict(cell_type="markdown", source=[])
    assert (house.of_chapter("a", [blank] * 71), house.of_chapter("a", [blank] * 70)) == ({"over 70 cells"}, set())
    tested = dict(cell_type="code", source=['test_eq(x, "#0072B2")'])
    assert house.of_chapter("a", [tested]) == set()
    for color in ("#0072B2", "tab:red", "lightgrey"):
        written = dict(cell_type="code", source=[f'x = "{color}"'])
        assert house.of_chapter("a", [written]) == {"a colour that is not the palette's"}, color
    assert house.differences({"a": ["r"]}, {"b": ["s"]}) == [
        "a: r",
        "b: take 's' out of tools/untidy.json, it is mended",
    ]
    assert house.differences({"a": ["r"]}, {"a": ["r"]}) == []


def test_no_name_is_undefined_or_unused():
    run(sys.executable, "-m", "pyflakes", *MODULES)


LIGHT = ("base", "files", "records", "packs", "folders", "packing", "status", "fetch", "store", "kinds")
LIGHT += ("tasks", "report")
NOTEBOOK_TOOLS = ("nbdev", "fastcore", "execnb", "IPython", "pytest")


ALONE = """
import importlib, os, traceback
for name in [m for m in sys.modules if m.partition(".")[0] in ("pytest", "_pytest")]:
    del sys.modules[name]  # it came with the copy
tools, every, *asked = (part.split() for part in sys.argv[1:])
for names in [*asked[0], every]:
    child = os.fork()
    if not child:
        try:
            for name in [names] if isinstance(names, str) else names:
                importlib.import_module("hpt_nb." + name)
            if names is every:
                print(*{*tools} & {*sys.modules})
        except BaseException:
            print(name, traceback.format_exc())
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
"""


def alone(asked) -> str:
    "What goes wrong where each of some rooms is imported alone; and notebook tools that all of them together load."
    rooms = [" ".join(names) for names in (NOTEBOOK_TOOLS, (p.stem for p in MODULES), asked)]
    return run_copy(ANEW + ALONE, *rooms, check=True).stdout.strip()


@needs_copies
def test_rooms_are_imported_alone_and_need_no_notebook_tools():
    "Each that no other room imports; the others come with them."
    inner = {name for p in MODULES for name in imports(p)}
    assert alone(p.stem for p in MODULES if p.stem not in inner) == ""


@pytest.mark.slow
@needs_copies
def test_each_room_is_imported_alone():
    assert alone(p.stem for p in MODULES) == ""


def test_import_is_lean():
    "Results and tasks need no torch, and drawing waits for something drawn."
    light = ", ".join(f"hpt_nb.{name}" for name in LIGHT)
    loaded = run(sys.executable, "-c", f"import sys, {light}; print(*sys.modules)").split()
    assert not {"torch", "transformers", "matplotlib", *NOTEBOOK_TOOLS} & {*loaded}


def test_public_functions_are_documented():
    def of(path):
        module = importlib.import_module(f"hpt_nb.{path.stem}")
        public = [getattr(module, n) for n in module.__all__]
        return [o.__name__ for o in public if (inspect.isfunction(o) or inspect.isclass(o)) and not o.__doc__]

    assert faults(MODULES, of) == []


# ---- the package ----


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    "The wheel, built from a copy with what this environment has: nothing is fetched."
    root = tmp_path_factory.mktemp("wheel")
    for name in ("settings.ini", "setup.py", "MANIFEST.in", "LICENSE", "NOTICE", "README.md"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(LIB, root / "hpt_nb", ignore=shutil.ignore_patterns("__pycache__"))
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        root / "out",
        root,
    )
    with zipfile.ZipFile(next((root / "out").glob("*.whl"))) as z:
        return {n: z.read(n).decode("utf-8") for n in z.namelist()}


def test_wheel_holds_the_library(wheel):
    want = {
        f"hpt_nb/{p.relative_to(LIB).as_posix()}"
        for p in LIB.rglob("*")
        if p.suffix in (".py", ".toml", ".json", ".typed", ".j2", ".css", ".js")
    }
    assert {n for n in wheel if n.startswith("hpt_nb/")} == want
    for name in ("LICENSE", "NOTICE"):
        assert any(n.endswith(name) for n in wheel)


def test_wheel_says_what_settings_say(wheel):
    meta = message_from_string(next(v for n, v in wheel.items() if n.endswith(".dist-info/METADATA")))
    loose = lambda reqs: {re.sub(r"[\s\"']", "", r).lower() for r in reqs}
    said = loose(meta.get_all("Requires-Dist"))
    plain = {r for r in said if "extra==" not in r}
    split = lambda r: (
        re.match(r"[\w.-]+", r)[0],
        frozenset(re.sub(r"^[\w.-]+", "", r.split(";")[0]).split(",")),
        r.partition(";")[2],
    )
    assert {split(r) for r in plain} == {split(r) for r in loose(SETTINGS["requirements"].split())}
    assert len(said - plain) == sum(len(SETTINGS[k].split()) for k in SETTINGS if k.endswith("_requirements"))
    assert meta["Version"] == SETTINGS["version"] and meta["Requires-Python"] == f">={SETTINGS['min_python']}"
    urls = dict(u.split(", ", 1) for u in meta.get_all("Project-URL"))
    assert {"Documentation", "Source", "Issues", "Changelog"} <= set(urls) and all(
        u.startswith("https://") for u in urls.values()
    )
    assert {"Typing :: Typed", "Development Status :: 3 - Alpha", "Intended Audience :: Science/Research"} <= set(
        meta.get_all("Classifier")
    )
    assert set(meta.get_all("License-File")) == {"LICENSE", "NOTICE"} and meta["License"] == "Apache-2.0"
    assert "hpt = hpt_nb.cli:main" in next(v for n, v in wheel.items() if n.endswith("entry_points.txt"))


def test_constraints_meet_the_requirements():
    from packaging.requirements import Requirement

    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            pin = Requirement(line)
            assert re.fullmatch(r"==[^+*]+", str(pin.specifier)), (
                f"{line}: need one exact version, without a local part"
            )
            pins[pin.name.lower()] = str(pin.specifier)[2:]
    for req in map(Requirement, " ".join(SETTINGS[f"{kind}requirements"] for kind in ("", "dev_", "docs_")).split()):
        if req.marker is None:
            assert req.specifier.contains(pins[req.name.lower()]), str(req)
    assert pins["torch"] == "2.13.0"


# ---- files ----

TEXT = [
    p
    for p in project_files()
    if p.suffix in (".py", ".ipynb", ".md", ".toml", ".ini", ".yml", ".css", ".js", ".j2", ".txt", ".json", ".in", "")
    and p.name != "LICENSE"
]


def test_no_file_of_one_machine():
    "No path of somebody's machine, no package registry by name."
    homes = re.compile(r"(?<![\w.])/(?:root|home|Users|work|mnt|tmp)/[\w.]")
    hosts = re.compile(
        r"pypi\.|python" + r"hosted\.|anaconda\." + r"org|--(?:extra-)?index-url\s+\S+:|--find-links\s+\S"
    )
    seen = [
        (p.relative_to(ROOT).as_posix(), m[0])
        for p in TEXT
        if p != Path(__file__)
        for pattern in (homes, hosts)
        for m in [pattern.search(p.read_text(encoding="utf-8"))]
        if m
    ]
    assert seen == []


def test_requirements_stand_in_settings_only():
    names = {
        re.match(r"[\w.-]+", r)[0]
        for r in " ".join(SETTINGS[f"{kind}requirements"] for kind in ("", "dev_", "docs_")).split()
    }
    stated = re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(names)))})\s*(?:==|>=|<=|~=)\s*\d")
    seen = [
        (p.relative_to(ROOT).as_posix(), m[0])
        for p in TEXT
        if p.name not in ("settings.ini", "constraints.txt")
        for m in [stated.search(p.read_text(encoding="utf-8"))]
        if m
    ]
    assert seen == []


LARGE = {
    "results/study-main.pack": "248 tuned prompts, each scored on three models text by text, and two vocabularies",
    "results/study-agnews.pack": "90 tuned prompts, each scored on three models text by text for four classes",
}


def test_files_are_small_and_hold_no_weights():
    for p in project_files():
        most = 2 if p.relative_to(ROOT).as_posix() in LARGE else 1
        assert p.stat().st_size < most * 2**20, f"{p} is over {most} MiB"
        assert p.suffix not in (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".pkl"), p


def test_continuous_integration_runs_make_test():
    assert os.access(ROOT / ".ci/run", os.X_OK) and "make test" in (ROOT / ".ci/run").read_text()


# ---- the README ----

README = (ROOT / "README.md").read_text(encoding="utf-8")


def fenced(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_the_readme_says_what_the_study_found():
    "Each verdict of the first screen, and the mean of a row, as they are stored."
    from hpt_nb.verdicts import deciding, said, stored_means, stored_verdicts

    claims = deciding(stored_verdicts()[0]).set_index("claim")
    for name in ("source", "targets", "skill", "skill elsewhere"):
        assert said(claims.loc[name]) in README, name
    one = (
        stored_means()
        .query("task == 'sst2' and source == 'gemma-3-270m' and row == 'PEZ' and role == 'original'")
        .iloc[0]
    )
    assert f"{one.raw:.1f} / {one.calibrated:.1f}" in README


def test_stored_verdicts_are_those_of_the_packs():
    "The cells that they were computed from are the cells that lie in results/."
    from hpt_nb.verdicts import KEPT, cells_of

    assert json.loads(KEPT.read_text(encoding="utf-8"))["config"]["cells"] == cells_of(ROOT / "results"), (
        "run the slow cells of 35_study again"
    )


def test_stored_results_are_listed():
    "Each with its commit and the page that shows it; none that no page shows."
    tool("inventory").main(check=True)


def test_readme_is_current():
    tool("readme").main(check=True)


def test_readme_maps_every_notebook():
    assert re.findall(r"^\| \[\w+\]\(nbs/(\w+\.ipynb)\)", README, re.M) == [p.name for p in CHAPTERS]
    assert {*re.findall(r"\]\(nbs/(\w+\.ipynb)\)", README)} <= {p.name for p in NOTEBOOKS}


def test_readme_commands_exist():
    first = fenced("sh")[0]
    assert [line.split("#")[0].split() for line in first.strip().splitlines()] == [["make", "report"], ["make", "test"]]
    assert README.index(first) < 1500, "the two commands belong to the first screen"
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make (\w+)`", README)) | {"report", "test"} <= targets


def test_readme_example_fits_the_library():
    "Every name that the example imports exists, and takes the arguments that it is given."
    tree = ast.parse("\n".join(fenced("python")))
    names = {
        a.name: getattr(importlib.import_module(n.module), a.name)
        for n in ast.walk(tree)
        if isinstance(n, ast.ImportFrom)
        for a in n.names
    }
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", None) in names]
    assert len(names) >= 4 and {c.func.id for c in calls} == set(names)
    for c in calls:
        inspect.signature(names[c.func.id]).bind(*c.args, **{k.arg: k.value for k in c.keywords})


def test_readme_command_lines_fit_the_command(capsys):
    "Every subcommand and every option that the README shows is one that `hpt` knows."
    from hpt_nb.cli import main

    lines = [
        line.split("#")[0].split()
        for block in fenced("sh")[1:]
        for line in block.splitlines()
        if line.startswith("hpt ")
    ]
    assert {line[1] for line in lines} >= {"vocab", "stability", "tune", "eval", "run", "report"}
    for command in {line[1] for line in lines}:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        known = capsys.readouterr().out
        asked = {word for line in lines if line[1] == command for word in line if word.startswith("--")}
        assert [word for word in asked if not re.search(rf"{word}\b", known)] == []
