"A model is known by what is in it: its files, its weights, its tokenizer; never by a name alone."

import copy
import json
from pathlib import Path
import shutil

import pytest
import torch

from hpt_nb.cli import main
from hpt_nb.experiments import Models, check_known, known_models, lm_id
from hpt_nb.export import export_prompt, read_prompt, to_json
from hpt_nb.models import LM, known_by, load_lm, same_model
from hpt_nb.pez import SearchSpace, lm_facts, tune
from hpt_nb.practice import reads_as_tuned
from hpt_nb.soft import anchor_rows, load_peft, save_peft
from hpt_nb.store import InputError, Store
from hpt_nb.tasks import load_task
from hpt_nb.transfer import transfer
from hpt_nb.vocab import Vocab, common_vocab, covers_model, ids_of, whole_vocab
from tiny import tiny_lm
from tiny_run import PRESET, make_place

TUNE = [
    "--task",
    "mine.toml",
    "--steps",
    "4",
    "--eval-every",
    "2",
    "--batch",
    "4",
    "--tokens",
    "3",
    "--holdout",
    "8",
    "--dtype",
    "float32",
    "--quiet",
]


def save(lm, folder):
    lm.model.save_pretrained(folder), lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """one/run and two/run: two models of one name and one tokenizer; other: another model; one/copy: one/run under
    another name."""
    d = make_place(tmp_path_factory.mktemp("identity"))
    for where, seed in (("one_", 0), ("two_", 5)):
        save(tiny_lm("llama3", seed), d / where / "run")
    save(tiny_lm("gemma3", 1), d / "other")
    shutil.copytree(d / "one_" / "run", d / "one_" / "copy")
    return d


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    for p in made.iterdir():
        (tmp_path / p.name).symlink_to(p)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, says, *argv):
    capsys.readouterr()
    code = main([str(a) for a in argv])
    err = capsys.readouterr().err
    assert code == 2 and len(err.strip().splitlines()) == 1 and says in err, (code, err)


def test_a_vocabulary_is_of_a_model_not_of_a_name(place, capsys):
    assert main(["vocab", "one_/run", "other", "--out", "v.parquet"]) == 0
    v, one, two, copied = Vocab.load("v.parquet"), load_lm("one_/run"), load_lm("two_/run"), load_lm("one_/copy")
    assert (
        ids_of(v, one).tolist() == v.ids[0].tolist() == ids_of(v, copied).tolist()
    )  # a renamed folder is the same model
    assert covers_model(v, copied) and not covers_model(v, two)
    for use in (
        lambda: ids_of(v, two),
        lambda: SearchSpace(two, v),
        lambda: anchor_rows(two, v),
        lambda: tune(two, load_task("mine.toml"), v, steps=2, progress=False),
    ):
        with pytest.raises(InputError, match="another model that is called run too"):
            use()
    for argv in (
        ["tune", "two_/run", *TUNE, "--vocab", "v.parquet", "--out", "r"],
        [
            "effects",
            "two_/run",
            "--task",
            "mine.toml",
            "--vocab",
            "v.parquet",
            "--tokens",
            "4",
            "--texts",
            "8",
            "--out",
            "e.parquet",
        ],
    ):
        refused(capsys, "another model that is called run too", *argv)
    assert main(["tune", "one_/copy", *TUNE, "--vocab", "v.parquet", "--out", "r"]) == 0
    assert (
        main(
            [
                "effects",
                "one_/copy",
                "--task",
                "mine.toml",
                "--vocab",
                "v.parquet",
                "--tokens",
                "4",
                "--texts",
                "8",
                "--quiet",
                "--out",
                "e.parquet",
            ]
        )
        == 0
    )


def test_an_old_vocabulary_is_read_and_what_is_not_known_is_said(place, capsys):
    one, other = load_lm("one_/run"), load_lm("other")
    v = common_vocab([one, other])
    Vocab(v.tokens, v.ids, v.models).save("old.parquet")
    old = Vocab.load("old.parquet")
    capsys.readouterr()
    assert ids_of(old, one).tolist() == v.ids[0].tolist()
    assert "does not say which model run was" in capsys.readouterr().err
    wrong = Vocab(v.tokens, v.ids.flip(0), v.models)
    with pytest.raises(InputError, match="make the vocabulary again"):
        ids_of(wrong, one)


def change(lm, how):
    "The same model, but for one thing."
    new = LM.wrap(copy.deepcopy(lm.model), copy.deepcopy(lm.tokenizer), name=lm.name)
    weight = new.model.get_input_embeddings().weight
    if how == "one weight":
        with torch.no_grad():
            weight[3, 5] += 0.25
    elif how == "a bit of a weight":
        with torch.no_grad():
            weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0))
    elif how == "its tokenizer":
        new.tokenizer.add_tokens(["zz"])
    elif how == "its configuration":
        new.model.config.rms_norm_eps *= 2
    return new


