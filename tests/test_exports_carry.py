"""Every form of an export under every setting that changes an answer: the same predictions as here, or a refusal.

A form is run as its user would run it: the Python file is executed, lm-eval's module on a stand-in for the harness,
the JSON by a reader that knows nothing but the JSON, the adapter as PEFT puts its vectors in."""

import json
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
import safetensors.torch as st
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpt_nb import base
from hpt_nb.experiments import lm_id
from hpt_nb.export import export_prompt, to_json, to_lm_eval, to_python
from hpt_nb.models import load_lm
from hpt_nb.scoring import evaluate
from hpt_nb.store import InputError, Store
from hpt_nb.tasks import load_task
from tiny import tiny_lm

TEXTS = [
    "  the film was great and the story was good  ",
    "a bad plot",
    "x",
    "12 people left",
    "great",
    "caf\u00e9 \u6771\u4eac, so good!",
    "<s> the bos </s>",
    "The bad and the boring",
]
PLAIN = dict(suffix=". It was", labels=[" great", " bad"], max_text_tokens=128)
SETTINGS = {  # name -> what is off its default: of the model, of the task, and the prompt
    "nothing": {},
    "bos yes": dict(bos=True),
    "bos no": dict(bos=False),
    "template": dict(suffix=" => \u00bb{x}\u00ab\\n'"),
    "a template that ends in a space": dict(suffix=" It was "),
    "no template": dict(suffix=""),
    "text length": dict(max_text_tokens=2),
    "white space kept": dict(strip=False),
    "label words": dict(labels=[" terrible", " great", " business", " the"]),
    "label words without a space": dict(labels=["the", "good"]),
    "a prompt of signs": dict(prompt=" {film} \"'\\\n\u6771"),
    "no prompt but BOS": dict(prompt="x", bos=True),
    "as released": dict(format="released", max_text_tokens=9),
    "as released, with BOS": dict(format="released", max_text_tokens=8, bos=True),
    "as released, without": dict(format="released", suffix=" It was ", bos=False),
    "all at once": dict(
        bos=False, suffix="\nso:", max_text_tokens=3, strip=False, labels=[" bad", " film", " and"], prompt=" good\n"
    ),
}
ARCHS = {
    "gpt2": 1,
    "llama": 1,
    "gemma3": 2,
}  # with seeds at which the settings turn answers. BOS is not put, and is put, by the tokenizer; Gemma scales its table
FORMS = ("python", "lm-eval", "json", "peft")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    out = {}
    for arch in ARCHS:
        out[arch] = tmp_path_factory.mktemp("models") / arch
        lm = tiny_lm(arch, ARCHS[arch])
        lm.model.save_pretrained(out[arch]), lm.tokenizer.save_pretrained(out[arch])
    return out


def tuned(folder, model, prompt=" the good film", bos="auto", **task):
    "(task, what it scores here, the LM) of a folder as `hpt tune` leaves it, with this prompt in it."
    spec = {**PLAIN, **task}
    rows = "".join(json.dumps(dict(text=t, label=i % len(spec["labels"]))) + "\n" for i, t in enumerate(TEXTS))
    for stem in ("train", "val"):
        (folder / f"{stem}.jsonl").write_text(
            rows
            if stem == "val"
            else "".join(json.dumps(dict(text=f"other {i}", label=i % len(spec["labels"]))) + "\n" for i in range(12))
        )
    (folder / "t.toml").write_text(
        "\n".join(f"{k} = {json.dumps(v)}" for k, v in spec.items())
        + '\nholdout = 4\n[data]\ntrain = "train.jsonl"\nvalidation = "val.jsonl"\n'
    )
    task, lm = load_task(folder / "t.toml"), load_lm(str(model), bos=bos)
    config = dict(
        task=task.name,
        task_hash=task.hash,
        source=lm.name,
        source_id=lm_id(lm),
        counterpart=None,
        row="tune",
        method="pez",
        vocab=dict(kind="whole"),
        seed=0,
        dtype="float32",
        steps=1,
    )
    Store(folder / "runs").put(
        "tune",
        config,
        dict(prompt_text=prompt, prompt_ids=lm.encode(prompt), tokens=[], best_holdout=0.5, best_step=1),
        {},
    )
    return task, guesses(evaluate(lm, task, task.validation, prompt)), lm


