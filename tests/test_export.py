"""A prompt taken away gives elsewhere what it gave here: in lm-eval, in JSON, and in a few lines of Python."""

import json
import os
from pathlib import Path

import pytest
import torch

from hpt_nb.cli import main
from hpt_nb.export import compare_ids, contexts, harness_ids, to_json, to_lm_eval, to_python
from hpt_nb.scoring import evaluate, prompt_to_ids, text_ids
from hpt_nb.models import load_lm
from hpt_nb.soft import load_peft, vectors_from_text
from hpt_nb.store import InputError, Store
from hpt_nb.tasks import Split, Task, load_task
from forked import ANEW, run as run_copy
from tiny import TEXT, tiny_lm
from tiny_run import make_place

ARCHS = ("gpt2", "opt", "llama", "llama3", "gemma3", "qwen2", "neox")
ODD = [
    "  the film {{ label }} {% raw %}",
    "It was\ngreat",
    "good\u2028bad \x7f \u00a0",
    "caf\u00e9 \u6771\u4eac",
    "12 people: 'left' \"now\" \\n",
    "<s> the bos </s>",
    "# - [x]: yes",
]


def task_of(labels=(" great", " bad"), suffix=". It was", texts=None, **kw):
    texts = texts or [t.strip() for t in dict.fromkeys(TEXT) if t.strip()][:12] + ODD
    split = Split(texts, [i % len(labels) for i in range(len(texts))])
    return Task("Tiny reviews", suffix, labels, split, split, split, **kw)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("prompt", ["", " the good film", "x", " {{ text }}\n \t"])
def test_ids_that_compare_calls_equal_are_equal(arch, prompt):
    "`differ` is what a slow reading of the two ways finds, on every kind of tokenizer."
    lm, task = tiny_lm(arch), task_of()
    got, texts = compare_ids(lm, prompt, task, task.validation.texts), task.validation.texts
    apart = text_ids(lm, task, texts)
    for n, context in enumerate(contexts(prompt, task, texts, lm)):
        want = lm.bos_ids + prompt_to_ids(lm, prompt) + apart[n]
        whole = [lm.tokenizer.encode(context + word) for word in task.labels]
        same = all(ids == want + lm.encode(word) for ids, word in zip(whole, task.labels))
        assert (n not in got["differ"]) == same, (arch, prompt, texts[n])


def test_some_texts_differ_and_some_do_not():
    "Where the pieces' ends join, and where they do not, on a tokenizer that knows the word ` film` but not ` filmthe`."
    lm, texts = tiny_lm("gpt2"), ["the film", "e", "great"]
    assert lm.encode(" th") + lm.encode("e") != lm.encode(" the")
    assert compare_ids(lm, " th", task_of(), texts)["differ"] == [1]


def test_trailing_space_of_the_template_goes_to_the_label():
    lm = tiny_lm("gpt2")
    assert harness_ids(lm, "the film. It was ", "bad") == harness_ids(lm, "the film. It was", " bad")
    assert compare_ids(lm, "", task_of(suffix=". It was ", labels=("great", "bad")), ["the film"])["differ"] == [0]


def test_a_special_token_in_a_text_counts_as_different():
    "A harness reads `<|endoftext|>` in a text as the special token; here it is text."
    lm = tiny_lm("gpt2")
    assert compare_ids(lm, "", task_of(), ["the film <|endoftext|> was"])["differ"] == [0]
    assert compare_ids(lm, "", task_of(), ["the film was"])["differ"] == []


def test_long_texts_are_cut_as_they_are_scored():
    lm, task = tiny_lm("gpt2"), task_of(max_text_tokens=3)
    assert all(
        len(lm.encode(c)) <= 3 + len(lm.encode(task.suffix))
        for c in contexts("", task, ["the film was great and good"] * 2, lm)
    )
    assert contexts("", task, ["the film was great and good"])[0].startswith("the film was great and good")


