"""Effects of single tokens: against the definition on every architecture, and the command line from models in
folders to a file and back."""

import os
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch

from hpt_nb.cli import main
from hpt_nb.effects import (
    correlation,
    effects_of,
    ids_in,
    load_effects,
    reliability,
    spread,
    text_halves,
    token_effects,
)
from hpt_nb.scoring import label_logprobs
from hpt_nb.store import InputError
from hpt_nb.tasks import Split
from hpt_nb.vocab import Vocab
from tiny import ARCHS, tiny_lm
from tiny_run import make_place

TASK = SimpleNamespace(labels=(" great", " bad", " film"), suffix=". It was", max_text_tokens=32, strip=True)
SPLIT = Split(
    ["good", "so good and great", "bad", "a bad movie", "the film", "a film was", "great"], [0, 0, 1, 1, 2, 2, 0]
)


def by_definition(logp_nc, empty_nc, labels):
    "Section 9 of the protocol, with loops, in float64."
    logp, e = logp_nc.double(), empty_nc.double()
    n, classes = logp.shape
    logp, e = logp - logp.mean(1, keepdim=True), e - e.mean(1, keepdim=True)
    shift = [sum(float(logp[x, c] - e[x, c]) for x in range(n)) / n for c in range(classes)]
    d = [[float(logp[x, c] - e[x, c]) - shift[c] for c in range(classes)] for x in range(n)]
    gain = [d[x][y] - sum(d[x][c] for c in range(classes) if c != y) / (classes - 1) for x, y in enumerate(labels)]
    return shift, sum(gain) / n


@pytest.mark.parametrize("arch", ARCHS)
def test_effects_follow_the_definition_on_every_architecture(arch):
    lm, ids = tiny_lm(arch), [20, 31, 42]
    found = token_effects(lm, TASK, SPLIT, ids, max_tokens=100)
    none = label_logprobs(lm, TASK, SPLIT.texts)
    halves = [h.tolist() for h in text_halves(SPLIT.labels)]
    assert sorted(sum(halves, [])) == list(range(7)) and abs(len(halves[0]) - len(halves[1])) <= 1
    for i, token in enumerate(ids):
        logp = label_logprobs(lm, TASK, SPLIT.texts, [token])
        shift, gain = by_definition(logp, none, SPLIT.labels)
        assert (
            torch.allclose(found.shift[i].double(), torch.tensor(shift, dtype=torch.double), atol=1e-4)
            and abs(float(found.separation[i]) - gain) < 1e-4
        )
        for h, half in enumerate(halves):
            shift, gain = by_definition(logp[half], none[half], [SPLIT.labels[x] for x in half])
            assert (
                torch.allclose(found.shift_halves[h, i].double(), torch.tensor(shift, dtype=torch.double), atol=1e-4)
                and abs(float(found.separation_halves[h, i]) - gain) < 1e-4
            )


def test_a_bias_is_all_shift_and_a_skill_all_separation():
    g = torch.Generator().manual_seed(0)
    y, none = torch.tensor([0, 1, 2] * 4), torch.randn(12, 3, generator=g).log_softmax(-1)
    for a in (0.5, 2.0):
        bias = (none + a * torch.tensor([2.0, -1, -1])).log_softmax(-1)
        skill = (none + a * torch.nn.functional.one_hot(y, 3)).log_softmax(-1)
        found = effects_of(torch.stack([bias, skill]), none, y)
        assert torch.allclose(found.shift, torch.tensor([[2 * a, -a, -a], [0, 0, 0]]), atol=1e-5)
        assert torch.allclose(found.separation, torch.tensor([0.0, a]), atol=1e-5)


def test_correlation_of_one_column_is_torch_s():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 50, generator=g, dtype=torch.double)
    assert correlation(a, b) == pytest.approx(float(torch.corrcoef(torch.stack([a, b]))[0, 1]))
    r = correlation(a, b)
    assert reliability((a, b)) == pytest.approx(2 * r / (1 + r))


@pytest.mark.parametrize("n", [1, 7, 50, 99, 100])
def test_a_spread_holds_one_token_of_each_stretch(n):
    g = torch.Generator().manual_seed(0)
    vocab = Vocab([f"t{i}" for i in range(100)], torch.arange(100)[None], ["m"], J=torch.rand(100, generator=g))
    places = torch.sort(vocab.J, descending=True).indices.tolist()
    for seed in (0, 1):
        at = [places.index(int(i)) for i in spread(vocab, n, seed).ids[0]]
        assert [p * n // 100 for p in at] == list(range(n)) or all(
            i * 100 // n <= p < (i + 1) * 100 // n for i, p in enumerate(at)
        )


# ---- the command ----


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    d, old = make_place(tmp_path_factory.mktemp("effects")), os.getcwd()
    os.chdir(d)
    assert main(["stability", "./one", "./two", "--k", "8", "--out", "s.parquet", "--quiet"]) == 0
    yield d
    os.chdir(old)


def hpt(capsys, *argv):
    code = main([str(a) for a in argv])
    return code, *capsys.readouterr()


