"""Models, data, presets and results come from strangers: nothing of theirs is run, nothing leads out of the folders,
and what they wrote is shown as the text that it is."""

import ast
import json
import os
import pickle
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from hpt_nb import report
from hpt_nb.cli import main
from hpt_nb.records import record_text
from hpt_nb.store import InputError, Store, visible
from tiny_run import PRESET, TASK, make_place

LIB = Path(__file__).parents[1] / "hpt_nb"
MODULES = sorted(p for p in LIB.glob("*.py") if p.name != "_modidx.py")
HTML, LATEX, ESCAPE, TURNED = (
    "<img src=x onerror=alert(1)>",
    r"$\frac{1}{2",
    "\x1b[31mred\x1b]0;title\x07",
    "abc\u202egnp.exe\u2066",
)
EVIL = {
    "html": HTML,
    "script": "</script></style><script>alert(1)</script>",
    "attribute": '" onmouseover="alert(1)',
    "latex": LATEX,
    "escape": ESCAPE,
    "turned": TURNED,
    "lines": "a\nb\r\u2028c\x85d",
    "entity": "&lt;b&gt;",
    "nul": "a\0b",
}


# ---- nothing is run ----


def calls(path):
    "(what is called, its keyword arguments) for every call in a module."
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.name)
def test_no_module_can_run_what_it_reads(path):
    "No pickle, no code from a model's repository, no shell, no evaluation of text."
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        assert not {n.split(".")[0] for n in names} & {
            "pickle",
            "cPickle",
            "dill",
            "cloudpickle",
            "joblib",
            "marshal",
            "shelve",
            "runpy",
            "code",
        }, names
    for func, kw in calls(path):
        assert func not in (
            "eval",
            "exec",
            "compile",
            "__import__",
            "os.system",
            "os.popen",
            "torch.load",
            "torch.jit.load",
            "pd.read_pickle",
            "np.load",
            "importlib.import_module",
            "yaml.load",
            "yaml.unsafe_load",
            "yaml.full_load",
        ), func
        assert (
            kw.get("shell", "False") == "False"
            and kw.get("trust_remote_code", "False") == "False"
            and kw.get("allow_pickle", "False") == "False"
        ), (func, kw)
        assert not func.endswith(("extractall", "unpack_archive")), (
            f"{func}: an archive's member may name a path outside"
        )
        if func.startswith("Auto") and func.endswith(".from_pretrained") and (path.name, func) not in DEFAULTED:
            assert "trust_remote_code" in kw, f"{path.name}: {func} leaves trust_remote_code to its default"


DEFAULTED = set()  # calls that may leave it to its default


class Touch:
    "An object that leaves a file when it is unpickled."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("good"))


def test_a_pickle_is_not_opened(place, tmp_path, monkeypatch, capsys):
    "As weights, checkpoint, vocabulary or data: it is named, and what it carries does not happen."
    monkeypatch.chdir(tmp_path)
    mark, blob = tmp_path / "ran", pickle.dumps(Touch(str(tmp_path / "ran")))
    shutil.copytree(place / "one", "m")
    os.remove("m/model.safetensors")
    for name in ("m/pytorch_model.bin", "v.parquet", "train.csv", "c.safetensors"):
        Path(name).write_bytes(blob)
    torch.save({"x": Touch(str(mark))}, "m/model.pt")
    Path("bad.toml").write_text(TASK), shutil.copy(place / "dev.csv", "dev.csv")
    for argv in (
        ["eval", "./m", "--task", str(place / "mine.toml")],
        ["eval", str(place / "one"), "--task", "bad.toml"],
        ["tune", str(place / "one"), "--task", str(place / "mine.toml"), "--vocab", "v.parquet", "--out", "x"],
    ):
        assert main(argv) == 2 and capsys.readouterr().err.count("\n") == 1
    os.rename("m/pytorch_model.bin", "m/model.safetensors")
    assert main(["eval", "./m", "--task", str(place / "mine.toml")]) == 2
    from hpt_nb.pez import tune
    from hpt_nb.tasks import load_task
    from tiny import tiny_lm

    with pytest.raises(InputError, match="c.safetensors"):
        tune(
            tiny_lm("llama3"),
            load_task(place / "mine.toml"),
            steps=1,
            batch=2,
            holdout_n=2,
            progress=False,
            checkpoint="c.safetensors",
        )
    assert not mark.exists()
    pickle.loads(blob)
    assert mark.exists()  # it would have