def test_files_hold_the_strings_letter_for_letter(tmp_path):
    yaml, task, prompt = pytest.importorskip("yaml"), task_of(strip=False), " {{x}} '\"\\ \x7f\u2028\n "
    out = to_lm_eval(prompt, task, tmp_path / "deep" / "er", lm=tiny_lm("gpt2"))

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    spec = yaml.load(Path(out["yaml"]).read_text(encoding="utf-8"), Loader)
    assert (
        spec["metadata"]["prompt"] == prompt
        and spec["doc_to_choice"] == list(task.labels)
        and spec["custom_dataset"] == "hpt_task.load"
        and spec["class"] == "hpt_task.Apart"
    )
    assert spec["metadata"]["compared"]["texts_with_other_ids_as_one_string"] == len(out["differ"])
    rows = [
        json.loads(line)
        for line in Path(out["yaml"]).with_suffix(".jsonl").read_text(encoding="utf-8").split("\n")
        if line
    ]
    assert [r["context"] for r in rows] == [prompt + t + task.suffix for t in task.validation.texts]
    assert [r["label"] for r in rows] == list(task.validation.labels)
    assert str(tmp_path) not in Path(out["yaml"]).read_text(encoding="utf-8")  # the folder may be moved


def test_bad_requests_are_named(tmp_path):
    for bad in (dict(split="test"), dict(name="a/b")):
        with pytest.raises(InputError):
            to_lm_eval("x", task_of(), tmp_path, **bad)
    with pytest.raises(InputError, match="takes text"):
        to_lm_eval(None, task_of(), tmp_path)
    assert not list(tmp_path.iterdir())


