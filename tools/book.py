"""Builds the book: one web site from the notebooks, without network and without Quarto: `python tools/book.py [OUT]
[--as-stored]` (default: _docs).

Sphinx with MyST-NB reads the notebooks, Furo dresses the pages, latex2mathml sets the equations as MathML, which
browsers draw themselves. The chapters of the method are run first, so that the book shows this machine's; the
findings are shown as they stand. With `--as-stored` nothing is run, and every chapter shows what it keeps. This file
is also the Sphinx extension that links names to where they are defined.
"""

import ast
import os
import re
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from functools import lru_cache
from html import escape
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[1]
NBS = ROOT / "nbs"
CHAPTERS = sorted(NBS.glob("[0-9][0-9]*_*.ipynb"))  # 05a stands between 05 and 06
FINDINGS = [p for p in CHAPTERS if p.name.startswith(("29_", "3"))]

# ---- what a notebook defines and imports ----


def directives(source: str) -> list[str]:
    "nbdev's directives of a cell."
    return re.findall(r"^#\|\s*(.+?)\s*$", source, re.M)


def bare(source: str) -> str:
    "A cell's source without its directives."
    return re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip("\n")


def exported(source: str) -> bool:
    return any(d.split()[0] in ("export", "exports") for d in directives(source))


def parsed(source: str):
    "Top-level statements of a cell; none if it is not plain Python."
    try:
        return ast.parse(bare(source)).body
    except SyntaxError:
        return []


def names_of(node) -> list[str]:
    "Public names that a statement binds."
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        names = [node.name]
    elif isinstance(node, ast.Assign):
        names = [t.id for t in node.targets if isinstance(t, ast.Name)]
    else:
        names = []
    return [n for n in names if not n.startswith("_")]


class Index:
    "Where each public name is defined, and what each chapter means by a name."

    def __init__(self, paths):
        self.page, self.doc, self.seen = (
            {},
            {},
            {},
        )  # (page, name) -> True; (page, name) -> docstring; page -> {name: page of its definition}
        modules = {}
        books = {p.stem: nbformat.read(p, as_version=4) for p in paths}
        for page, nb in books.items():
            self.seen[page] = {}
            for cell in (c for c in nb.cells if c.cell_type == "code"):
                for d in directives(cell.source):
                    if d.startswith("default_exp "):
                        modules[d.split()[1]] = page
                if not exported(cell.source):
                    continue
                for node in parsed(cell.source):
                    for name in names_of(node):
                        self.page.setdefault(name, []).append(page)
                        self.seen[page][name] = page
                        self.doc[page, name] = (
                            (ast.get_docstring(node) or "").split("\n")[0] if not isinstance(node, ast.Assign) else ""
                        )
        self.modules = modules
        for page, nb in books.items():
            for cell in (c for c in nb.cells if c.cell_type == "code"):
                for node in ast.walk(ast.Module(parsed(cell.source), [])):
                    if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("hpt_nb."):
                        continue
                    home = modules.get(node.module.split(".")[1])
                    for a in node.names:
                        if home and a.name in self.seen[home]:
                            # a front room offers what another one defines
                            self.seen[page].setdefault(a.asname or a.name, self.seen[home][a.name])

    def find(self, page: str, name: str):
        """Page that defines what `page` calls `name`: its own or imported, else the only one that has it. None if
        unknown."""
        name = name.removesuffix("()")
        if name.startswith("hpt_nb."):
            _, module, *rest = name.split(".")
            return (self.modules.get(module), rest[0] if rest else None)
        home = self.seen.get(page, {}).get(name) or (self.page[name][0] if len(self.page.get(name, ())) == 1 else None)
        return (home, name)


@lru_cache
def the_index() -> Index:
    return Index(CHAPTERS)


# ---- notebooks as pages ----


def config():
    "settings.ini."
    cfg = ConfigParser(delimiters=["="], interpolation=None)
    cfg.read(ROOT / "settings.ini", encoding="utf-8")
    return cfg["DEFAULT"]


def run_chapter(path):
    """A notebook with what its cells show. A cell that the tests leave out (minutes, a GPU, a hub) is left out here
    too: the next one reads what it stored."""
    from nbclient import NotebookClient

    nb, left_out = nbformat.read(path, as_version=4), {*config()["tst_flags"].split(), "eval:"}
    part = nbformat.NotebookNode(
        nb,
        cells=[
            c
            for c in nb.cells
            if c.cell_type != "code" or not any(d.split()[0] in left_out for d in directives(c.source))
        ],
    )
    NotebookClient(part, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(NBS)}}).execute()
    for cell in part.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                o
                for o in cell.outputs
                if o.get("name") != "stderr" and not any("widget" in kind for kind in o.get("data", {}))
            ]  # progress bars and warnings
    nb.metadata.pop("widgets", None)  # a page with widgets would fetch their code from elsewhere
    return nb