@pytest.mark.parametrize("model_type", ["llama", "brain"])
def test_a_models_own_code_is_not_run(place, tmp_path, monkeypatch, capsys, model_type):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "one", "m")
    config = json.loads(Path("m/config.json").read_text()) | dict(
        model_type=model_type,
        auto_map={
            "AutoConfig": "evil.Config",
            "AutoModelForCausalLM": "evil.Model",
            "AutoTokenizer": ["evil.T", "evil.T"],
        },
    )
    Path("m/config.json").write_text(json.dumps(config))
    Path("m/tokenizer_config.json").write_text(
        json.dumps(
            json.loads(Path("m/tokenizer_config.json").read_text())
            | dict(auto_map={"AutoTokenizer": ["evil.T", "evil.T"]})
        )
    )
    Path("m/evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\nclass T: pass\n"
    )
    assert main(["eval", "./m", "--task", str(place / "mine.toml"), "--quiet"]) == (0 if model_type == "llama" else 2)
    assert not (tmp_path / "ran").exists() and "evil" not in sys.modules
    if model_type == "brain":
        assert capsys.readouterr().err.count("\n") == 1


# ---- what is written stands inside the folder ----


def test_a_run_writes_into_its_folder_alone(place, tmp_path, monkeypatch):
    "Whatever models, tasks and presets are called."
    monkeypatch.chdir(tmp_path)
    for p in place.iterdir():
        if p.is_file():
            shutil.copy(p, ".")
    os.mkdir("models"), os.mkdir("work")
    for name in ("one", "two"):
        shutil.copytree(place / name, f"models/..{name} ;touch ran")
    text = (
        PRESET.replace('"./one"', '"./models/..one ;touch ran"')
        .replace('"./two"', '"./models/..two ;touch ran"')
        .replace('name = "tiny"', 'name = "../../up"')
        .replace("seeds = [0, 1]", 'rows = ["Ours"]\nseeds = [0]')
        .replace("steps = 30", "steps = 2")
        .replace("eval_every = 10", "eval_every = 2")
    )
    (
        Path("evil.toml").write_text(text),
        Path("mine.toml").write_text(TASK.replace('name = "mine"', 'name = "../../../up"')),
    )
    before = set(tmp_path.rglob("*"))
    assert main(["run", "evil.toml", "--out", "work/x", "--quiet"]) == 0
    new = {p.relative_to(tmp_path).as_posix() for p in set(tmp_path.rglob("*")) - before}
    assert (
        new
        and all(n.startswith("work/x") for n in new)
        and {n.split("/")[2] for n in new if n.count("/") > 1}
        <= {"cells", "files", "checkpoints", "plans", "failed", "running"}
    )
    assert all(re.fullmatch(r"[A-Za-z0-9_.+-]+", n.split("/")[-1]) for n in new)


# ---- text is shown as text ----


class Page(HTMLParser):
    "The tags and attributes of a page, and its text."

    def __init__(self, html):
        super().__init__()
        self.tags, self.attrs, self.text = set(), [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attrs += [(tag, *a) for a in attrs]

    def handle_data(self, data):
        self.text.append(data)


ALLOWED = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "small",
    "span",
    "h1",
    "h2",
    "h3",
    "p",
    "nav",
    "ol",
    "ul",
    "li",
    "a",
    "main",
    "section",
    "div",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "b",
    "bdi",
    "img",
    "dd",
    "details",
    "dl",
    "dt",
    "header",
    "summary",
}


def check_page(html, *said):
    page = Page(html)
    assert page.tags <= ALLOWED, page.tags - ALLOWED
    assert not [
        a
        for a in page.attrs
        if a[1].startswith("on")
        or (a[1] in ("src", "href") and not (a[2] or "").startswith(("data:image/svg+xml;base64,", "#")))
    ]
    assert all(visible(c) == c for c in set(html) - {"\n"}), "a control or direction mark stands in the page"
    text = "".join(page.text)
    for s in said:
        assert visible(s) in text, s


@pytest.mark.parametrize("evil", EVIL.values(), ids=EVIL.keys())
def test_a_table_shows_any_text(evil):
    import pandas as pd

    for column in ("Prompt", evil):
        html = report.table_html(pd.DataFrame({column: [evil], "Seed": [0]}), evil)
        check_page(html, evil, column)


@pytest.mark.parametrize("evil", EVIL.values(), ids=EVIL.keys())
def test_what_is_visible_is_printable_and_says_it_all(evil):
    assert visible(evil).isprintable() and visible(visible(evil)) == visible(evil)
    assert (
        visible(evil).replace("\\\\", "\\").encode("latin-1", "backslashreplace").decode("unicode_escape") == evil
        or "\\" in evil
    )
    assert (
        str(InputError(f"no such task {evil!r}")).isprintable()
        and str(InputError(f"{evil}: no such file")).isprintable()
    )


