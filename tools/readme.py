"""Makes README.md from nbs/index.ipynb, without Quarto, and first what README.md, README.ja.md and the book's first page show of the committed results: `python tools/readme.py [--check]`.

Between the marks in index.ipynb and README.ja.md stand a figure, a table and numbers that are computed from `results/` and from the preset `paper`; nobody types them.
"""
import hashlib
import inspect
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
SOURCE, README, JAPANESE, FIGURE = ROOT/"nbs/index.ipynb", ROOT/"README.md", ROOT/"README.ja.md", ROOT/"nbs/images/ours-less-pez.svg"
NOTE = "<!-- Made from nbs/index.ipynb by tools/readme.py; edit the notebook. -->\n"
RESULTS = ("sst2-cpu", "small-cpu", "offline")                 # of one comparison, the first counts: sst2-cpu scores prompts of small-cpu on all texts
SHOWN = "sst2-cpu", "sst2", "smollm2-135m"                     # the table: results of one method and budget, task, source
RATES = 40e12, 40e12                                           # operations a second, tuning and scoring, that the cost is stated for

# ---- what is computed ----

def frames()->dict:
    "results folder -> its scored prompts, of the tables that are finished."
    from hpt_nb.report import finished, results_frame, tunes_frame
    from hpt_nb.store import Store
    stores = {name: Store(ROOT/"results"/name) for name in RESULTS}
    return {name: finished(results_frame(s), tunes_frame(s), s.path)[0] for name, s in stores.items()}

def comparisons(frames):
    "Ours less Baseline on every target of every results folder."
    import pandas as pd
    from hpt_nb.report import overview, unmoved
    def of(df):
        d, same = overview(df), unmoved(df)
        d["unmoved"] = [key in same for key in zip(d.task, d.source, d.variant)]
        tuned = df.dropna(subset=["method", "steps"])
        only = {task: f"{method}, {int(steps)} steps" for task, method, steps in zip(tuned.task, tuned.method, tuned.steps)}
        d["variant"] = d.variant.where(d.variant != "", d.task.map(only))      # results of one method and budget name neither; the budget may be a task's own
        return d.query("place != 'Original'")
    d = pd.concat([of(df) for df in frames.values()], ignore_index=True)
    return d.drop_duplicates(["task", "source", "variant", "counterpart", "place"])

def draw(d)->bytes:
    "The figure as SVG: the same bytes for the same numbers and the same libraries."
    import io
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "hpt_nb", "svg.fonttype": "path"})
    import matplotlib.pyplot as plt
    from hpt_nb.report import plot_overview
    fig, ax = plt.subplots(figsize=(8, 1 + .3*len(d)))
    plot_overview(d, ax)
    ax.set_xlim(-45, 45)   # two seeds give intervals that reach beyond; the numbers stand in the report
    out = io.BytesIO()
    fig.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    plt.close(fig)
    return out.getvalue().replace(b"</svg>", f"<!-- data {fingerprint(d)} -->\n</svg>".encode())

def fingerprint(d)->str:
    "Of the numbers that are drawn and of how they are drawn; other libraries may write other bytes."
    from hpt_nb.report import plot_overview
    said = d.round(6).to_json(orient="records") + inspect.getsource(draw) + inspect.getsource(plot_overview)
    return hashlib.sha256(said.encode()).hexdigest()[:16]

def cost()->dict:
    "What the preset `paper` takes at `RATES`: tuned prompts, scores, hours on one GPU, hours of its longest piece."
    from hpt_nb.experiments import load_preset, pieces
    rows = pieces(load_preset("paper"), {"sst2": None, "ag_news": None})
    hours = {k: sum(r["operations"] for r in rows if r["kind"] == k)/rate/3600 for k, rate in zip(("tune", "score"), RATES)}
    count = {k: sum(r["cells"] for r in rows if r["kind"] == k) for k in hours}
    return dict(tuned=count["tune"], scores=count["score"], hours=sum(hours.values()))

# ---- how it is said ----

