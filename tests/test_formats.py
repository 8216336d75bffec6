"""The format of an input: ours and the released one, in tasks, presets and exports; step 0 of a reproduction."""

import json

import pandas as pd
import pytest

from hpt_nb.cli import main
from hpt_nb.export import to_python
from hpt_nb.scoring import evaluate, label_ids, text_ids
from hpt_nb.store import InputError, Store
from hpt_nb.tasks import FORMATS, Split, Task, load_task
from tiny import tiny_lm
from tiny_run import TASK, make_place

TEXTS = (
    "the film was great . ",
    " a bad movie ",
    "good",
    "boring characters and a terrible plot in 1980, and 12 people left so early ",
)


def task_of(**kw):
    split = Split(TEXTS, (1, 0, 1, 0))
    return Task(
        **{
            **dict(
                name="toy",
                suffix=". It was",
                labels=(" bad", " great"),
                train=split,
                holdout=split,
                validation=split,
                max_text_tokens=16,
            ),
            **kw,
        }
    )


def as_released(lm, suffix, text, most, bos):
    """The released rule, read plainly: pieces apart, nothing stripped, a template that ends in a space, cut from the
    text's tail until all of it fits."""
    pieces = [lm.encode(text), lm.encode(suffix + " ")]
    while pieces[0] and len(bos) + sum(map(len, pieces)) > most:
        pieces[0].pop()
    return pieces[0] + pieces[1]


@pytest.mark.parametrize("bos", [True, False, "auto"])
@pytest.mark.parametrize("arch", ["gpt2", "opt", "llama3", "gemma3", "llama"])
def test_released_inputs_are_those_of_the_plain_rule(arch, bos):
    lm, task = tiny_lm(arch, bos=bos), task_of(format="released")
    assert task.strip is False
    assert text_ids(lm, task, TEXTS) == [as_released(lm, ". It was", t, 16, lm.bos_ids) for t in TEXTS]
    assert max(len(lm.bos_ids) + len(s) for s in text_ids(lm, task, TEXTS)) == 16  # one of them is cut
    ours = text_ids(lm, task_of(), TEXTS)
    assert ours == [lm.encode(t.strip())[:16] + lm.encode(". It was") for t in TEXTS] and ours != text_ids(
        lm, task, TEXTS
    )


@pytest.mark.parametrize("arch", ["gpt2", "opt", "llama3", "gemma3"])
def test_the_template_s_last_space_is_a_token_of_its_own(arch):
    lm = tiny_lm(arch)
    for s in text_ids(lm, task_of(format="released"), TEXTS):
        assert lm.token_bytes[s[-1]] == b" "
    assert (
        label_ids(lm, task_of(format="released")).tolist() == label_ids(lm, task_of()).tolist()
    )  # the words keep theirs


def test_a_task_in_our_format_is_what_it_was():
    ours, theirs = task_of(), task_of(format="released")
    assert "format" not in ours.config and theirs.config["format"] == "released" and ours.hash != theirs.hash
    assert ours.hash == task_of(format="ours").hash and "released" in repr(theirs) and "format" not in repr(ours)
    with pytest.raises(InputError, match="format is 'theirs'; need one of ours, released"):
        task_of(format="theirs")


def test_a_limit_that_leaves_no_room_is_refused():
    lm = tiny_lm("gpt2")
    with pytest.raises(InputError, match="leaves no room for a text"):
        text_ids(lm, task_of(format="released", max_text_tokens=5), TEXTS)
    assert text_ids(lm, task_of(max_text_tokens=5), TEXTS)


@pytest.mark.parametrize("suffix, says", [(". It was", ""), (". It was ", "")])
def test_the_advice_on_spaces_does_not_speak_of_the_released_format(capsys, suffix, says):
    lm = tiny_lm("gpt2", name=f"advice{len(suffix)}")
    label_ids(lm, task_of(format="released", suffix=suffix))
    assert capsys.readouterr().err == says
    label_ids(lm, task_of(suffix=f". It was {len(suffix)} "))  # a remark is made once
    assert "ends in white space" in capsys.readouterr().err
    own = task_of(format="released", suffix=suffix)
    assert text_ids(lm, own, TEXTS) == text_ids(lm, task_of(format="released"), TEXTS)  # one space, not two


