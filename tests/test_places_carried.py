"A place goes along: through tuning, exports, a prompt's JSON, the command line; and what cannot carry it refuses."

import json

import pytest
import torch

from hpt_nb import cli
from hpt_nb.export import check_carried, put_together, to_json, to_lm_eval, to_python
from hpt_nb.pez import RunSpec, SearchSpace, PezConfig, tune_runs
from hpt_nb.places import portable
from hpt_nb.prompts import Prompt
from hpt_nb.scoring import label_logprobs, text_ids
from hpt_nb.store import InputError
from hpt_nb.tasks import Split, Task
from test_places import CHAT, PROMPT, TEXTS, chat_lm

SPLIT = Split(tuple(TEXTS), (1, 0, 0, 0))


def task_of(**kw):
    return Task("mine", kw.pop("suffix", " It was"), (" great", " bad"), SPLIT, SPLIT, SPLIT, **kw)


CASES = [
    dict(prompt_at="after"),
    dict(prompt_at="{text}\n{prompt}", chat=True),
    dict(chat=True, system="You judge. {prompt}"),
    dict(control=True, suffix="<|end|> It was"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_exports_give_the_same_answers(case, tmp_path):
    lm, task = chat_lm("llama3"), task_of(**case)
    want = label_logprobs(lm, task, TEXTS, PROMPT)
    space = {}
    exec(to_python(PROMPT, task), space)
    assert (space["logp"](TEXTS, lm.model, lm.tokenizer) - want).abs().max() < 1e-4
    made = Prompt.from_body(json.loads(to_json(PROMPT, task, [lm])))
    assert (torch.tensor(made.logprobs(lm, TEXTS)) - want).abs().max() < 1e-4
    assert made.body()["order"] == json.loads(to_json(PROMPT, task, [lm]))["order"]
    to_lm_eval(PROMPT, task, tmp_path, lm=lm)
    doc = json.loads((tmp_path / "hpt_mine.jsonl").read_text(encoding="utf-8").splitlines()[0])
    text = lm.encode(doc["text"])[: doc["cut"]]
    ids = put_together(lm.tokenizer, doc["parts"], doc["prompt"], text, doc["suffix"], doc["control"], lm.bos_ids)
    s = text_ids(lm, task, TEXTS)[0]
    at = getattr(s, "at", 0)
    assert ids == s[:at] + lm.encode(PROMPT) + s[at:] and doc["parts"] == portable(task)
    source = (tmp_path / "hpt_task.py").read_text(encoding="utf-8")
    assert "def put_together(" in source and "def chat_frame(" in source
    compile(source, "hpt_task.py", "exec")


def test_a_peft_adapter_stands_first_or_not_at_all():
    check_carried(task_of(), "peft")
    with pytest.raises(InputError, match="a PEFT adapter comes before everything"):
        check_carried(task_of(prompt_at="after"), "peft")
    with pytest.raises(InputError, match="peft does not carry the task's chat = True"):
        check_carried(task_of(chat=True), "peft")
    assert "put_together" not in to_python(PROMPT, task_of())  # a plain task's export is what it was


@pytest.mark.parametrize("case", CASES[:3], ids=str)
def test_a_prompt_is_tuned_where_it_stands(case):
    lm, task = chat_lm("llama3"), task_of(**case)
    (run,) = tune_runs(
        lm,
        task,
        [RunSpec(SearchSpace(lm), "pez", 0)],
        PezConfig(n_tokens=2, steps=2, batch=4, eval_every=1, holdout_n=4),
        progress=False,
    )
    got = (label_logprobs(lm, task, TEXTS, run.prompt_ids).argmax(-1) == torch.tensor(SPLIT.labels)).float().mean()
    assert run.best_holdout == pytest.approx(float(got))


@pytest.mark.parametrize(
    "line, says",
    [
        ('prompt_at = "{prompt} alone"', "has no {text}"),
        ('prompt_at = "{prompt}{text}{prompt}"', "{prompt} stands 2 times"),
        ('system = "Be kind."', "set chat = true"),
        ("chat = 1", "chat is 1"),
    ],
)
def test_what_cannot_be_is_one_line_before_any_model(line, says, tmp_path, capsys):
    (tmp_path / "d.csv").write_text("text,label\ngood,1\nbad,0\nfine,1\npoor,0\n")
    (tmp_path / "t.toml").write_text(
        f'suffix = " It was"\nlabels = [" bad", " good"]\n{line}\n[data]\ntrain = "d.csv"\nvalidation = "d.csv"\n'
    )
    assert exit_code(["eval", "no-such-model", "--task", str(tmp_path / "t.toml")]) == 2
    err = capsys.readouterr().err.strip()
    assert says in err and len(err.splitlines()) == 1


NO_SYSTEM = "{% if messages[0].role == 'system' %}{{raise_exception('System role not supported')}}{% endif %}" + CHAT


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "Models with and without a chat template, one whose template takes no system text, and a task file."
    d = tmp_path_factory.mktemp("chat")
    for name, template in dict(bare=None, chat=CHAT, nosystem=NO_SYSTEM).items():
        lm = chat_lm("llama3", template)
        lm.model.save_pretrained(d / name), lm.tokenizer.save_pretrained(d / name)
    for split in ("train", "dev"):
        rows = "".join(f"good film {split} {i},1\nbad plot {split} {i},0\n" for i in range(8))
        (d / f"{split}.csv").write_text("text,label\n" + rows)
    (d / "t.toml").write_text(
        'suffix = " It was"\nlabels = [" bad", " great"]\nholdout = 4\n'  # the place is put before [data]
        '[data]\ntrain = "train.csv"\nvalidation = "dev.csv"\n'
    )
    return d


COMMANDS = {
    "eval": ["eval", "{model}", "--task", "t.toml", "--prompt", " film"],
    "tune": ["tune", "{model}", "--task", "t.toml", "--steps", "2", "--out", "made"],
}
REFUSED = [
    ("bare", ["--prompt-at", "{prompt} alone"], "has no {text}"),
    ("bare", ["--prompt-at", "{text} alone"], "has no {prompt}"),
    ("bare", ["--prompt-at", "{prompt} {text} {prompt}"], "{prompt} stands 2 times"),
    ("bare", ["--prompt-at", "{text} {text} {prompt}"], "{text} stands 2 times"),
    ("bare", ["--system", "Be kind."], "set chat = true"),
    ("bare", ["--chat"], "no chat template"),
    ("bare", ["--chat", "--system", "Be kind."], "no chat template"),
    ("nosystem", ["--chat", "--system", "Be kind."], "takes no system text"),
    ("chat", ["--chat", "--system", "{prompt} {prompt}"], "{prompt} stands 2 times"),
]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("model, options, says", REFUSED, ids=lambda x: " ".join(x) if isinstance(x, list) else None)
def test_a_bad_place_on_the_command_line_is_one_line(home, command, model, options, says, monkeypatch, capsys):
    monkeypatch.chdir(home)
    line = [part.format(model="./" + model) for part in COMMANDS[command]]
    assert exit_code(line + options) == 2
    err = capsys.readouterr().err.strip()
    assert says in err and len(err.splitlines()) == 1, err
    assert not (home / "made").exists()


@pytest.mark.parametrize(
    "model, lines, says",
    [
        ("bare", "chat = true", "no chat template"),
        ("nosystem", 'chat = true\nsystem = "Be kind."', "takes no system text"),
    ],
)
def test_a_bad_place_in_a_task_file_is_one_line(home, model, lines, says, monkeypatch, capsys):
    monkeypatch.chdir(home)
    (home / "own.toml").write_text(lines + "\n" + (home / "t.toml").read_text())
    assert exit_code(["eval", "./" + model, "--task", "own.toml", "--prompt", " film"]) == 2
    err = capsys.readouterr().err.strip()
    assert says in err and len(err.splitlines()) == 1, err


def test_a_good_chat_on_the_command_line_passes(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    for options in (["--chat"], ["--chat", "--system", "Be kind."], ["--prompt-at", "{text} {prompt}"]):
        assert exit_code(["eval", "./chat", "--task", "t.toml", "--prompt", " film", "--json", *options]) == 0
        assert "accuracy" in capsys.readouterr().out


def exit_code(argv):
    try:
        return cli.main(argv)
    except SystemExit as e:
        return e.code