def evil_run(place, where, model, task):
    "A finished run whose source, task and prompts are named by a stranger."
    d = where / "evil"
    shutil.copytree(place, d)
    os.rename(d / "two", d / model)
    (d / "mine.toml").write_text(TASK.replace('name = "mine"', f"name = {json.dumps(task)}"))
    source = '[[source]]\nmodel = "./one"\ncounterparts = ["./two"]\ntargets = ["./two"]\n'
    (d / "evil.toml").write_text(
        (PRESET.split("[[source]]")[0] + source + "[vocab]" + PRESET.split("[vocab]")[1])
        .replace('"./two"', json.dumps(f"./{model}"))
        .replace("seeds = [0, 1]", 'rows = ["Empty", "PEZ", "Ours"]\nseeds = [0, 1]')
        .replace("steps = 30", "steps = 4")
        .replace("eval_every = 10", "eval_every = 2")
    )
    return d


@pytest.fixture(scope="module")
def evil(place, tmp_path_factory):
    d = evil_run(place, tmp_path_factory.mktemp("e"), HTML, f"{HTML}{ESCAPE}{TURNED}")
    old = os.getcwd()
    os.chdir(d)
    try:
        assert main(["run", "evil.toml", "--out", "x", "--quiet"]) == 0
    finally:
        os.chdir(old)
    prompts = iter(EVIL.values())
    for p in sorted((d / "x" / "cells").glob("tune-*.json")):  # a prompt may be any text
        c = json.loads(p.read_text())
        c["result"]["tokens"] = [next(prompts, HTML), *EVIL.values()]
        p.write_text(record_text(c["kind"], c["config"], c["result"], c["meta"]))
    return d


def test_the_page_of_a_run_shows_any_text(evil):
    html = report.write_report(evil / "x", evil / "site").read_text(encoding="utf-8")
    check_page(html, HTML, ESCAPE, TURNED, *EVIL.values())


def test_the_page_of_a_run_shows_latex_as_text(place, tmp_path, monkeypatch):
    d = evil_run(place, tmp_path, "$\\frac{1$", LATEX)
    monkeypatch.chdir(d)
    assert main(["run", "evil.toml", "--out", "x", "--quiet"]) == 0
    check_page(report.write_report("x", "site").read_text(encoding="utf-8"), "$\\frac{1$", LATEX)


def says(capsys, *argv):
    "What a command prints, both streams; every line must be printable."
    code = main(list(argv))
    out, err = capsys.readouterr()
    return code, [line for line in (out + err).split("\n") if line]


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(("eval", "./one", "--task", "mine.toml", "--quiet")),
        ("eval", "./one", "--task", "mine.toml", "--json"),
        ("eval", "./one", "--task", "mine.toml", "--json", "--prompt", ESCAPE + TURNED),
        (
            "tune",
            "./one",
            "--task",
            "mine.toml",
            "--out",
            "t",
            "--steps",
            "2",
            "--batch",
            "2",
            "--holdout",
            "4",
            "--eval-every",
            "1",
            "--quiet",
        ),
        ("eval", f"./{HTML}{ESCAPE}", "--task", "mine.toml"),
        ("eval", "./one", "--task", f"{TURNED}.toml"),
        ("run", ESCAPE, "--out", "y"),
        ("report", ESCAPE, "--out", "y"),
        pytest.param(("vocab", "./one", f"./e{ESCAPE}", "--out", "v.parquet")),
        ("stability", "--quiet", "./one", f"./{HTML}", "--k", "4", "--out", "v.parquet"),
    ],
    ids=lambda a: visible(" ".join(a))[:60],
)
def test_a_terminal_gets_text_alone(evil, tmp_path, monkeypatch, capsys, argv):
    shutil.copytree(evil, tmp_path / "d")
    monkeypatch.chdir(tmp_path / "d")
    if argv[0] == "vocab":
        os.rename(HTML, f"e{ESCAPE}")
    code, lines = says(capsys, *argv)
    assert lines and code in (0, 2) and all(line.isprintable() for line in lines), lines


def test_the_state_of_a_run_is_text(tmp_path):
    from hpt_nb.store import status, status_text

    s = Store(tmp_path)
    parts = [{"task": e, "source": e, "seed": i} for i, e in enumerate(EVIL.values())]
    s.plan([("tune", p) for p in parts])
    for p, e in zip(parts, EVIL.values()):
        s.fail("tune", p, e)
    text = status_text(status(s), most=99)
    assert all(line.isprintable() for line in text.split("\n")) and all(
        " ".join(visible(" ".join(e.split())).split()) in text for e in EVIL.values()
    )