# ---- task files, presets, the command line ----


@pytest.fixture
def here(tmp_path, monkeypatch):
    make_place(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_task_file_names_its_format(here):
    (here / "theirs.toml").write_text('format = "released"\n' + TASK)
    spaced = pd.read_csv("dev.csv")
    spaced["text"] += " "
    spaced.to_csv("dev.csv", index=False)
    ours, theirs = load_task("mine.toml"), load_task("theirs.toml")
    assert theirs == load_task("mine.toml", format="released") and ours == load_task("theirs.toml", format="ours")
    assert all(t.endswith(" ") for t in theirs.validation.texts) and [
        t.strip() for t in theirs.validation.texts
    ] == list(ours.validation.texts)
    assert [t.strip() for t in theirs.holdout.texts] == list(ours.holdout.texts)  # the same texts are held out


def hpt(capsys, *argv):
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, [x for x in err.splitlines() if x.strip() and not x.startswith("note:")]


def test_the_command_line_takes_a_format(here, capsys):
    from hpt_nb.models import load_lm

    got = {}
    for name in FORMATS:
        code, out, _ = hpt(capsys, "eval", "./one", "--task", "mine.toml", "--format", name, "--json")
        got[name] = json.loads(out)["correct"]
        task = load_task("mine.toml", format=name)
        assert code == 0 and got[name] == evaluate(load_lm("./one", dtype="float32"), task, task.validation)["correct"]
    tune = (
        "tune",
        "./one",
        "--task",
        "mine.toml",
        "--steps",
        2,
        "--batch",
        2,
        "--tokens",
        2,
        "--eval-every",
        1,
        "--holdout",
        4,
        "--quiet",
    )
    for name in FORMATS:
        assert hpt(capsys, *tune, "--format", name, "--out", name)[0] == 0
    hashes = {name: Store(name).cells("tune")[0]["config"]["task_hash"] for name in FORMATS}
    assert hashes == {name: load_task("mine.toml", format=name).hash for name in FORMATS}
    code, out, err = hpt(capsys, "eval", "./one", "--task", "mine.toml", "--format", "theirs")
    assert code == 2 and out == "" and len(err) == 1 and "theirs" in err[0]


def test_a_preset_s_format_is_what_its_cells_were_made_with(here, capsys):
    text = (
        (here / "preset.toml")
        .read_text()
        .replace("seeds = [0, 1]", 'seeds = [0]\nrows = ["Empty", "PEZ"]')
        .replace("steps = 30", "steps = 10")
    )
    for name in FORMATS:
        (here / f"{name}.toml").write_text(f'format = "{name}"\n' + text)
        assert hpt(capsys, "run", f"{name}.toml", "--out", name, "--quiet")[0] == 0
        assert {c["config"]["task_hash"] for c in Store(name).cells("eval")} == {
            load_task("mine.toml", format=name).hash
        }
    (here / "plain.toml").write_text(text)
    assert hpt(capsys, "run", "plain.toml", "--out", "ours", "--quiet")[0] == 0  # nothing is computed twice
    assert len(Store("ours").cells("eval")) == len(Store("released").cells("eval"))


# ---- exports ----


@pytest.mark.parametrize("name", FORMATS)
def test_exported_python_reads_what_the_task_does(name):
    lm, task = tiny_lm("llama3"), task_of(format=name)
    code, scope, asked = to_python(" good", task, "x"), {}, []
    assert repr(". It was " if name == "released" else ". It was") in code
    exec(code, scope)

    class Asked:
        "The model, and what it was asked."

        device = lm.model.device

        def eval(self):
            return self

        def forward(self, input_ids):
            "Its signature is looked at."

        def __call__(self, ids, **kw):
            asked.extend(ids.tolist())
            return lm.model(ids, **kw)

    found = scope["classify"](TEXTS, Asked(), tokenizer=lm.tokenizer)
    assert sorted(asked) == sorted(list(lm.bos_ids) + lm.encode(" good") + ids for ids in text_ids(lm, task, TEXTS))
    names = [w.strip() for w in task.labels]
    assert (
        "".join(str(names.index(row["class"])) for row in found)
        == evaluate(lm, task, task.validation, " good")["predictions"]
    )
