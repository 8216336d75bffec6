"Trackers: every point once, the same prompts as without, and no run stopped by a tracker that fails."

import sys
from types import ModuleType, SimpleNamespace

import pytest

from hpt_nb.pez import PezConfig, RunSpec, SearchSpace, tune_runs
from hpt_nb.store import InputError
from hpt_nb.tasks import load_task
from hpt_nb.trackers import Tracker, hosted, new_points, run_names, tensorboard, tune_followed
from tiny import tiny_lm
from tiny_run import TASK

CFG = PezConfig(
    steps=7, batch=2, n_tokens=2, eval_every=2, holdout_n=4
)  # judged at 2, 4, 6 and, off the grid, at the end


@pytest.fixture(scope="module")
def pass_(tmp_path_factory):
    d = tmp_path_factory.mktemp("t")
    for part, n in (("train", 20), ("dev", 6)):
        (d / f"{part}.csv").write_text("text,label\n" + "".join(f"{part} film {i},{i % 2}\n" for i in range(n)))
    (d / "t.toml").write_text(TASK)
    lm = tiny_lm("llama3")
    return lm, load_task(d / "t.toml"), [RunSpec(SearchSpace(lm), "pez", s) for s in (0, 1)]


@pytest.fixture(scope="module")
def alone(pass_):
    return tune_runs(*pass_, CFG, progress=False)


def plain(runs):
    return [(r.prompt_ids, r.best_step, r.best_holdout, r.curve) for r in runs]


def test_a_followed_pass_is_the_same_and_every_point_arrives_once(pass_, alone):
    told, closed = [], []
    runs = tune_followed(
        *pass_, CFG, Tracker(lambda v, s: told.append((s, v)), lambda: closed.append(1)), progress=False
    )
    assert (
        plain(runs) == plain(alone)
        and told == new_points(alone)
        and [s for s, _ in told] == [2, 4, 6, 7]
        and closed == [1]
    )
    assert set(told[0][1]) == {f"pez-{s}/{what}" for s in (0, 1) for what in ("loss", "holdout")}


def test_points_arrive_while_the_run_goes_on(pass_):
    order = []
    tune_followed(
        *pass_,
        CFG,
        Tracker(lambda v, s: order.append(("told", s))),
        progress=False,
        on_step=lambda i: order.append(("step", i)),
    )
    assert order.index(("told", 2)) < order.index(("step", 3)) and order.index(("told", 4)) < order.index(("step", 5))


@pytest.mark.parametrize("part", ["write", "finish"])
def test_a_tracker_that_fails_stops_nothing_and_says_so_once(pass_, alone, capsys, part):
    def broken(*a):
        raise ConnectionError("no route\n\x1b[31m to host")

    tracker = Tracker(broken if part == "write" else lambda *a: None, broken if part == "finish" else lambda: None)
    assert plain(tune_followed(*pass_, CFG, tracker, progress=False)) == plain(alone)
    err = capsys.readouterr().err
    assert (
        err.count("\n") == 1
        and "the tracker is switched off (ConnectionError: no route" in err
        and err.strip().isprintable()
    )


def test_a_run_that_is_stopped_closes_its_tracker(pass_):
    closed = []

    def stop(i):
        if i == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune_followed(*pass_, CFG, Tracker(lambda *a: None, lambda: closed.append(1)), progress=False, on_step=stop)
    assert closed == [1]


@pytest.mark.parametrize("service", ["trackio", "wandb"])
def test_hosted_services_get_what_they_take(pass_, alone, monkeypatch, service):
    lib, said = ModuleType(service), []
    lib.init = lambda project, name, config: said.append(("init", project, name, config))
    lib.log = lambda values, step: said.append((step, values))
    lib.finish = lambda: said.append("finish")
    monkeypatch.setitem(sys.modules, service, lib)
    tune_followed(*pass_, CFG, hosted(service, "p", "n", {"lr": 0.3}), progress=False)
    assert said == [("init", "p", "n", {"lr": 0.3}), *new_points(alone), "finish"]


def test_tensorboard_gets_scalars(pass_, alone, monkeypatch, tmp_path):
    said = []

    class Writer:
        def __init__(self, folder):
            said.append(folder)

        def add_scalar(self, name, value, step):
            said.append((step, name, value))

        def flush(self):
            pass

        def close(self):
            said.append("close")

    fake = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    tune_followed(*pass_, CFG, tensorboard(tmp_path / "b"), progress=False)
    assert said == [
        str(tmp_path / "b"),
        *((s, k, v) for s, values in new_points(alone) for k, v in values.items()),
        "close",
    ]


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: tensorboard("x"), "pip install tensorboard"),
        (lambda: hosted("wandb", "p"), "pip install wandb"),
        (lambda: hosted("trackio", "p"), "pip install trackio"),
        (lambda: hosted("mlflow", "p"), "known: trackio, wandb"),
    ],
)
def test_a_tracker_that_is_not_installed_is_one_line(monkeypatch, make, says):
    for name in ("wandb", "trackio", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=says):
        make()


def test_names_are_text_and_different():
    names = run_names(
        [
            SimpleNamespace(method="pez", seed=0),
            SimpleNamespace(method="\x1b[2J", seed=0),
            SimpleNamespace(method="pez", seed=0),
            SimpleNamespace(method="pez", seed=1),
        ]
    )
    assert len(set(names)) == 4 and all(n.isprintable() for n in names)