def markdown_table(table)->str:
    rows = [list(table.columns), ["---"]*len(table.columns), *table.values.tolist()]
    return "\n".join("| " + " | ".join(map(str, r)) + " |" for r in rows)

_SAID = {
    "en": ("![Ours less Baseline (PEZ) on each target, in points, with its 95 % interval over seeds]({figure})\n\nOurs less the paper's Baseline on the target model, in points, for every comparison in `results/`; bars are 95 % intervals over seeds (those of two seeds go on beyond the edge), filled dots are those where neither the interval over seeds nor that over texts spans zero. "
           "Of {n} comparisons Ours is above in {above}, below in {below} and level in {level}; the mean difference is {mean:+.1f} points, and {settled} are settled by both intervals.{still}\n\n{table}\n\nAccuracy in percent on {texts} SST-2 texts, mean ± standard deviation over {seeds} seeds: {variant} tuned on {source} (Original), then carried as text to the other model, "
           "which is the counterpart too. {steps} steps are far fewer than the paper's 5,000.",
           "A full reproduction, `hpt run paper`, tunes {tuned} prompts and takes {scores:,} scores. It tunes in float32, as the released pipeline does. At {a:.0f} TFLOP/s reached in tuning and {b:.0f} in scoring, about an H100's in this engine by estimate, not by measurement, that is **{hours:.0f} GPU-hours**; `hpt run paper --dry-run --rates {a:.0f},{b:.0f}` says it piece by piece, and without `--rates` for the machine that it runs on. Before anything is tuned it holds the accuracy without a prompt against the paper's counts, and stops where its input format does not give them."),
    "ja": ("![各ターゲットでの Ours と Baseline (PEZ) の差（ポイント）とシードについての 95 % 区間]({figure})\n\n`results/` にあるすべての比較について、ターゲットモデルでの Ours と論文の Baseline の差（ポイント）。棒はシードについての 95 % 区間（シード二つのものは枠の外まで続く）、塗りつぶした点はシードの区間もテキストの区間も 0 を含まないもの。"
           "{n} 件のうち Ours が上回るのは {above} 件、下回るのは {below} 件、同点は {level} 件で、差の平均は {mean:+.1f} ポイント、両方の区間で決着がつくのは {settled} 件である。{still}\n\n{table}\n\nSST-2 の {texts} 文での正解率（%）、シード {seeds} 個の平均 ± 標準偏差。{variant} で {source} に対して最適化し（Original）、テキストとして他方のモデルへ移した。"
           "そのモデルは counterpart でもある。{steps} ステップは論文の 5,000 よりはるかに少ない。",
           "完全な再現 `hpt run paper` は {tuned} 個のプロンプトを最適化し、{scores:,} 個の正解率を測る。最適化は公開パイプラインと同じく float32 で行う。最適化で {a:.0f} TFLOP/s、評価で {b:.0f} TFLOP/s（この実装での H100 の見積もりで、実測ではない）とすると **{hours:.0f} GPU 時間**である。`hpt run paper --dry-run --rates {a:.0f},{b:.0f}` が内訳を示し、`--rates` なしでは手元の機械での時間を示す。最適化の前に、プロンプトなしの正解数を論文の値と比べ、入力形式がそれを与えなければそこで止まる。")}

_STILL = {"en": " Of the level ones {n} compare prompts of which none has left the label words that it began with: [31_small](31_small.ipynb) counts them.", "ja": "同点のうち {n} 件では、どのプロンプトも出発点のラベル語から動いていない（数は [31_small](nbs/31_small.ipynb)）。"}

def still(d, language:str)->str:
    "How many of the comparisons that came out level say nothing, since nothing moved."
    return _STILL[language].format(n=n) if (n := int(d[d.points.round(9) == 0].unmoved.sum())) else ""

