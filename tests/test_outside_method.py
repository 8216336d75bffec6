"A package that is installed beside this one brings a method of its own: help, a run, a preset and a page know it."

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from hpt_nb.methods import BUILT_IN, methods
from hpt_nb.store import InputError, Store
from forked import ANEW, run as run_copy
from tiny_run import PRESET, make_place

ROW = """from hpt_nb.methods import Method

METHOD = Method("dice", "draws prompts at random", "dice_search:tune_dice", "dice_search:DiceConfig", color="#123456")
"""
SEARCH = """"Random search over the vocabulary."

from dataclasses import dataclass

import torch

from hpt_nb.store import check_fields
from hpt_nb.tuning import BOUNDS, Pass, run_pass, step_draws


@dataclass(frozen=True)
class DiceConfig:
    n_tokens: int = 4
    steps: int = 6
    eval_every: int = 1
    holdout_n: int = 100

    def __post_init__(self):
        check_fields(self, **BOUNDS)


class DicePass(Pass):
    methods = ("dice",)

    def draw(self, spec):
        at = torch.randint(len(spec.space), (self.cfg.n_tokens,), generator=step_draws(spec.seed, self.step))
        return tuple(spec.space.ids[at].tolist())

    def advance(self):
        self.prompts = [self.draw(s) for s in self.specs]
        self.step += 1


def tune_dice(lm, task, specs, cfg=DiceConfig(), **loop):
    return run_pass(DicePass(lm, task, specs, cfg), **loop) if specs else []
"""
DICE = PRESET.split('[[source]]\nmodel = "./two"')[0].replace(
    "seeds = [0, 1]", 'seeds = [0, 1]\nrows = ["Empty", "Random", "PEZ", "Ours"]\nmethods = ["pez", "dice"]'
) + (
    "[vocab]\nk = 8\ns = 40\n[tuning]\nsteps = 2\nbatch = 2\nn_tokens = 3\neval_every = 2\nholdout_n = 4\n"
    'dtype = "float32"\n[method.dice]\nsteps = 4\n'
)


def install(folder: Path, entry: str, **modules):
    "What an installer would write: modules, and a dist-info that names an entry point."
    info = folder / "dice_search-1.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dice-search\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(f"[hpt_nb.methods]\n{entry}\n")
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    return folder


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    where = tmp_path_factory.mktemp("site")
    return install(where, "dice = dice_row:METHOD", dice_row=ROW, dice_search=SEARCH)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("dice"), DICE)


HPT = "from hpt_nb.cli import main; raise SystemExit(main())"
PLAIN = f"from pytest import MonkeyPatch\nfrom tiny_run import plain_pages\nplain_pages(MonkeyPatch())\n{HPT}"


def hpt(beside, *argv, cwd=".", code=HPT):
    "The command line in a process of its own, with the package beside it."
    path = os.pathsep.join([str(beside), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "COLUMNS": "500"}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, argv)], cwd=cwd, env=env, capture_output=True, text=True
    )


def hpt_copy(beside, *argv, cwd=".", code=HPT):
    "The same from a copy that has torch loaded; our rooms are imported anew, so that they find the package."
    return run_copy(f"{ANEW}sys.path.insert(0, sys.argv.pop(1))\n{code}", beside, *argv, cwd=cwd)


def test_help_names_it_and_loads_no_torch(beside):
    code = (
        "import sys\nfrom hpt_nb.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print('LOADED', *sys.modules)"
    )
    done = hpt(beside, "tune", "--help", code=code)
    said, _, loaded = done.stdout.partition("LOADED")
    assert "dice: draws prompts at random" in said and "pez: PEZ as published" in said, done.stderr
    assert "dice_row" in loaded.split() and not {"torch", "transformers", "dice_search"} & {*loaded.split()}
    assert "dice" in hpt(beside, "transferable", "--help").stdout


def test_it_tunes(beside, place):
    argv = ["tune", "./one", "--task", "mine.toml", "--method", "dice", "--steps", 3, "--seeds", "0,1", "--out", "t"]
    done = hpt_copy(beside, *argv, cwd=place)
    assert done.returncode == 0, done.stderr
    cells = list(Store(place / "t").cells("tune"))
    assert [c["config"]["method"] for c in cells] == ["dice"] * 2
    assert {c["config"]["package"] for c in cells} == {"dice-search 1.5"}
    assert all(len(c["result"]["prompt_ids"]) == 4 and c["result"]["curve"]["step"] == [1, 2, 3] for c in cells)
    unknown = hpt_copy(beside, *argv, "--set", "topk=3", cwd=place)
    assert unknown.returncode == 2 and "method dice has no setting 'topk'" in unknown.stderr