def guesses(got):
    return [int(d, 36) for d in got["predictions"]]


def by_python(path, task, model):
    there = {}
    exec(path.read_text(encoding="utf-8"), there)
    return [
        [w.strip() for w in task.labels].index(row["class"]) for row in there["classify"](task.validation.texts, model)
    ]


@torch.no_grad()
def best(model, ids, words):
    return max(range(len(words)), key=lambda i: model(torch.tensor([ids])).logits[0, -1, words[i]].item())


def by_lm_eval(path, task, model):
    "hpt_task.py on a harness of four names."
    made = {
        name: ModuleType(name)
        for name in ("lm_eval", "lm_eval.api", "lm_eval.api.instance", "lm_eval.api.model", "lm_eval.api.task")
    }
    made["lm_eval.api.instance"].Instance = lambda **k: SimpleNamespace(**k, args=k["arguments"])
    made["lm_eval.api.model"].TemplateLM, made["lm_eval.api.task"].ConfigurableTask = (
        type("TemplateLM", (), {}),
        type("ConfigurableTask", (), {}),
    )
    old = {name: sys.modules.pop(name, None) for name in made}
    sys.modules.update(made)
    try:
        there = {"__file__": str(path / "hpt_task.py")}
        exec((path / "hpt_task.py").read_text(encoding="utf-8"), there)
    finally:
        [sys.modules.pop(name) if was is None else sys.modules.update({name: was}) for name, was in old.items()]
    tok, net = (
        AutoTokenizer.from_pretrained(model),
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval(),
    )
    lm = made["lm_eval.api.model"].TemplateLM()
    with torch.no_grad():
        lm.tokenizer, lm._loglikelihood_tokens = (
            tok,
            lambda reqs, **_: [
                net(torch.tensor([context])).logits[0, -1].log_softmax(-1)[word].item() for _, context, (word,) in reqs
            ],
        )
    jsonl, out = next(path.glob("*.jsonl")), []
    for doc in there["load"](jsonl.name)["validation"]:
        said = there["loglikelihood_apart"](lm, [SimpleNamespace(doc=doc, args=("", word)) for word in task.labels])
        out.append(max(range(len(said)), key=said.__getitem__))
    return out