def said(language:str, figure:str)->dict:
    "mark -> the text that stands there."
    from hpt_nb.report import _undecided, accuracy_table, signs, variants
    dfs = frames()
    d, (folder, task, source) = comparisons(dfs), SHOWN
    ((_, part),), c = variants(dfs[folder], task, source), cost()
    results, paper = _SAID[language]
    above, below, level = signs(d.points)
    return {"results": results.format(figure=figure, above=above, below=below, level=level, still=still(d, language), n=len(d), mean=d.points.mean(), settled=sum(not _undecided(r) for r in d.itertuples()), table=markdown_table(accuracy_table(part, task, source)),
                                      texts=part.n.iloc[0], seeds=part.seed.nunique(), variant=part.method.dropna().iloc[0].upper(), source=source, steps=int(part.steps.dropna().iloc[0])),
            "cost": paper.format(a=RATES[0]/1e12, b=RATES[1]/1e12, **c)}

def filled(text:str, language:str, figure:str)->str:
    "A text with what stands between its marks computed anew."
    for mark, new in said(language, figure).items():
        text, n = re.subn(rf"(<!-- {mark}: made by tools/readme.py -->\n).*?(\n<!-- /{mark} -->)", lambda m: m[1] + new + m[2], text, flags=re.S)
        if n != 1: sys.exit(f"{n} places marked {mark!r} in the {language} text; need one")
    return text

# ---- the README ----

def shown(cell)->bool:
    "Does a reader see this cell? Hidden cells and those that hold directives alone are left out."
    return not re.search(r"^#\|\s*hide\b", cell.source, re.M) and bool(bare(cell.source))

def bare(source:str)->str:
    "A cell's source without nbdev's directives (`#| ...`)."
    return re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip("\n")

def readme(nb)->str:
    "README.md as it should be."
    nb.cells = [cell for cell in nb.cells if cell.cell_type != "code" or shown(cell)]
    for cell in nb.cells:
        if cell.cell_type == "code": cell.source = bare(cell.source)
    nb.metadata["language_info"] = {"name": "python"}   # what the fences are marked with
    body, _ = MarkdownExporter().from_notebook_node(nb)
    body = re.sub(r"\]\((\w+\.ipynb|images/[\w.-]+)\)", r"](nbs/\1)", body)   # they are neighbours of index.ipynb, not of README.md
    body = re.sub(r"<!-- /?(results|cost)[^>]*-->\n?", "", body)
    return NOTE + re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"

def marked(nb):
    "The cells of index.ipynb whose text is computed in part, as one text with a separator."
    return [c for c in nb.cells if c.cell_type == "markdown" and "made by tools/readme.py" in c.source]

_CUT = "\n\x00\n"

def main(check:bool):
    nb = nbformat.read(SOURCE, as_version=4)
    cells, d = marked(nb), comparisons(frames())
    new = filled(_CUT.join(c.source for c in cells), "en", f"images/{FIGURE.name}").split(_CUT)
    japanese = filled(JAPANESE.read_text(encoding="utf-8"), "ja", f"nbs/images/{FIGURE.name}")
    if check:
        if [c.source for c in cells] != new or JAPANESE.read_text(encoding="utf-8") != japanese: sys.exit("what the README says of the results is not what results/ gives; run: make readme")
        if not FIGURE.exists() or f"<!-- data {fingerprint(d)} -->" not in FIGURE.read_text(encoding="utf-8"): sys.exit(f"{FIGURE.name} is not drawn from results/ as it is now; run: make readme")
        if README.read_text(encoding="utf-8") != readme(nb): sys.exit("README.md is not what nbs/index.ipynb gives; run: make readme")
        return
    if [c.source for c in cells] != new:
        for c, text in zip(cells, new): c.source = text
        nbformat.write(nb, SOURCE)
    FIGURE.parent.mkdir(exist_ok=True)
    if not FIGURE.exists() or f"<!-- data {fingerprint(d)} -->" not in FIGURE.read_text(encoding="utf-8"): FIGURE.write_bytes(draw(d))
    JAPANESE.write_text(japanese, encoding="utf-8")
    README.write_text(readme(nb), encoding="utf-8")

if __name__ == "__main__": main("--check" in sys.argv[1:])