def saved(lm, folder):
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def guesses(ours):
    return [int(d) for d in ours["predictions"]]


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma3"])
@pytest.mark.parametrize("prompt", ["", " the bad {{ story }}\n", " th"])
def test_harness_gives_every_prediction(arch, prompt, tmp_path):
    """By its own front door. Prompts and texts that join, long texts, label words of several tokens: the same choice
    as here, text by text."""
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install lm-eval==0.4.13)")
    from lm_eval.tasks import TaskManager

    lm, task = tiny_lm(arch), task_of(max_text_tokens=6, labels=(" terrible", " great", " business"))
    out, ours = to_lm_eval(prompt, task, tmp_path / "out", lm=lm), evaluate(lm, task, task.validation, prompt)
    done = lm_eval.simple_evaluate(
        model="hf",
        model_args=dict(pretrained=str(saved(lm, tmp_path / "model")), dtype="float32"),
        device="cpu",
        batch_size=4,
        tasks=[out["name"]],
        task_manager=TaskManager(include_path=str(tmp_path / "out"), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    samples = sorted(done["samples"][out["name"]], key=lambda s: s["doc_id"])
    choices = [max(range(3), key=lambda k: float(s["filtered_resps"][k][0])) for s in samples]
    assert (
        out["labels"] and out["differ"] and choices == guesses(ours)
    )  # as one string some would have been read otherwise
    assert round(done["results"][out["name"]]["acc,none"] * out["n"]) == ours["correct"]


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma3"])
def test_harness_ids_are_the_harness_own(arch, tmp_path):
    "What `compare_ids` takes for the way of one string is what lm-eval reads there."
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install lm-eval==0.4.13)")
    from lm_eval.models.huggingface import HFLM

    lm, task = tiny_lm(arch), task_of()
    model = HFLM(pretrained=str(saved(lm, tmp_path)), dtype="float32", device="cpu")
    for context in contexts(" th", task, task.validation.texts, lm):
        assert model._encode_pair(context, " great") == harness_ids(lm, context, " great")


@pytest.mark.parametrize("arch", ARCHS)
def test_python_needs_transformers_alone(arch, tmp_path):
    lm, task = tiny_lm(arch), task_of(max_text_tokens=7, labels=(" great", " bad", " the"))
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    prompt, there = " the 'good'\n\\ \u6771 {film}", {}
    source = to_python(prompt, task, tmp_path)
    assert "hpt_nb" not in source
    exec(source, there)
    assert there["start"](lm.tokenizer) == lm.bos_ids and str(tmp_path) not in source
    assert [task.labels.index(" " + row["class"]) for row in there["classify"](task.validation.texts, tmp_path)] == [
        int(d) for d in evaluate(lm, task, task.validation, prompt)["predictions"]
    ]


def test_python_runs_as_a_file(tmp_path):
    lm = tiny_lm("gpt2")
    lm.model.save_pretrained(tmp_path / "m")
    lm.tokenizer.save_pretrained(tmp_path / "m")
    (tmp_path / "snippet.py").write_text(
        to_python(" good", task_of(), tmp_path / "m")
        + '\nimport sys\nprint(classify(["a film"], "m")[0]["class"], classify("a film", "m").strip(), '
        '"hpt_nb" in sys.modules)\n',
        encoding="utf-8",
    )
    done = run_copy(ANEW + (tmp_path / "snippet.py").read_text(encoding="utf-8"), cwd=tmp_path, check=True)
    several, one, loaded = done.stdout.split()
    assert several == one and one in ("great", "bad") and loaded == "False"  # of one text: its label word


def test_json_certifies_on_each_model(tmp_path):
    one, two = tiny_lm("gpt2"), tiny_lm("gemma3")
    ids = torch.tensor(one.encode(" the") + one.encode("re"))
    body = json.loads(to_json(ids, task_of(), [one, two], tmp_path / "p.json", method="pez", seed=0))
    assert body == json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    first, second = body["certificates"]
    assert first["ids"] == ids.tolist() and first["agrees"] == (one.encode(one.decode(ids)) == ids.tolist())
    assert second["ids"] == two.encode(body["prompt"]) and second["model"]["name"] == two.name
    assert body["task"]["hash"] == task_of().hash and body["method"] == "pez"
    with pytest.raises(InputError):
        to_json(" x", task_of(), [one], when=object())


# ---- by command ----


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders of hpt transferable (got) and hpt tune (runs, soft), beside models, task and data, from where the
    commands are called."""
    d = make_place(tmp_path_factory.mktemp("export"))
    old = os.getcwd()
    os.chdir(d)
    small = [
        "--task",
        "mine.toml",
        "--steps",
        "2",
        "--batch",
        "2",
        "--tokens",
        "3",
        "--holdout",
        "8",
        "--dtype",
        "float32",
        "--quiet",
    ]
    assert (
        main(
            [
                "transferable",
                *small,
                "--models",
                "./two",
                "./one",
                "--out",
                "got",
                "--k",
                "8",
                "--top",
                "40",
                "--seeds",
                "0",
            ]
        )
        == 0
    )
    assert main(["tune", "./one", *small, "--out", "runs", "--seeds", "0,1"]) == 0
    assert main(["tune", "./one", *small, "--method", "soft", "--out", "soft"]) == 0
    yield d
    os.chdir(old)


def test_every_form_by_command(place, capsys):
    for to, out in (("json", "p.json"), ("python", "p.py"), ("lm-eval", "harness"), ("peft", "adapter")):
        assert main(["export", "got", "--to", to, "--out", out]) == 0 and capsys.readouterr().out.strip()
    assert json.loads(Path("p.json").read_text(encoding="utf-8")) == json.loads(
        Path("got/prompt.json").read_text(encoding="utf-8")
    )
    assert (
        main(["export", "p.json", "--to", "python", "--out", "q.py"]) == 0
        and Path("q.py").read_text() == Path("p.py").read_text()
    )
    assert {p.name for p in Path("harness").iterdir()} == {"hpt_task.py", "hpt_mine.yaml", "hpt_mine.jsonl"}
    there = {}
    exec(Path("p.py").read_text(encoding="utf-8"), there)
    task, body = load_task("mine.toml"), json.loads(Path("p.json").read_text(encoding="utf-8"))
    lm = load_lm("./two")
    want = evaluate(lm, task, task.validation, body["prompt"])["predictions"]
    assert (
        "".join(str(task.labels.index(" " + row["class"])) for row in there["classify"](task.validation.texts, "two"))
        == want
    )


def test_adapter_gives_the_same_logits(place):
    "On Gemma, whose model scales its table: PEFT's logits are those of the tuned ids."
    peft = pytest.importorskip("peft", reason="peft is not installed (pip install peft)")
    from transformers import AutoModelForCausalLM

    assert main(["export", "got", "--to", "peft", "--out", "adapter"]) == 0
    lm, ids = (
        load_lm("./two"),
        json.loads(Path("got/prompt.json").read_text(encoding="utf-8"))["certificates"][0]["ids"],
    )
    model = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained("two", dtype=torch.float32), "adapter"
    ).eval()
    text = torch.tensor([lm.encode("the film was good. It was")])
    with torch.no_grad():
        theirs = model(input_ids=text).logits[0, -1]
        ours = lm.model(torch.tensor([lm.bos_ids + ids + text[0].tolist()])).logits[0, -1]
    assert (theirs - ours).abs().max() < 1e-5 and lm.bos_ids


def test_a_tuning_folder_is_exported_too(place, capsys):
    assert (
        main(
            [
                "export",
                "runs",
                "--to",
                "json",
                "--task",
                "mine.toml",
                "--model",
                "./one",
                "--seed",
                "1",
                "--out",
                "one.json",
            ]
        )
        == 0
    )
    want = next(c for c in Store("runs").cells("tune") if c["config"]["seed"] == 1)["result"]
    assert json.loads(Path("one.json").read_text(encoding="utf-8"))["certificates"][0]["ids"] == want["prompt_ids"]
    assert main(["export", "soft", "--to", "peft", "--model", "./one", "--out", "soft-adapter"]) == 0
    vectors = vectors_from_text(Store("soft").cells("tune")[0]["result"]["vectors"])
    assert torch.equal(load_peft("soft-adapter"), vectors)


def test_a_pack_is_exported_as_its_folder(place, capsys):
    for folder, more in (("got", ()), ("runs", ("--task", "mine.toml", "--model", "./one", "--seed", "1"))):
        assert main(["pack", folder, "--out", f"{folder}.hpt"]) == 0
        for source in (folder, f"{folder}.hpt"):
            assert main(["export", source, "--to", "json", *more, "--out", f"of-{source}.json"]) == 0
        assert Path(f"of-{folder}.json").read_bytes() == Path(f"of-{folder}.hpt.json").read_bytes()


@pytest.mark.parametrize(
    "argv, says",
    [
        (["got", "--to", "python", "--out", "x.txt"], "ends in .py"),
        (["got", "--to", "xml", "--out", "x"], "known: lm-eval"),
        (["gone", "--to", "json", "--out", "x.json"], "no such file or folder"),
        (["train.csv", "--to", "json", "--out", "x.json"], "not JSON"),
        (["got", "--to", "peft", "--model", "./one", "--out", "x"], "./one is another model"),
        (["got", "--to", "lm-eval", "--task", "other.toml", "--out", "x"], "not the one that the prompt was tuned for"),
        (["runs", "--to", "json", "--out", "x.json"], "does not say which task"),
        (["runs", "--to", "json", "--seed", "7", "--out", "x.json"], "no tuned prompt of seed 7"),
        (["soft", "--to", "python", "--out", "x.py"], "a soft prompt"),
        (["odd.json", "--to", "json", "--out", "x.json"], "not a prompt that hpt wrote"),
        (["ids.json", "--to", "json", "--out", "x.json"], "damaged or edited"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_bad_exports_are_one_line(place, argv, says, capsys):
    Path("other.toml").write_text(Path("mine.toml").read_text().replace("It was", "All in all"))
    Path("odd.json").write_text("[1, 2]")
    body = json.loads(Path("got/prompt.json").read_text(encoding="utf-8"))
    body["certificates"][0]["ids"] = ["1; import os"]
    Path("ids.json").write_text(json.dumps(body))
    assert main(["export", *argv]) == 2
    said = capsys.readouterr()
    assert (
        says in said.err
        and said.err.count("\n") == 1
        and said.out == ""
        and not Path(argv[argv.index("--out") + 1]).exists()
    )