def test_a_preset_and_a_page_show_it(beside, place):
    done = hpt_copy(beside, "run", "preset.toml", "--out", "out", "--quiet", cwd=place)
    assert done.returncode == 0, done.stderr
    cells = [c for c in Store(place / "out").cells("tune") if c["config"]["method"] == "dice"]
    assert {c["config"]["row"] for c in cells} == {"PEZ", "Ours"} and {c["config"]["steps"] for c in cells} == {4}
    assert {c["config"]["n_tokens"] for c in cells} == {3}  # the sizes are the preset's
    assert all("package" not in c["config"] for c in Store(place / "out").cells("tune") if c not in cells)
    done = hpt_copy(beside, "report", "out", "--out", "site", cwd=place, code=PLAIN)
    assert done.returncode == 0, done.stderr
    page = (place / "site" / "index.html").read_text()
    assert "Methods, side by side" in page and "<td>dice</td>" in page
    colour = hpt_copy(beside, code="from hpt_nb.report import METHOD_COLORS; print(METHOD_COLORS['dice'])")
    assert colour.stdout.strip() == "#123456"


def test_a_page_of_a_method_that_is_gone_can_still_be_made(place):
    done = hpt_copy(place / "nothing", "report", "out", "--out", "site-without", cwd=place, code=PLAIN)
    assert done.returncode == 0, done.stderr
    assert "<td>dice</td>" in (place / "site-without" / "index.html").read_text()
    done = hpt_copy(place / "nothing", "run", "preset.toml", "--out", "out-without", cwd=place)
    assert done.returncode == 2 and "unknown method 'dice'" in done.stderr and not (place / "out-without").exists()


@pytest.mark.parametrize(
    "row, says",
    [("METHOD = 1 / 0", "ZeroDivisionError"), ("METHOD = 3", "TypeError"), (ROW.replace('"dice"', '"pez"'), "already")],
)
def test_a_package_that_is_no_good_stops_nothing(tmp_path, row, says):
    done = hpt(install(tmp_path, "dice = dice_row:METHOD", dice_row=row), "tune", "--help")
    assert done.returncode == 0 and "pez: PEZ as published" in done.stdout and "dice" not in done.stdout
    assert says in done.stderr


# ---- the table itself


@pytest.mark.parametrize("m", BUILT_IN, ids=lambda m: m.name)
def test_a_row_says_what_the_method_is(m):
    "Its code is where the row says; it takes its own name, what it can be asked to minimise, and nothing more."
    assert methods()[m.name] is m and callable(m.run)
    assert {"steps", "eval_every", "holdout_n"} <= {*vars(m.config)}
    assert all(getattr(m.config, k) == v for k, v in m.settings.items())
    assert not m.rate or isinstance(getattr(m.config, m.rate), float)
    assert all(isinstance(n, int) for n in m.cost(m.config, 10, 2))
    words = dict(loss="labels") if hasattr(m.config, "loss") else {}
    able = []
    for objective in ("labels", "centred", "vocabulary") if hasattr(m.config, "objective") else ():
        with suppress(InputError):
            able.append(replace(m.config, objective=objective, **words).objective)
    assert (*able,) == m.objectives or not hasattr(m.config, "objective") and m.objectives == ("labels",)


def test_the_rooms_agree_with_the_table():
    from hpt_nb import joint, pez, soft, swaps

    rows = methods().values()
    assert [m.name for m in rows if m.tuning == "all"] == [*pez.METHODS]
    assert [m.name for m in rows if m.tuning == "shared"] == [*joint.JOINT_METHODS]
    assert [m.name for m in rows if m.vectors] == [*soft.SOFT_METHODS]
    assert {m.name for m in rows if m.run is swaps.tune_swaps} == {*swaps.SWAP_METHODS}
    assert {m.name: m.settings for m in rows if m.run is pez.tune_runs and m.settings} == pez.PEZ_STARTS
