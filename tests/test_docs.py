"""The book is whole: it is built without network, nothing in it is broken, nothing is fetched from elsewhere, and it
fits a phone."""

import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted(p.stem for p in (ROOT / "nbs").glob("[0-9][0-9]*_*.ipynb"))
MISSING = [m for m in ("sphinx", "myst_nb", "furo", "latex2mathml") if importlib.util.find_spec(m) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING),
    reason=f"the book's tools are not installed ({', '.join(MISSING)}): make docs, or pip install -e '.[docs]'",
)


class Page(HTMLParser):
    "A page's ids, links and what a browser would fetch for it."

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.fetched, self.images, self.tags, self.headings, self.lang = (
            [],
            [],
            [],
            [],
            [],
            [],
            None,
        )
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        at = dict(attrs)
        self.tags.append(tag)
        if "id" in at:
            self.ids.append(at["id"])
        if tag == "html":
            self.lang = at.get("lang")
        if re.fullmatch(r"h\d", tag):
            self.headings.append(tag)
        if tag == "a" and at.get("href"):
            self.links.append(at["href"])
        if tag == "img":
            self.images.append(at)
        if tag == "link" and not {"canonical", "next", "prev", "index", "search"} & set(at.get("rel", "").split()):
            self.fetched.append(at["href"])
        if tag in ("img", "script", "iframe", "source", "video", "audio", "embed") and at.get("src"):
            self.fetched.append(at["src"])
        if tag == "object" and at.get("data"):
            self.fetched.append(at["data"])
        self.fetched += [part.split()[0] for part in at.get("srcset", "").split(",") if part.strip()]

    handle_startendtag = handle_starttag


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The built book: the one in HPT_BOOK, or one whose chapters were not run. Proxies that lead nowhere make any
    download fail."""
    if os.environ.get("HPT_BOOK"):
        return Path(os.environ["HPT_BOOK"]).resolve()
    out = tmp_path_factory.mktemp("book") / "site"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "tools/book.py"), str(out), "--as-stored"],
        capture_output=True,
        text=True,
        env={**os.environ, **{f"{s}_proxy": "http://127.0.0.1:9" for s in ("http", "https", "all")}},
    )
    assert done.returncode == 0, done.stdout + done.stderr  # a warning is a failure
    return out


@pytest.fixture(scope="session")
def pages(site):
    return {p.name: Page(p) for p in sorted(site.glob("*.html"))}


def test_every_notebook_is_a_page_and_findings_come_first(site, pages):
    assert {f"{c}.html" for c in CHAPTERS} | {"index.html", "names.html", "search.html"} <= set(pages)
    tree = re.search(r'<div class="sidebar-tree">(.*?)</div>', (site / "index.html").read_text(encoding="utf-8"), re.S)[
        1
    ]
    order = [h.removesuffix(".html") for h in re.findall(r'href="([\w.]+\.html)"', tree)]
    findings = [c for c in CHAPTERS if c.startswith(("29_", "3"))]
    assert order == findings + [c for c in CHAPTERS if c not in findings] + ["names"]


def test_no_link_or_image_is_broken(site, pages):
    broken = []
    for name, page in pages.items():
        for href in page.links + page.fetched:
            url = urlsplit(href)
            if url.scheme or url.netloc:
                continue
            path = unquote(url.path) or name
            nowhere = url.fragment and path in pages and unquote(url.fragment) not in pages[path].ids
            if nowhere or not (site / path).exists():
                broken.append((name, href))
    assert broken == []


def test_nothing_is_fetched_from_another_host(site, pages):
    assert [
        (n, f)
        for n, page in pages.items()
        for f in page.fetched
        if urlsplit(f).netloc or urlsplit(f).scheme not in ("", "data")
    ] == []
    for css in site.rglob("*.css"):
        text = css.read_text(encoding="utf-8")
        assert re.findall(r"url\(\s*['\"]?(?:https?:)?//[^)]*\)|@import\s+['\"]?(?:https?:)?//", text) == [], css


def test_every_image_says_what_it_shows(pages):
    assert sum(len(p.images) for p in pages.values()) >= 2
    assert [(n, i["src"]) for n, p in pages.items() for i in p.images if len(i.get("alt") or "") < 20] == []


def test_pages_are_well_formed(pages):
    for name, page in pages.items():
        assert page.lang == "en" and (page.headings.count("h1") == 1 or name == "search.html"), name
        twice = {i for i in page.ids if page.ids.count(i) > 1}
        assert not twice, (name, twice)


def test_equations_are_mathml(site, pages):
    assert sum(p.tags.count("math") for p in pages.values()) >= 30
    for name in pages:
        text = re.sub(r"<(pre|code|script)\b.*?</\1>", "", (site / name).read_text(encoding="utf-8"), flags=re.S)
        assert not re.search(r"\$\$|\\(?:frac|operatorname|mathcal)|<mtext>\\", text), name


def test_a_name_leads_to_its_definition(site, pages):
    text = (site / "05k_scoring.html").read_text(encoding="utf-8")
    assert 'id="def-evaluate"' in text and 'id="def-label_logprobs"' in text
    assert "05k_scoring.html#def-evaluate" in (site / "11_transfer.html").read_text(
        encoding="utf-8"
    )  # in code: evaluate is imported there
    assert "#def-transfer" in (site / "11_transfer.html").read_text(encoding="utf-8")  # in prose: `transfer`
    names = [h for h in pages["names.html"].links if "#def-" in h]
    assert len(names) > 100 and "05k_scoring.html#def-evaluate" in names


def test_directives_and_hidden_cells_are_not_shown(site):
    for page in site.glob("*.html"):
        plain = html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))
        assert not re.search(r"^#\| ?(export|hide|default_exp|echo|slow|hub)", plain, re.M), page.name
        assert "nbdev.nbdev_export()" not in plain, page.name


def test_search_knows_the_chapters(site):
    index = json.loads(
        re.search(r"Search\.setIndex\((.*)\)", (site / "searchindex.js").read_text(encoding="utf-8"), re.S)[1]
    )
    assert set(CHAPTERS) <= set(index["docnames"]) and "jaccard" in index["terms"]


# ---- in a browser ----

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """<!doctype html><meta charset="utf-8"><iframe id="f" style="border:0;width:%dpx;height:900px"></iframe>
<pre id="out">running</pre><script>
const pages = %s, found = [], frame = document.getElementById("f");
async function look(page) {
  await new Promise(done => { frame.onload = done; frame.src = page; });
  const doc = frame.contentDocument, win = frame.contentWindow;
  await new Promise(done => setTimeout(done, 50));
  const wide = [...doc.querySelectorAll("article *")].filter(e => {
    const r = e.getBoundingClientRect();
    if (!r.width || r.right <= win.innerWidth + 1) return false;
    for (let p = e.parentElement; p && p !== doc.body; p = p.parentElement)
      if (["auto", "scroll", "hidden"].includes(win.getComputedStyle(p).overflowX)) return false;
    return true;
  });
  const fetched = win.performance.getEntriesByType("resource").map(r => r.name);
  found.push({page, width: doc.documentElement.scrollWidth, window: win.innerWidth,
    wide: wide.slice(0, 3).map(e => e.outerHTML.slice(0, 120)),
    broken: [...doc.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src), errors: win.seen || [],
    fetched: fetched.filter(u => !u.startsWith("file:") && !u.startsWith("data:"))});
}
(async () => {
  for (const p of pages) await look(p);
  document.getElementById("out").textContent = JSON.stringify(found);
})();
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: pages are not looked at in a browser")
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit_the_window(site, pages, width, tmp_path):
    "In a browser: no page wider than the window, no script error, no image missing, nothing asked of another host."
    for name in pages:  # a copy that notes its own errors
        text = (site / name).read_text(encoding="utf-8")
        (site / f"probed-{name}").write_text(
            text.replace(
                "<head>",
                '<head><script>window.seen=[];addEventListener("error",e=>seen.push(String(e.message||e.target.src||e.target.href)),true)</script>',
                1,
            ),
            encoding="utf-8",
        )
    probe = site / "probe.html"
    try:
        probe.write_text(PROBE % (width, json.dumps([f"probed-{n}" for n in pages])), encoding="utf-8")
        done = subprocess.run(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--allow-file-access-from-files",
                f"--user-data-dir={tmp_path}",
                "--window-size=1400,1000",
                "--virtual-time-budget=120000",
                "--timeout=100000",
                "--dump-dom",
                probe.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=600,
        )
        said = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.S)
        assert said and said[1] != "running", done.stderr[-2000:]
        found = json.loads(html.unescape(said[1]))
    finally:
        for p in [probe, *site.glob("probed-*.html")]:
            p.unlink(missing_ok=True)
    assert [f["page"] for f in found] == [f"probed-{n}" for n in pages]
    assert [
        f for f in found if f["width"] > f["window"] or f["wide"] or f["broken"] or f["errors"] or f["fetched"]
    ] == []
    assert {f["window"] for f in found} == {width}