@pytest.mark.parametrize("how", ["one weight", "a bit of a weight", "its tokenizer", "its configuration"])
def test_a_model_in_memory_is_known_by_what_it_holds(how):
    lm = tiny_lm("llama", 3, name="mine")
    assert lm_id(lm) == lm_id(change(lm, "nothing")) != "unknown"
    other = change(lm, how)
    assert lm_id(lm) != lm_id(other) and lm_facts(lm) != lm_facts(other)
    assert same_model(known_by(lm), known_by(other)) is False
    assert lm_id(lm.cast("bf16")) == lm_id(lm)  # a copy in another format is the same model
    with pytest.raises(InputError, match="another model"):
        ids_of(whole_vocab(lm), other)


def test_weights_that_change_in_place_change_the_hash():
    lm = tiny_lm("llama", 3, name="mine")
    before = lm_id(lm)
    with torch.no_grad():
        next(lm.model.parameters()).mul_(2)
    assert lm_id(lm) != before


def test_a_call_of_the_tokenizer_leaves_the_hash():
    lm = tiny_lm("gemma3", 3, name="mine")
    before, lm.tokenizer.padding_side = lm_id(lm), "left"
    lm.tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=8)
    lm._memory = (None,)
    assert lm_id(lm) == before


@pytest.mark.parametrize("how", ["renamed", "saved anew", "bfloat16", "in memory"])
def test_one_model_under_two_names_is_found(tmp_path, how):
    lm = load_lm(save(tiny_lm("llama3", 0), tmp_path / "one"))
    if how == "renamed":
        shutil.copytree(tmp_path / "one", tmp_path / "two")
    if how == "saved anew":
        lm.tokenizer.model_max_length = 17
        save(lm, tmp_path / "two")
    if how == "bfloat16":
        save(lm.cast("bf16"), tmp_path / "two")
    two = (
        LM.wrap(copy.deepcopy(lm.model), lm.tokenizer, name="two") if how == "in memory" else load_lm(tmp_path / "two")
    )
    assert two.name != lm.name and two.kin == lm.kin
    assert tiny_lm("llama3", 1).kin != lm.kin
    task = load_task(make_place(tmp_path) / "mine.toml")
    with pytest.raises(InputError, match="one and two are one model under two names"):
        transfer(lm, [5, 6], [two], task)
    load = Models(load=lambda name, dtype="float32": dict(one=lm, two=two)[name])
    load("one")
    with pytest.raises(InputError, match="one and two are one model under two names"):
        load("two")


def test_a_target_that_took_part_under_another_name_is_refused(place, capsys):
    refused(
        capsys,
        "one model under two names",
        "transferable",
        "--task",
        "mine.toml",
        "--models",
        "one_/run",
        "other",
        "--target",
        "one_/copy",
        "--steps",
        "2",
        "--holdout",
        "8",
        "--out",
        "t",
        "--quiet",
    )
    refused(
        capsys,
        "both called 'run'",
        "transferable",
        "--task",
        "mine.toml",
        "--models",
        "one_/run",
        "other",
        "--target",
        "two_/run",
        "--steps",
        "2",
        "--holdout",
        "8",
        "--out",
        "t",
        "--quiet",
    )
    Path("p.toml").write_text(
        PRESET.split("[[source]]")[0]
        + '[[source]]\nmodel = "./one_/run"\ncounterparts = ["./other"]\ntargets = ["./one_/copy"]\n[vocab]'
        + PRESET.split("[vocab]")[1]
    )
    refused(capsys, "one model under two names", "run", "p.toml", "--out", "r", "--quiet")
    refused(
        capsys,
        "one model under two names",
        "effects",
        "one_/run",
        "one_/copy",
        "--task",
        "mine.toml",
        "--tokens",
        "4",
        "--texts",
        "8",
        "--out",
        "e.parquet",
    )
    refused(
        capsys,
        "both called 'run'",
        "effects",
        "one_/run",
        "two_/run",
        "--task",
        "mine.toml",
        "--tokens",
        "4",
        "--texts",
        "8",
        "--out",
        "e.parquet",
    )
    refused(capsys, "both called 'run'", "stability", "one_/run", "two_/run", "--k", "4", "--out", "s.parquet")
    assert main(["stability", "one_/run", "one_/copy", "--k", "4", "--out", "s.parquet"]) == 0
    assert "one model under two names" in capsys.readouterr().err


def test_results_of_a_namesake_are_refused(place, capsys):
    assert main(["tune", "one_/run", *TUNE, "--out", "r"]) == 0
    refused(capsys, "run is another model in the results", "tune", "two_/run", *TUNE, "--out", "r")
    assert known_models(Store("r").cells()) == {"run": {lm_id(load_lm("one_/run"))}}
    preset = (
        PRESET.split("[[source]]")[0]
        + 'rows = ["Empty", "PEZ"]\n[[source]]\nmodel = "./{}/run"\n'
        + "[tuning]"
        + PRESET.split("[tuning]")[1]
    )
    for where in ("one_", "two_"):
        Path(f"{where}.toml").write_text(preset.format(where))
    assert main(["run", "one_.toml", "--out", "g", "--quiet"]) == 0
    refused(capsys, "run is another model in the results", "run", "two_.toml", "--out", "g", "--quiet")
    check_known(dict(run={"unknown"} - {"unknown"}), "run", "a" * 64)  # older results do not say


