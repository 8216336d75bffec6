"""The project's papers agree with what they speak of: versions, commands, names, and the README's other language."""

import configparser
import importlib
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SETTINGS = configparser.ConfigParser(delimiters=["="], interpolation=None)
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = SETTINGS["DEFAULT"]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_workflow_runs_make_test():
    jobs = yaml.safe_load(read(".github/workflows/test.yml"))["jobs"]
    assert "make test" in [s.get("run") for s in jobs["test"]["steps"]]
    assert jobs["test"]["strategy"]["matrix"]["python"][0] == SETTINGS["min_python"]
    targets = set(re.findall(r"^(\w+):", read("Makefile"), re.M))
    assert {
        m for j in jobs.values() for s in j["steps"] for m in re.findall(r"^make (\w+)", s.get("run", ""))
    } <= targets


def test_hooks_are_those_of_the_nbdev_in_use():
    repos = {r["repo"]: r for r in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]}
    nbdev = repos["https://github.com/fastai/nbdev"]
    assert {h["id"] for h in nbdev["hooks"]} == {"nbdev_clean", "nbdev_export"}
    assert f"nbdev=={nbdev['rev']}" in SETTINGS["dev_requirements"].split()
    for hook in repos["local"]["hooks"]:
        assert (ROOT / hook["entry"].split()[1]).exists()


def test_citation_names_the_paper_and_this_version():
    cff = yaml.safe_load(read("CITATION.cff"))
    assert (
        str(cff["version"]) == SETTINGS["version"]
        and cff["repository-code"] == SETTINGS["git_url"]
        and cff["title"].startswith(SETTINGS["lib_name"])
    )
    paper = cff["preferred-citation"]
    assert "ハードプロンプトチューニング" in paper["title"] and [a["family-names"] for a in paper["authors"]] == [
        "岸本",
        "小尾",
        "小杉",
        "船越",
        "奥村",
    ]


def test_changelog_knows_this_version():
    assert f"## {SETTINGS['version']}" in read("CHANGELOG.md")


def test_contributing_speaks_of_what_exists():
    text = read("CONTRIBUTING.md")
    targets = set(re.findall(r"^(\w+):", read("Makefile"), re.M))
    assert set(re.findall(r"make (\w+)  ", text)) | set(re.findall(r"`make (\w+)`", text)) <= targets
    for path in re.findall(r"(?:nbs|tests|tools)/\w+\.\w+", text):
        assert (ROOT / path).exists(), path
    for chapter in re.findall(r"`(\d\d[a-z]{0,2}_\w+)`", text):
        assert (ROOT / f"nbs/{chapter}.ipynb").exists(), chapter
    for name, module in (
        ("SHIPPED", "models"),
        ("TASKS", "tasks"),
        ("BUILT_IN", "methods"),
        ("Method", "methods"),
        ("Pass", "tuning"),
        ("run_pass", "tuning"),
        ("REGISTRY", "experiments"),
        ("METHOD_COLORS", "report"),
        ("SearchSpace", "pez"),
        ("tune_runs", "pez"),
        ("PrefixScorer", "scoring"),
        ("load_task", "tasks"),
        ("keep", "store"),
        ("recall", "store"),
    ):
        assert f"`{name}" in text and hasattr(importlib.import_module(f"hpt_nb.{module}"), name)


def blocks(text):
    return re.findall(r"```(\w+)\n(.*?)```", text, re.S)


@pytest.mark.skipif(not (ROOT / "README.ja.md").exists(), reason="no README.ja.md")
def test_japanese_readme_has_the_same_commands_and_chapters():
    def plain(code):
        return [line.split("#")[0].rstrip() for line in code.splitlines()]  # comments are translated

    en, ja = read("README.md"), read("README.ja.md")
    assert [(lang, plain(code)) for lang, code in blocks(ja)] == [(lang, plain(code)) for lang, code in blocks(en)]
    for pattern in (r"\]\((nbs/\w+\.ipynb)\)", r"`(make \w+)`", r"`(hpt_nb\.\w+)`", r"^#{1,3} "):
        assert re.findall(pattern, ja, re.M) == re.findall(pattern, en, re.M), pattern


@pytest.mark.skipif(not (ROOT / "README.ja.md").exists(), reason="no README.ja.md")
def test_japanese_readme_has_the_same_numbers():
    "Each number of the README as often; beyond that only small ones, which English spells out."

    def numbers(text):
        return Counter(
            re.findall(
                r"(?<![A-Za-z0-9_.-])\d+(?:[.,]\d+)*(?![A-Za-z0-9_])",
                re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|<!--.*?-->", "", text, flags=re.S),
            )
        )

    en, ja = numbers(read("README.md")), numbers(read("README.ja.md"))
    assert en - ja == Counter() and all(float(n) < 10 for n in ja - en), (en - ja, ja - en)
    assert en["5,000"] and en["253"] and en["12"]


def test_readme_names_every_preset_and_no_other():
    there = {path.stem for path in (ROOT / "hpt_nb" / "presets").glob("*.toml")}
    for name in ("README.md", "README.ja.md"):
        sentence = re.search(r"(?:The presets are|プリセットは).+?`study-check`", read(name))
        assert set(re.findall(r"`([a-z][a-z0-9-]+)`", sentence[0])) == there, name
