import gc
import os
import re
from functools import cache
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the tests never ask a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import pytest

# No test pulls the plug, and what kill -9 leaves is the kernel's. test_faults.py looks at the calls and at their order.
os.fsync = lambda fd: None

HERE = Path(__file__).parent


# Most seconds first, so that no worker is left alone with a long file; a stale export shows first of all.
LONGEST = "project cli scoring report gguf joint step0 experiments exports_carry pez neighbors studies analysis places"


def pytest_collection_modifyitems(items):
    places = {f"test_{name}.py": i for i, name in enumerate(LONGEST.split())}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_collection_finish():
    "What is loaded by now stays to the end: a collection of rubbish need not look at it again."
    gc.freeze()


@cache
def slow_ones() -> tuple:
    "(files that are marked slow as a whole, single tests that are or have cases that are), read from their source."
    files, tests = [], []
    for path in sorted(HERE.glob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if re.search(r"^pytestmark = pytest\.mark\.slow$", text, re.M):
            files.append(path.name)
            continue
        after = [part.partition("\ndef test_")[2] for part in text.split("pytest.mark.slow")[1:]]
        tests += [f"{path.name}::test_{part.partition('(')[0]}" for part in after]
    return files, list(dict.fromkeys(tests))


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "slow: minutes, and rarely broken; make test leaves it out, make test-all runs it"
    )


def pytest_ignore_collect(collection_path, config):
    "A file of which nothing is wanted is not even imported."
    if config.option.markexpr == "not slow" and collection_path.name in slow_ones()[0]:
        return True


def pytest_terminal_summary(terminalreporter, config):
    "What was left to `make test-all`."
    if config.option.markexpr == "not slow":
        terminalreporter.write_line("Left to make test-all: " + ", ".join(sum(slow_ones(), [])) + ".")


@pytest.fixture
def plain_pages(monkeypatch):
    "Pages without the slow parts of drawing (`tiny_run.plain_pages`)."
    from tiny_run import plain_pages

    plain_pages(monkeypatch)


@pytest.fixture(autouse=True)
def messages_are_shown():
    "On stderr, as the command line shows them: what is said can be tested where nothing but the library is called."
    from hpt_nb.store import messages

    with messages():
        yield
