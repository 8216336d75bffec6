"""Makes README.md from nbs/index.ipynb, without Quarto: `python tools/readme.py [--check]`."""
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
SOURCE, README = ROOT/"nbs/index.ipynb", ROOT/"README.md"
NOTE = "<!-- Made from nbs/index.ipynb by tools/readme.py; edit the notebook. -->\n"

def shown(cell)->bool:
    "Does a reader see this cell? Hidden cells and those that hold directives alone are left out."
    return not re.search(r"^#\|\s*hide\b", cell.source, re.M) and bool(bare(cell.source))

def bare(source:str)->str:
    "A cell's source without nbdev's directives (`#| ...`)."
    return re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip("\n")

def readme()->str:
    "README.md as it should be."
    nb = nbformat.read(SOURCE, as_version=4)
    nb.cells = [cell for cell in nb.cells if cell.cell_type != "code" or shown(cell)]
    for cell in nb.cells:
        if cell.cell_type == "code": cell.source = bare(cell.source)
    nb.metadata["language_info"] = {"name": "python"}   # what the fences are marked with
    body, _ = MarkdownExporter().from_notebook_node(nb)
    body = re.sub(r"\]\((\w+\.ipynb)\)", r"](nbs/\1)", body)   # the notebooks are neighbours of index.ipynb, not of README.md
    return NOTE + re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"

if __name__ == "__main__":
    if "--check" not in sys.argv[1:]: README.write_text(readme(), encoding="utf-8")
    elif not README.exists() or README.read_text(encoding="utf-8") != readme():
        sys.exit("README.md is not what nbs/index.ipynb gives; run: make readme")