def test_exports_know_the_model(place, capsys):
    task, one, two = load_task("mine.toml"), load_lm("one_/run"), load_lm("two_/run")
    assert main(["tune", "one_/run", *TUNE, "--out", "r"]) == 0
    to_json(one.encode(" good film"), task, [one], "p.json", given=dict(task="mine.toml", models=["one_/run"]))
    for what in ("r", "p.json"):
        for to, out in (("python", "x.py"), ("lm-eval", "x"), ("peft", "y")):
            with pytest.raises(InputError, match="another model"):
                export_prompt(what, to, out, task="mine.toml", model="two_/run")
            capsys.readouterr()
            assert export_prompt(what, to, out, task="mine.toml", model="one_/copy")  # renamed: the same model
            assert "its accuracy there is different" not in capsys.readouterr().err
        save_peft(read_prompt(what)["ids"], one, "a")
        assert len(load_peft("a", load_lm("one_/copy"))) and len(load_peft("a"))
        with pytest.raises(InputError, match="an adapter for another model"):
            load_peft("a", two)
    body = json.loads(Path("p.json").read_text())
    for key in ("sha256", "kin"):
        body["certificates"][0]["model"].pop(key)
    Path("old.json").write_text(json.dumps(body))
    assert export_prompt(
        "old.json", "peft", "z", task="mine.toml", model="one_/run"
    )  # an older file: by its name, and that is said
    assert "the prompt has no hash of its model run" in capsys.readouterr().err


def test_a_prompt_of_a_model_in_memory_goes_to_its_folder(place):
    one = load_lm("one_/run")
    held = LM.wrap(copy.deepcopy(one.model), one.tokenizer, name="run")
    to_json(held.encode(" good film"), load_task("mine.toml"), [held], "m.json")
    assert export_prompt("m.json", "peft", "z", task="mine.toml", model="one_/run")
    with pytest.raises(InputError, match="another model"):
        export_prompt("m.json", "peft", "q", task="mine.toml", model="two_/run")


def test_a_namesake_reads_the_text_not_the_ids():
    a, b = tiny_lm("gpt2", 0, name="run"), tiny_lm("gemma3", 1, name="run")
    ids = a.encode(" good film")
    assert reads_as_tuned(a, ids, b) == (
        [a.token_bytes[i] for i in ids] == [b.token_bytes.get(i) for i in b.encode(a.decode(ids))]
    )


def test_identities_of_results_from_before_stand():
    "A hash of files and a revision identify as they did."
    lm = tiny_lm("gpt2")
    for info, want in (
        (dict(kind="folder", sha256="ab" * 32), "abababababab"),
        (dict(kind="hub", revision="c" * 40), "cccccccccccc"),
        (dict(kind="package", sha256="d" * 64, license="x"), "dddddddddddd"),
    ):
        lm._info = info
        assert lm_id(lm) == want and "memory" not in lm.info and "memory" not in lm_facts(lm)


# ---- one model twice, two of one name: said or refused wherever models stand side by side ----

LABELS = ("labels", "--task", "mine.toml", "--limit", "8", "--quiet", "--models")


@pytest.mark.parametrize(
    "argv, says",
    [
        ((*LABELS, "one_/run", "two_/run"), "both called 'run'"),
        ((*LABELS, "one_/run", "one_/copy"), "one model under two names"),
        ((*LABELS, "one_/run", "one_/run"), "is named twice"),
    ],
)
def test_models_of_a_comparison_are_different_ones(place, capsys, argv, says):
    refused(capsys, says, *argv)


@pytest.mark.parametrize("command", [("vocab",), ("stability", "--quiet", "--k", "4")], ids=lambda c: c[0])
@pytest.mark.parametrize("second, says", [("one_/run", "run is named twice"), ("one_/copy", "run and copy are one")])
def test_a_model_beside_itself_is_said(place, capsys, command, second, says):
    assert main([*command, "one_/run", second, "--out", "s.parquet"]) == 0
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_a_sample_that_is_not_there_is_said(place, capsys):
    assert main(["stability", "one_/run", "other", "--k", "4", "--sample", "9999", "--out", "s.parquet"]) == 0
    assert "common tokens are anchors, once: there are too few to draw samples of 9,999" in capsys.readouterr().err


def test_an_adapter_knows_the_beginning_that_it_was_made_for(place, tmp_path):
    lm = load_lm("one_/run")
    save_peft(" the film", lm, tmp_path / "adapter")
    assert load_peft(tmp_path / "adapter", lm).shape[0] == len(lm.encode(" the film"))
    other = load_lm("one_/run", bos=not lm.bos_ids)
    with pytest.raises(InputError, match="BOS vectors before the prompt"):
        load_peft(tmp_path / "adapter", other)
