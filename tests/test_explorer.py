"""The explorer's page: complete, escaped, small, without requests; and alive in a browser, where there is one."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from urllib.parse import quote

import pytest
import torch

from hpt_nb.explorer import nearest, prompt_data, token_data, write_explorer
from hpt_nb.store import InputError, Store
from hpt_nb.vocab import Vocab

EVIL = "</script><img src=x onerror=document.title='owned'>"
TOKENS = [" film", " good", EVIL, "\u2028", "<!--", " caf\u00e9", "&amp;", "\n"]
NEAR = dict(A=[[1, 2], [0, 3], [5, 6]], B=[[1, 4], [2, 0], [5, 7]])


def a_store(folder, tokens=TOKENS, prompts=3):
    store, c = Store(folder), len(tokens)
    v = Vocab(tokens, torch.stack([torch.arange(c), torch.arange(c) + 9]), ["A", "B"], J=torch.linspace(1, 0, c))
    v.save(store.file("v.parquet"))
    store.put("vocab", dict(models=["A", "B"]), dict(file="v.parquet", c=c), {})
    for seed in range(prompts):
        cfg = dict(
            task="toy" if seed else "other", source="A", counterpart="B", row="Ours", seed=seed, method="pez", steps=8
        )
        store.put("tune", cfg, dict(tokens=[tokens[seed], EVIL, "{unknown}"]), {})
        for target, correct in (("A", 3), ("B", seed)):
            store.put("eval", dict(cfg, target=target, mode="text"), dict(correct=correct, n=4), {})
    return store


def data_of(path):
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.S)[1])


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_nearest_is_the_slow_search(chunk):
    emb = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))

    def slow(u):
        return sorted(
            (v for v in range(50) if v != u), key=lambda v: -float(torch.cosine_similarity(emb[u], emb[v], dim=0))
        )[:4]

    assert nearest(emb, n=20, k=4, chunk=chunk) == [slow(u) for u in range(20)]
    assert nearest(emb[torch.randperm(50)] * 3, n=99, k=1, chunk=chunk) and len(nearest(emb, n=99, k=1)) == 50


def test_prompts_of_other_methods_and_budgets_keep_their_own_scores(tmp_path):
    store = a_store(tmp_path / "s", prompts=1)
    cfg = dict(task="other", source="A", counterpart="B", row="Ours", seed=0)
    for i, (method, steps) in enumerate((("pez", 16), ("gcg", 8))):
        store.put("tune", dict(cfg, method=method, steps=steps), dict(tokens=[TOKENS[0]]), {})
        store.put("eval", dict(cfg, method=method, steps=steps, target="B", mode="text"), dict(correct=i + 1, n=8), {})
    got = {(p["method"], p["steps"]): p["scores"].get("B, text") for p in prompt_data(store)}
    assert got == {("pez", 8): 0.0, ("pez", 16): 0.125, ("gcg", 8): 0.25}


def test_page_holds_what_the_store_holds(tmp_path):
    store = a_store(tmp_path / "s")
    data = data_of(write_explorer(store, tmp_path / "e.html", NEAR))
    assert data["tokens"] == TOKENS and data["neighbors"] == NEAR and data["prompts"] == prompt_data(store)
    assert data["J"] == token_data(store)["J"] == pytest.approx(torch.linspace(1, 0, 8).tolist(), abs=1e-4)
    assert data["prompts"][1]["scores"] == {"A, text": 0.75, "B, text": 0.25} and data["prompts"][0]["task"] == "other"
    assert data["shown"] == {"\n": "\\n", "\u2028": "\\u2028"}


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.seen = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))


def test_nothing_in_a_token_becomes_markup_and_nothing_is_fetched(tmp_path):
    text = write_explorer(a_store(tmp_path / "s"), tmp_path / "e.html", NEAR).read_text(encoding="utf-8")
    tags = Tags(text).seen
    assert {t for t, _ in tags} & {"img", "link", "iframe", "base", "object"} == set() and sum(
        t == "script" for t, _ in tags
    ) == 2
    assert not [a for _, a in tags if {"src", "href", "onerror"} & set(a)]
    assert "default-src 'none'" in next(a["content"] for t, a in tags if "http-equiv" in a)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|fetch\(|XMLHttp", text)


def test_page_of_a_full_vocabulary_is_under_5_mb(tmp_path):
    n = 46_000
    store, near = (
        a_store(tmp_path / "s", [f" token{i}" for i in range(n)]),
        [[(37 * i + j) % n for j in range(10)] for i in range(3000)],
    )
    assert write_explorer(store, tmp_path / "e.html", dict(A=near, B=near)).stat().st_size < 5 * 2**20


def test_faults_are_named(tmp_path):
    store = a_store(tmp_path / "s")
    for bad in (dict(C=[[0]]), dict(A=[[8]]), dict(A=[[-1]]), dict(A=[[0]] * 9)):
        with pytest.raises(InputError):
            write_explorer(store, tmp_path / "e.html", bad)
    with pytest.raises(InputError, match="none"):
        write_explorer(tmp_path / "empty", tmp_path / "e.html")
    store.file("v.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError):
        write_explorer(store, tmp_path / "e.html")
    assert not (tmp_path / "e.html").exists()


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: the page is not opened in a browser")
@pytest.mark.parametrize("token", [" film", EVIL, "\n"])
def test_page_works_in_a_browser(tmp_path, token):
    page = write_explorer(a_store(tmp_path / "s"), tmp_path / "e.html", NEAR)
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            f"--user-data-dir={tmp_path / 'u'}",
            "--virtual-time-budget=5000",
            "--dump-dom",
            page.as_uri() + "#t=" + quote(token, safe=""),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    body, at = done.stdout, TOKENS.index(token)
    section = html.unescape(re.sub(r"<[^>]*>", "\n", re.search(r'<section id="token".*?</section>', body, re.S)[0]))
    assert f"rank {at + 1} of 8" in section and "<img" not in body and "<title>Tokens and prompts</title>" in body
    if token == " film":
        assert "\u25cf \u2423good" in section and "1 of 2" in section and "&amp;" not in section
    if token == EVIL:
        assert EVIL in section and "3 use" in body
    if token == "\n":
        assert "most stable tokens only" in section and "\\n" in section
    probe = tmp_path / "probe.html"  # a phone's window
    probe.write_text(
        f"""<iframe id="f" src="e.html#t={quote(token, safe="")}" style="border:0;width:390px;height:800px"></iframe>
        <pre id="out"></pre>
        <script>const f = document.getElementById("f"), out = document.getElementById("out");
        const width = () => f.contentDocument.documentElement.scrollWidth + " in " + f.contentWindow.innerWidth;
        f.onload = () => out.textContent = width()</script>""",
        encoding="utf-8",
    )
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--allow-file-access-from-files",
            f"--user-data-dir={tmp_path / 'u'}",
            "--virtual-time-budget=5000",
            "--dump-dom",
            probe.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    wide, window = map(int, re.search(r'<pre id="out">(\d+) in (\d+)', done.stdout).groups())
    assert wide <= window == 390
    assert len(re.findall(r"<tr>", re.search(r'<tbody id="prompts">.*?</tbody>', body, re.S)[0])) == 3


def test_the_same_tokens_give_the_same_page():
    "Whatever order a set of strings happens to have in this process."
    from hpt_nb.explorer import explorer_html

    tokens = [f"{chr(i)}x" for i in range(1, 20)]
    page = explorer_html(dict(models=["A", "B"], tokens=tokens, J=None, neighbors={}), [])
    shown = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])["shown"]
    assert list(shown) == sorted(tokens)


def test_page_and_explorer_link_to_each_other(tmp_path):
    store = a_store(tmp_path / "s")
    (tmp_path / "index.html").write_text("the run's page")
    page = write_explorer(store, tmp_path / "explorer.html").read_text(encoding="utf-8")
    assert '<a href="index.html">' in page
    assert "<a href=" not in write_explorer(store, tmp_path / "other" / "explorer.html").read_text(encoding="utf-8")
    from hpt_nb.page import page_html

    assert '<a href="explorer.html">' in page_html("t", "", [], "explorer.html")
    assert "<a href=" not in page_html("t", "", [])


def test_effects_of_a_folder_without_any_are_refused(tmp_path):
    with pytest.raises(InputError, match="no effects of tokens"):
        write_explorer(a_store(tmp_path / "s"), tmp_path / "e.html", effects=tmp_path / "s")
    assert not (tmp_path / "e.html").exists()