def run_chapters(paths, workers=2) -> dict:
    "path -> its notebook, run; several at once, so each on one thread, as in the tests."
    from tqdm import tqdm

    os.environ["OMP_NUM_THREADS"] = "1"
    with ThreadPoolExecutor(workers) as pool:
        return dict(
            zip(
                paths, tqdm(pool.map(run_chapter, paths), total=len(paths), desc="running the chapters", unit="chapter")
            )
        )


def as_page(nb, stem: str):
    "A notebook as the book shows it: no hidden cells, no directives."
    cells = []
    for cell in nb.cells:
        if cell.cell_type == "code":
            said = [d.split()[0].rstrip(":") for d in directives(cell.source)]
            if "hide" in said or not bare(cell.source):
                continue
            tags = cell.metadata.setdefault("tags", [])
            if "echo" in said or "hide_input" in said:
                tags.append("remove-input")
            if "export" in said or "exports" in said:
                tags.append("exported")
            cell.source = bare(cell.source)
        cells.append(cell)
    nb.cells = cells
    nb.metadata["language_info"] = {"name": "python", "pygments_lexer": "python"}
    return nb


CONTENTS = """
```{{toctree}}
:hidden:
:caption: Findings

{findings}
```

```{{toctree}}
:hidden:
:caption: The method, chapter by chapter

{chapters}
```

```{{toctree}}
:hidden:
:caption: Look up

names
```
"""


def contents() -> str:
    "The book's table of contents: findings first."
    return CONTENTS.format(
        findings="\n".join(p.stem for p in FINDINGS), chapters="\n".join(p.stem for p in CHAPTERS if p not in FINDINGS)
    )


def names_page(index: Index) -> str:
    "Every public name, with the first line of its docstring and a link to its definition."
    plain = lambda text: re.sub(r"([|$])", r"\\\1", text)
    rows = [
        f'| <a class="definition" href="{page}.html#{anchor(name)}">'
        f'<code class="literal">{name}</code></a> | {plain(index.doc[page, name])} | [{page}]({page}.ipynb) |'
        for name, pages in sorted(index.page.items(), key=lambda kv: kv[0].lower())
        for page in pages
    ]
    return (
        "# Names\n\nEvery public name and the cell that defines it.\n\n| name | what it is | chapter |\n|---|---|---|\n"
        + "\n".join(rows)
        + "\n"
    )


def write_pages(folder: Path, index: Index, run: bool):
    "The book's source: the notebooks as pages, and the list of names."
    ran = run_chapters([p for p in CHAPTERS if p not in FINDINGS]) if run else {}
    for path in [*CHAPTERS, NBS / "index.ipynb"]:
        nb = as_page(ran.get(path) or nbformat.read(path, as_version=4), path.stem)
        if path.stem == "index":
            nb.cells.append(nbformat.v4.new_markdown_cell(contents()))
        nbformat.write(nb, folder / path.name)
    (folder / "names.md").write_text(names_page(index), encoding="utf-8")
    if (NBS / "images").is_dir():
        shutil.copytree(NBS / "images", folder / "images")
    (folder / "_static").mkdir()
    shutil.copy(NBS / "book.css", folder / "_static")


def anchor(name: str) -> str:
    "The id of a definition in its page."
    return f"def-{name}"


# ---- the Sphinx extension ----


def mark_definitions(app, doctree):
    """Each exported cell carries an id for every name that it defines; each figure without a text gets one; names in
    prose become links."""
    from docutils import nodes

    page, index = app.env.docname, the_index()
    for cell in doctree.findall(nodes.container):
        if cell.get("nb_element") != "cell_code" or "tag_exported" not in cell["classes"]:
            continue
        block = next(cell.findall(nodes.literal_block), None)
        if block is not None:
            cell["ids"] += [
                anchor(n) for node in parsed(block.astext()) for n in names_of(node) if anchor(n) not in cell["ids"]
            ]
    for image in doctree.findall(nodes.image):
        if not image.get("alt"):
            image["alt"] = describe(image)
    for literal in list(doctree.findall(nodes.literal)):
        if isinstance(literal.parent, nodes.reference) or not re.fullmatch(r"[\w.]+(\(\))?", literal.astext()):
            continue
        home, name = index.find(page, literal.astext())
        if home:
            literal.replace_self(
                nodes.reference(
                    "",
                    "",
                    literal.deepcopy(),
                    internal=True,
                    refuri=f"{home}.html" + (f"#{anchor(name)}" if name else ""),
                    classes=["definition"],
                )
            )


def describe(image) -> str:
    "A text for a figure: the heading that it stands under and what is said before it."
    from docutils import nodes

    up, before = image, ""
    while up.parent is not None and not isinstance(up.parent, nodes.section):
        up = up.parent
    section = up.parent
    if section is None:
        return "Figure"
    title = next(iter(section.findall(nodes.title)), None)
    said = [n for n in section.children[: section.index(up)] if isinstance(n, (nodes.paragraph, nodes.block_quote))]
    if said:
        before = " ".join(said[-1].astext().split())
    return f"Figure: {title.astext() if title is not None else ''}. {before}".strip()[:400]