def by_json(path, task, model):
    "What the file says, and nothing else: tokenised apart, in its order."
    body = json.loads(path.read_text(encoding="utf-8"))
    tok, net, t = (
        AutoTokenizer.from_pretrained(model),
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval(),
        body["task"],
    )

    def ids(text):
        return tok(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    own = tok("a")["input_ids"][: -len(ids("a"))]
    bos = own if body.get("bos") is None else (own or [tok.bos_token_id]) if body["bos"] else []
    assert body["order"] == ["prompt", "text", "suffix", "label word"] and body["pieces_tokenised"] == "apart"
    texts, how = (
        [x.strip() if t["strip"] else x for x in task.validation.texts],
        body.get("written", {"suffix": t["suffix"], "max_text_tokens_counts": "text"}),
    )
    room = t["max_text_tokens"] - (0 if how["max_text_tokens_counts"] == "text" else len(bos + ids(how["suffix"])))
    return [
        best(net, bos + ids(body["prompt"]) + ids(x)[:room] + ids(how["suffix"]), [ids(w)[0] for w in t["labels"]])
        for x in texts
    ]


@torch.no_grad()
def by_peft(path, task, model):
    "As PEFT does it: the adapter's vectors before the embeddings of what the user gives, who follows the README."
    vectors, said = (
        st.load_file(path / "adapter_model.safetensors")["prompt_embeddings"],
        (path / "README.md").read_text(encoding="utf-8"),
    )
    strip, cut, less, suffix = re.search(
        r"special ones, (stripped, )?cut to (\d+) tokens( less those of BOS and template)? "
        r"and followed by those of (.+?); the label words are (.+?); one text",
        said,
        re.S,
    ).group(1, 2, 3, 4)
    bos = int((re.search(r"(\d+) of them for BOS", said) or [0, 0])[1])
    assert "dtype=torch.float32" in said and "padded on the right" in said and all(repr(w) in said for w in task.labels)
    tok, net = (
        AutoTokenizer.from_pretrained(model),
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval(),
    )

    def ids(text):
        return tok(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    out, words = [], torch.tensor([ids(w)[0] for w in task.labels])
    for text in task.validation.texts:
        rows = net.get_input_embeddings()(
            torch.tensor(
                [
                    ids(text.strip() if strip else text)[: int(cut) - (bos + len(ids(eval(suffix))) if less else 0)]
                    + ids(eval(suffix))
                ],
                dtype=torch.long,
            )
        )
        out.append(net(inputs_embeds=torch.cat([vectors[None].to(rows), rows], 1)).logits[0, -1, words].argmax().item())
    return out


RUN = {"python": by_python, "lm-eval": by_lm_eval, "json": by_json, "peft": by_peft}
OUT = {"python": "c.py", "lm-eval": "harness", "json": "p.json", "peft": "adapter"}


@pytest.mark.parametrize("arch", [pytest.param(a, marks=() if a == "gpt2" else pytest.mark.slow) for a in ARCHS])
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_is_in_every_form(saved, tmp_path, setting, arch):
    "Out of a tuning folder, and once more out of the JSON that was made of it."
    task, want, _ = tuned(tmp_path, saved[arch], **SETTINGS[setting])
    for what in ("runs", "p.json") if arch == "gpt2" else ("runs",):
        for form in ("json", *(f for f in FORMS if f != "json")):
            if (what, form) == ("p.json", "json") or form == "peft" and "format" in SETTINGS[setting]:
                continue  # refused: a test below
            out = tmp_path / f"{what}-{OUT[form]}"
            export_prompt(tmp_path / what, form, out, task=str(tmp_path / "t.toml"), model=str(saved[arch]))
            if (what, form) == ("runs", "json"):
                (tmp_path / "p.json").write_bytes(out.read_bytes())
            assert RUN[form](out, task, saved[arch]) == want, (setting, arch, form, what)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_settings_change_answers(saved, tmp_path_factory, arch):
    "Else the test above would say little: on each model, some of them turn some text."
    plain = tuned(tmp_path_factory.mktemp("p"), saved[arch])[1]
    turned = [
        name
        for name, how in SETTINGS.items()
        if "labels" not in how and tuned(tmp_path_factory.mktemp("s"), saved[arch], **how)[1] != plain
    ]
    assert len(turned) >= 4 and {"bos yes", "bos no"} & set(turned), turned


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("how", [dict(), dict(max_text_tokens=12, bos=True)])
def test_the_released_format_is_in_every_form(saved, tmp_path, arch, how):
    settings = {**how, "format": "released", "strip": False}
    task, want, _ = tuned(tmp_path, saved[arch], **settings)
    args = dict(task=str(tmp_path / "t.toml"), model=str(saved[arch]))
    for form in FORMS:
        export_prompt(tmp_path / "runs", form, tmp_path / OUT[form], **args)
        assert RUN[form](tmp_path / OUT[form], task, saved[arch]) == want, form


def test_a_model_in_another_format_is_used_in_the_one_it_was_scored_in(saved, tmp_path):
    "A folder in bfloat16, which transformers would load as such."
    AutoModelForCausalLM.from_pretrained(saved["llama"], dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(saved["llama"]).save_pretrained(tmp_path / "half")
    task, want, _ = tuned(tmp_path, tmp_path / "half", prompt=" the story")
    for form in FORMS:
        export_prompt(
            tmp_path / "runs", form, tmp_path / OUT[form], task=str(tmp_path / "t.toml"), model=str(tmp_path / "half")
        )
        assert RUN[form](tmp_path / OUT[form], task, tmp_path / "half") == want, form


@pytest.mark.parametrize("setting", ["chat", "prompt_at", "anything"])
def test_a_task_s_setting_that_a_form_does_not_know_is_refused(saved, tmp_path, setting):
    "Before anything is written. The JSON holds all of a task's settings, so it is none of those forms."
    task, _, lm = tuned(tmp_path, saved["gpt2"])
    task.config[setting] = "x"
    for work in (lambda: to_python(" the", task, "m"), lambda: to_lm_eval(" the", task, tmp_path / "x")):
        with pytest.raises(InputError, match=f"does not carry the task's {setting} = 'x'"):
            work()
    assert not (tmp_path / "x").exists() and json.loads(to_json(" the", task, [lm]))["task"][setting] == "x"


@pytest.mark.parametrize("form", ["python", "lm-eval", "peft"])
def test_a_format_that_a_form_cannot_write_is_refused(saved, tmp_path, monkeypatch, form):
    "A text joined to its template, or a space as a token of its own."
    from hpt_nb import tasks

    task, _, _ = tuned(tmp_path, saved["gpt2"])
    for how in (dict(join="whole"), dict(before=" "), dict(end="own")):
        monkeypatch.setitem(tasks.FORMATS, "ours", {**tasks.FORMATS["ours"], **how})
        with pytest.raises(InputError, match="does not carry the task's"):
            export_prompt(
                tmp_path / "runs",
                form,
                tmp_path / f"x{OUT[form]}",
                task=str(tmp_path / "t.toml"),
                model=str(saved["gpt2"]),
            )
    assert not list(tmp_path.glob("x*"))


def test_the_functions_carry_bos_too(saved, tmp_path):
    "Called from a program, with the model at hand."
    task, want, lm = tuned(tmp_path, saved["llama"], bos=False)
    (tmp_path / "c.py").write_text(to_python(" the good film", task, saved["llama"], bos=False), encoding="utf-8")
    to_lm_eval(" the good film", task, tmp_path / "harness", lm=lm)
    to_json(" the good film", task, [lm], tmp_path / "p.json")
    assert [RUN[f](tmp_path / OUT[f], task, saved["llama"]) for f in ("python", "lm-eval", "json")] == [want] * 3


def test_a_text_that_is_not_the_tuned_prompt_is_said(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(base, "_SAID", {})
    task, _, lm = tuned(tmp_path, saved["gpt2"])
    ids = lm.encode(" th") + lm.encode("e")  # " the" when encoded again
    to_json(
        ids, task, [lm], tmp_path / "p.json", given=dict(task=str(tmp_path / "t.toml"), models=[str(saved["gpt2"])])
    )
    export_prompt(tmp_path / "p.json", "python", tmp_path / "c.py")
    assert "even gpt2 reads the prompt's text" in capsys.readouterr().err
    export_prompt(tmp_path / "p.json", "python", tmp_path / "d.py", model=str(saved["llama"]))
    assert "tuned on gpt2, and is exported to run on" in capsys.readouterr().err
    for form in ("json", "peft"):  # ids mean something else there
        if form == "peft":
            with pytest.raises(InputError, match="is another model"):
                export_prompt(tmp_path / "p.json", form, tmp_path / "x", model=str(saved["llama"]))


@pytest.mark.parametrize("form", FORMS)
def test_a_place_that_cannot_be_written_is_refused_before_the_model_is_loaded(saved, tmp_path, monkeypatch, form):
    tuned(tmp_path, saved["gpt2"])
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("hpt_nb.export.load_lm", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(InputError, match="cannot be written"):
        export_prompt(
            tmp_path / "runs",
            form,
            tmp_path / "file" / OUT[form],
            task=str(tmp_path / "t.toml"),
            model=str(saved["gpt2"]),
        )


def test_the_models_of_one_name_are_told_apart_by_their_weights(saved, tmp_path):
    tuned(tmp_path, saved["gpt2"])
    (tmp_path / "gpt2").mkdir()
    other = tiny_lm("gpt2", 7)
    other.model.save_pretrained(tmp_path / "gpt2"), other.tokenizer.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(InputError, match="is another model"):
        export_prompt(tmp_path / "runs", "peft", tmp_path / "x", model=str(tmp_path / "gpt2"))
