"The README's example runs as it stands: on tiny models always, on the real ones by make test-all."

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hpt_nb.tasks import Split, Task
from tiny import TEXT, tiny_lm

ROOT = Path(__file__).parents[1]
CODE = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)[1]


def test_example_is_six_statements():
    assert len([line for line in CODE.splitlines() if line and not line.startswith(("from ", " "))]) <= 6


def test_example_runs_on_tiny_models(monkeypatch, capsys):
    "The code itself, with small stand-ins for the two models, the task, and the number of tokens asked."
    lms = {"smollm2-135m": tiny_lm("gpt2", name="smollm2-135m"), "gemma-3-270m": tiny_lm("gemma3", name="gemma-3-270m")}
    texts = [f"{t} {n}" for n, t in enumerate(t for t in TEXT[:20] if t.strip())]
    split = Split(texts, [i % 2 for i in range(len(texts))])
    task = Task("movie_snippets", ". It was", (" bad", " good"), split, split, split)
    monkeypatch.setattr("hpt_nb.load_lm", lms.__getitem__)
    monkeypatch.setattr("hpt_nb.load_task", {task.name: task}.__getitem__)
    scope = {}
    exec(CODE.replace("k=64", "k=4").replace("top(8192)", "top(16)"), scope)
    said = capsys.readouterr().out.strip().splitlines()
    assert said[0] == repr(scope["run"].prompt_text)
    assert [line.rsplit(" ", 1)[0] for line in said[1:]] == [
        "smollm2-135m ids",
        "smollm2-135m text",
        "gemma-3-270m text",
    ]
    assert all(0 <= float(line.rsplit(" ", 1)[1]) <= 1 for line in said[1:])
    assert set(scope["run"].prompt_ids) <= set(scope["vocab"].ids_for("smollm2-135m").tolist())


def ready():
    '"" if the example can run here as it stands; else why not. Nothing is fetched to find out.'
    from hpt_nb.conversion import conversion_folder, is_whole
    from hpt_nb.shipped import SHIPPED

    home = Path(os.environ.get("HPT_CACHE") or "~/.cache/hpt_nb").expanduser()
    if not home.is_dir():
        return f"the cache {home} is empty"
    lacks = [n for n in ("smollm2-135m", "gemma-3-270m") if not is_whole(conversion_folder(SHIPPED[n].sha256))] + [
        "movie_snippets"
    ] * (not any(home.glob("movie_snippets/*")))
    return f"not in the cache: {', '.join(lacks)}" if lacks else ""


@pytest.mark.slow
def test_example_runs_as_a_script(tmp_path):
    """Copied into a fresh file, in an empty folder, on the real models: where they are in the cache, so after make
    report. HPT_SLOW_TESTS=1 fetches what it needs."""
    if os.environ.get("HPT_SLOW_TESTS") != "1" and (why := ready()):
        pytest.skip(
            f"the README's example was not run on the real models ({why}): "
            "make report fetches them, or HPT_SLOW_TESTS=1 does"
        )
    (tmp_path / "example.py").write_text(CODE, encoding="utf-8")
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^gemma-3-270m text 0\.\d+$", done.stdout, re.M)