# a name in code, not an attribute; the second group is there where it is called
_CALL = re.compile(r'(?<!<span class="o">\.</span>)<span class="n">(\w+)</span>(?=(<span class="p">\(|)?)')
_IMPORT = re.compile(r'<span class="kn">from</span>.*<span class="nn">hpt_nb\.')


def link_code(app, pagename, templatename, context, doctree):
    "In code, a name that the chapter defines or imports becomes a link to its definition."
    index = the_index()
    if pagename not in index.seen or not context.get("body"):
        return

    def link(m, everywhere):
        home = index.seen[pagename].get(m[1])
        if not home or not (everywhere or m[2] or m[1][0].isupper()):
            return m[0]  # a lower-case name that is not called may be a variable
        return f'<a class="definition" href="{"" if home == pagename else home + ".html"}#{anchor(m[1])}">{m[0]}</a>'

    def line(text):
        return _CALL.sub(lambda m: link(m, bool(_IMPORT.search(text))), text)

    context["body"] = re.sub(
        r'<div class="highlight">.*?</div>',
        lambda block: "\n".join(map(line, block[0].split("\n"))),
        context["body"],
        flags=re.S,
    )


_SCRIPT = dict(
    zip("BEFHILMR", "\u212c\u2130\u2131\u210b\u2110\u2112\u2133\u211b")
)  # these stand apart from the other script letters


def script(letter: str) -> str:
    "A script capital as a character: browsers do not draw MathML's mathvariant."
    return _SCRIPT.get(letter) or chr(0x1D49C + ord(letter) - ord("A"))


def mathml(display: str):
    "A Sphinx visitor that writes an equation as MathML."

    def visit(self, node):
        from docutils import nodes
        from latex2mathml.converter import convert

        tex, tag = node.astext(), ""
        if m := re.search(r"\\tag\{([^}]*)\}", tex):
            tex, tag = tex.replace(m[0], ""), f'<span class="eqno">({escape(m[1])})</span>'
        tex = re.sub(r"\\mathcal\s*(?:\{([A-Z])\}|([A-Z]))", lambda m: script(m[1] or m[2]) + " ", tex)
        body = convert(tex, display=display)
        self.body.append(body if display == "inline" else f'<div class="math equation">{body}{tag}</div>\n')
        raise nodes.SkipNode

    return visit, None


def setup(app):
    "Called by Sphinx."
    app.add_html_math_renderer("mathml", inline_renderers=mathml("inline"), block_renderers=mathml("block"))
    app.connect("doctree-read", mark_definitions)
    app.connect("html-page-context", link_code)
    return {"parallel_read_safe": False}


# ---- building ----


def settings() -> dict:
    "Sphinx' configuration."
    cfg = config()
    return dict(
        project=cfg["title"],
        author=cfg["author"],
        copyright=cfg["copyright"],
        version=cfg["version"],
        release=cfg["version"],
        language="en",
        extensions=["myst_nb", "book"],
        html_theme="furo",
        html_title=cfg["title"],
        html_short_title=cfg["title"],
        html_static_path=["_static"],
        html_css_files=["book.css"],
        html_math_renderer="mathml",
        html_use_index=False,
        html_copy_source=False,
        html_show_sourcelink=False,
        html_show_sphinx=False,
        myst_enable_extensions=["dollarmath"],
        myst_dmath_double_inline=True,
        myst_dmath_allow_labels=False,
        myst_update_mathjax=False,
        myst_heading_anchors=3,
        nb_execution_mode="off",
        nb_render_text_lexer="none",
        html_theme_options=dict(
            source_repository=cfg["git_url"] + "/", source_branch=cfg["branch"], source_directory="nbs/"
        ),
    )


def build(out, run=True) -> str:
    "Build the book into `out`, which is emptied first; what Sphinx warned of ('' if nothing)."
    from io import StringIO
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    out, warned = Path(out), StringIO()
    if out.exists():
        shutil.rmtree(out)
    sys.path.insert(0, str(Path(__file__).parent))
    with tempfile.TemporaryDirectory() as tmp, patch_docutils(), docutils_namespace():
        write_pages(Path(tmp), the_index(), run)
        app = Sphinx(
            tmp, None, str(out), f"{tmp}/.doctrees", "html", confoverrides=settings(), status=None, warning=warned
        )
        app.build()
    for junk in (".buildinfo", "objects.inv", ".nojekyll"):
        (out / junk).unlink(missing_ok=True)
    shutil.rmtree(out / "_sources", ignore_errors=True)
    return warned.getvalue()


if __name__ == "__main__":
    args = [a for a in sys.argv[1:] if a != "--as-stored"]
    out = Path(args[0] if args else ROOT / "_docs")
    said = build(out, run="--as-stored" not in sys.argv)
    print(said, file=sys.stderr, end="")
    print(f"The book is at {out / 'index.html'}")
    sys.exit(bool(said))