def test_the_command_writes_what_the_library_measures(place, capsys, tmp_path):
    from hpt_nb.models import load_lm
    from hpt_nb.tasks import load_task

    out = tmp_path / "e.parquet"
    code, said, _ = hpt(
        capsys,
        "effects",
        "./one",
        "./two",
        "--task",
        "mine.toml",
        "--vocab",
        "s.parquet",
        "--tokens",
        "12",
        "--texts",
        "8",
        "--out",
        out,
        "--quiet",
    )
    assert code == 0 and "one, two: shift correlates by" in said and "separation correlates" in said
    vocab, effects, about = load_effects(out)
    assert (
        len(vocab) == 12
        and vocab.J is not None
        and (vocab.J[:-1] >= vocab.J[1:]).all()
        and list(effects) == ["one", "two"]
    )
    task = load_task("mine.toml")
    split = task.subset("validation", 8, seed=0)
    for name in ("one", "two"):
        lm = load_lm(f"./{name}")
        want = token_effects(lm, task, split, ids_in(vocab, lm))
        for field in ("shift", "separation", "shift_halves", "separation_halves"):
            assert torch.equal(getattr(effects[name], field), getattr(want, field)), field
    assert (
        about["config"]["task_hash"] == task.hash
        and about["config"]["texts_hash"] == split.hash
        and about["config"]["dtype"] == "float32"
    )
    assert {"commit", "torch", "cpu", "date", "wall_s", "device"} <= set(about["meta"])
    columns = pq.read_table(out).column_names
    assert columns[:3] == ["rank", "token", "J"] and {
        "id:one",
        "shift:one",
        "separation:two",
        "shift_halves:two",
    } <= set(columns)


def test_without_a_vocabulary_the_common_tokens_are_measured(place, capsys, tmp_path):
    assert (
        hpt(
            capsys,
            "effects",
            "./one",
            "./two",
            "--task",
            "mine.toml",
            "--tokens",
            "5",
            "--texts",
            "4",
            "--out",
            tmp_path / "e.parquet",
            "--quiet",
        )[0]
        == 0
    )
    vocab, _, _ = load_effects(tmp_path / "e.parquet")
    assert len(vocab) == 5 and vocab.J is None


BAD = {
    "ends in .parquet": ["--out", "e.csv"],
    "need a whole number of at least 1": ["--tokens", "0"],
    "tokens requested from a vocabulary of": ["--tokens", "100000"],
    "--texts 25; validation of mine has 24": ["--texts", "25"],
    "fewer than 2": ["--texts", "3"],
    "no such vocabulary file": ["--vocab", "none.parquet"],
    "no task 'nope'": ["--task", "nope"],
    "need a whole number of at most 63 bits": ["--seed", str(2**70)],
}


@pytest.mark.parametrize("says", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(place, capsys, says):
    given = {"--task": "mine.toml", "--vocab": "s.parquet", "--tokens": "5", "--texts": "4", "--out": "e.parquet"}
    given |= dict([BAD[says]])
    before = sorted(os.listdir())
    code, out, err = hpt(capsys, "effects", "./one", "./two", "--quiet", *(x for pair in given.items() for x in pair))
    lines = [x for x in err.splitlines() if x.strip()]
    assert code == 2 and out == "" and len(lines) == 1 and says in lines[0], (code, out, err)
    assert sorted(os.listdir()) == before


def test_a_vocabulary_of_another_model_is_refused(place, capsys, tmp_path):
    lm = tiny_lm("gpt2", 3)
    (tmp_path / "one").mkdir()
    lm.model.save_pretrained(tmp_path / "one"), lm.tokenizer.save_pretrained(tmp_path / "one")
    code, out, err = hpt(
        capsys,
        "effects",
        tmp_path / "one",
        "--task",
        "mine.toml",
        "--vocab",
        "s.parquet",
        "--tokens",
        "20",
        "--texts",
        "4",
        "--out",
        tmp_path / "e.parquet",
        "--quiet",
    )
    assert code == 2 and "make the vocabulary again" in err and not (tmp_path / "e.parquet").exists()


@pytest.mark.parametrize("fault", ["cut", "edited", "foreign"])
def test_a_damaged_file_of_effects_is_refused(place, capsys, tmp_path, fault):
    out = tmp_path / "e.parquet"
    assert (
        hpt(
            capsys,
            "effects",
            "./one",
            "--task",
            "mine.toml",
            "--vocab",
            "s.parquet",
            "--tokens",
            "4",
            "--texts",
            "4",
            "--out",
            out,
            "--quiet",
        )[0]
        == 0
    )
    if fault == "cut":
        out.write_bytes(out.read_bytes()[:-9])
    elif fault == "foreign":
        out.write_bytes((place / "s.parquet").read_bytes())
    else:
        table = pq.read_table(out)
        pq.write_table(table.set_column(1, "token", table["token"].cast("string").take([1, 0, 2, 3])), out)
    with pytest.raises(InputError) as e:
        load_effects(out)
    assert "make it again with hpt effects" in str(e.value)
