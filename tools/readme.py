"""Makes README.md from nbs/index.ipynb, without Quarto, and first what README.md, README.ja.md and the book's first
page show of the study: `python tools/readme.py [--check]`.

Between the marks in index.ipynb and README.ja.md stand a figure, a table and numbers that are computed from the
study's stored verdicts and from the preset `paper`; nobody types them.
"""

import hashlib
import inspect
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
SOURCE, README, JAPANESE, FIGURE = (
    ROOT / "nbs/index.ipynb",
    ROOT / "README.md",
    ROOT / "README.ja.md",
    ROOT / "nbs/images/study.svg",
)
NOTE = "<!-- Made from nbs/index.ipynb by tools/readme.py; edit the notebook. -->\n"
TASK, SOURCES, PLACES = (
    "sst2",
    ("smollm2-135m", "gemma-3-270m"),
    ("smollm2-135m", "gemma-3-270m", "qwen2.5-coder-0.5b"),
)  # of the table
SHORT = {"smollm2-135m": "SmolLM2", "gemma-3-270m": "Gemma", "qwen2.5-coder-0.5b": "Qwen"}
RATES = 40e12, 40e12  # operations a second, tuning and scoring, that the cost is stated for

# ---- what is computed ----


def draw(table) -> bytes:
    "The figure as SVG: the same bytes for the same numbers and the same libraries."
    import io
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "hpt_nb", "svg.fonttype": "path"})
    from hpt_nb.verdicts import plot_verdicts

    fig = plot_verdicts(table).figure
    out = io.BytesIO()
    fig.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    return out.getvalue().replace(b"</svg>", f"<!-- data {fingerprint(table)} -->\n</svg>".encode())


def fingerprint(table) -> str:
    "Of the numbers that are drawn and of how they are drawn; other libraries may write other bytes."
    from hpt_nb.analysis import plot_forest
    from hpt_nb.verdicts import plot_verdicts

    said = table.round(6).to_json(orient="records") + "".join(
        map(inspect.getsource, (draw, plot_verdicts, plot_forest))
    )
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def row_table(means):
    "Accuracy, raw and calibrated, of the main rows on each model, from each source."
    import pandas as pd

    m = means[means.task == TASK].set_index(["source", "row", "target"])
    rows = ["Empty", *sorted({r for r in means.row if r.startswith("Manual ")}), "Start", "PEZ", "Ours"]

    def cell(source, row, place):
        one = m.loc[(source, row, place)] if (source, row, place) in m.index else None
        return "" if one is None else f"{one.raw:.1f} / {one.calibrated:.1f}"

    return pd.DataFrame(
        [
            {"tuned on": SHORT[s], "row": r, **{SHORT[p]: cell(s, r, p) for p in PLACES}}
            for s in SOURCES
            for r in rows
            if s == SOURCES[0] or r in ("Start", "PEZ", "Ours")
        ]
    )


def cost() -> dict:
    "What the preset `paper` takes at `RATES`: tuned prompts, scores, hours on one GPU, hours of its longest piece."
    from hpt_nb.experiments import load_preset, pieces

    rows = pieces(load_preset("paper"), {"sst2": None, "ag_news": None})
    hours = {
        k: sum(r["operations"] for r in rows if r["kind"] == k) / rate / 3600
        for k, rate in zip(("tune", "score"), RATES)
    }
    count = {k: sum(r["cells"] for r in rows if r["kind"] == k) for k in hours}
    return dict(tuned=count["tune"], scores=count["score"], hours=sum(hours.values()))


# ---- how it is said ----


def markdown_table(table) -> str:
    rows = [list(table.columns), ["---"] * len(table.columns), *table.values.tolist()]
    return "\n".join("| " + " | ".join(map(str, r)) + " |" for r in rows)


_SAID = {
    "en": (
        "The study tuned on two sources, SmolLM2-135M and Gemma-3-270M; a third model, Qwen2.5-Coder-0.5B, took no "
        "part. What tuning adds over no prompt, both calibrated, on SST-2:\n\n- on the source {skill}\n"
        "- on other models {elsewhere}\n\nBars in the figure above are 95 % intervals over seeds and texts at once; "
        "grey marks two points either way.{left} "
        "The chapter [35_study](35_study.ipynb) has every claim, row and setting.\n\n{table}\n\n"
        "SST-2, accuracy / calibrated accuracy in percent, on {texts} texts, mean over seeds; the models are "
        "the columns. *Manual* rows are hand-written; *Start* is the untuned prompt that PEZ and Ours begin with. "
        "{steps} steps of PEZ are far fewer than the paper's 5,000; [38_far](38_far.ipynb) goes that far with "
        "five seeds.",
        "A full reproduction, `hpt run paper`, tunes {tuned} prompts and takes {scores:,} scores. It tunes in "
        "float32, as the released pipeline does. At {a:.0f} TFLOP/s reached in tuning and {b:.0f} in scoring, "
        "about an H100's in this engine by estimate, not by measurement, that is **{hours:.0f} GPU-hours**; "
        "`hpt run paper --dry-run --rates {a:.0f},{b:.0f}` says it piece by piece, and without `--rates` for the "
        "machine that it runs on. Before anything is tuned it holds the accuracy without a prompt against the "
        "paper's counts, and stops where its input format does not give them.",
    ),
    "ja": (
        "ソースは SmolLM2-135M と Gemma-3-270M、三つめの Qwen2.5-Coder-0.5B は最適化に関わっていない。両方を較正し"
        "たとき、プロンプトなしに比べて最適化が加えるもの（SST-2）:\n\n- ソースで {skill}\n- 他のモデルで {elsewhere}"
        "\n\n上の図の棒はシードとテキストの両方についての 95 % 区間、灰色は上下 2 ポイント。{left}すべての主張・条件・"
        "設定は [35_study](nbs/35_study.ipynb) にある（判定は英語のまま示す）。\n\n{table}\n\n"
        "SST-2 の {texts} 文での正解率 / 較正した正解率（%）、シードの平均。列がモデル。Manual は人が書いたプロ"
        "ンプト、Start は PEZ と Ours の出発点（最適化前）。{steps} ステップは論文の 5,000 よりはるかに少ない。"
        "5,000 ステップまでの結果は [38_far](nbs/38_far.ipynb) にある（シード五つ）。",
        "完全な再現 `hpt run paper` は {tuned} 個のプロンプトを最適化し、{scores:,} 個の正解率を測る。最適化は公"
        "開パイプラインと同じく float32 で行う。最適化で {a:.0f} TFLOP/s、評価で {b:.0f} TFLOP/s（この実装での "
        "H100 の見積もりで、実測ではない）とすると **{hours:.0f} GPU 時間**である。`hpt run paper --dry-run "
        "--rates {a:.0f},{b:.0f}` が内訳を示し、`--rates` なしでは手元の機械での時間を示す。最適化の前に、プロン"
        "プトなしの正解数を論文の値と比べ、入力形式がそれを与えなければそこで止まる。",
    ),
}

_VERDICT = {
    "en": (
        "*Ours* tunes with PEZ, a search by gradients, over tokens that two models agree on; the paper's *Baseline* "
        "over the whole vocabulary of the *source*, the model tuned on. Ours less the Baseline, with 95 % intervals "
        "over seeds and texts at once:\n\n"
        "- **SST-2, {seeds} seeds: on the source {source}. On other models {targets}.**\n"
        "- **AG News, {news_seeds} seeds: on the source {news}. On other models {news_targets}.** With both calibrated "
        "(without each model's liking for a label, its *bias*) that last gain is {news_calibrated}: most of it is "
        "bias, and it comes from one of the two sources.\n\n"
        "*{seen} could have been seen*: a true difference of {seen} points would be found in four of five such "
        "studies. "
        "Blue in the figure: the paper's claims; orange: this study's.\n\n"
        "![The study's claims, each with its difference in points and its 95 % interval]({figure})"
    ),
    "ja": (
        "*Ours* は二つのモデルで近傍が一致するトークンだけを、論文の *Baseline* は *ソース*（最適化に使うモデル）の"
        "全語彙を候補に、勾配による探索 PEZ でプロンプトを作る。Ours と Baseline の差（区間は 95 %、シードとテキスト"
        "の両方についてのもの）:\n\n"
        "- **SST-2、シード {seeds} 個: ソースで {source}、他のモデルで {targets}。**\n"
        "- **AG News、シード {news_seeds} 個: ソースで {news}、他のモデルで {news_targets}。** 両方を較正する（各モデ"
        "ルのラベルの好み、つまり偏りを除く）と、他のモデルでの差は {news_calibrated}。大半は偏りであり、二つのソースの"
        "うち一つだけから生じている。\n\n"
        "*{seen} could have been seen* は、真の差が {seen} ポイントなら同様の研究の五回に四回で見つかるという意味。"
        "図の青は論文の主張、橙はこの研究の主張。\n\n"
        "![研究の各主張について、差（ポイント）とその 95 % 区間]({figure})"
    ),
}
_LEFT = {
    "en": " {n} scores are still missing; a claim that needs them has no number yet.",
    "ja": "まだ {n} 件の評価が残っており、それを要する主張には数値がない。",
}


def study() -> tuple:
    "(claims, scores that are missing, means of all rows, texts, steps, seeds), as kept with the package."
    from hpt_nb.experiments import load_preset
    from hpt_nb.verdicts import stored_means, stored_verdicts

    preset = load_preset("study-main")
    return *stored_verdicts(), stored_means(), preset.n_for(TASK), preset.tuning_for(TASK).steps, len(preset.seeds)


def calibrated(claim: str, table):
    "A claim's pooled line under calibrated accuracy."
    return table[(table.claim == claim) & (table.measure == "calibrated") & (table.scope == "pooled")].iloc[0]


def said(language: str, figure: str) -> dict:
    "mark -> the text that stands there."
    from hpt_nb.experiments import load_preset
    from hpt_nb.verdicts import deciding, said as words

    table, left, means, texts, steps, seeds = study()
    of, c, (results, paper) = deciding(table).set_index("claim"), cost(), _SAID[language]
    news = calibrated("targets, AG News", table)
    if of.verdict["targets, AG News"] != "above" or not news.verdict.startswith("the same"):
        sys.exit("the README says that the gain on AG News is bias, and the stored verdicts do not; mend the text")
    gains = means[(means.task == "ag_news") & (means.role == "transfer")].pivot_table(
        "raw", ["source", "target"], "row"
    )
    by_source = (gains["Ours"] - gains["PEZ"]).groupby("source").agg(["min", "max"])
    if sorted(zip(by_source["min"] > 0, by_source["max"] > 0)) != [(False, False), (True, True)]:
        sys.exit("the README says that the gain on AG News comes from one of the two sources; mend the text")
    n = sum(k for _, _, k in left)
    ours = dict(source=words(of.loc["source"]), targets=words(of.loc["targets"]))
    ours |= dict(news=words(of.loc["source, AG News"]), news_targets=words(of.loc["targets, AG News"]))
    ours |= dict(
        news_calibrated=words(news),
        seen=f"{of.could_see['source']:.1f}",
        news_seeds=len(load_preset("study-agnews").seeds),
    )
    return {
        "verdict": _VERDICT[language].format(figure=figure, seeds=seeds, **ours),
        "results": results.format(
            skill=words(of.loc["skill"]),
            elsewhere=words(of.loc["skill elsewhere"]),
            left=_LEFT[language].format(n=n) if n else "",
            table=markdown_table(row_table(means)),
            texts=texts,
            steps=steps,
        ),
        "cost": paper.format(a=RATES[0] / 1e12, b=RATES[1] / 1e12, **c),
    }


def filled(text: str, language: str, figure: str) -> str:
    "A text with what stands between its marks computed anew."
    for mark, new in said(language, figure).items():
        text, n = re.subn(
            rf"(<!-- {mark}: made by tools/readme.py -->\n).*?(\n<!-- /{mark} -->)",
            lambda m, new=new: m[1] + new + m[2],
            text,
            flags=re.S,
        )
        if n != 1:
            sys.exit(f"{n} places marked {mark!r} in the {language} text; need one")
    return text


# ---- the README ----


def shown(cell) -> bool:
    "Does a reader see this cell? Hidden cells and those that hold directives alone are left out."
    return not re.search(r"^#\|\s*hide\b", cell.source, re.M) and bool(bare(cell.source))


def bare(source: str) -> str:
    "A cell's source without nbdev's directives (`#| ...`)."
    return re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip("\n")


def readme(nb) -> str:
    "README.md as it should be."
    nb.cells = [cell for cell in nb.cells if cell.cell_type != "code" or shown(cell)]
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.source = bare(cell.source)
    nb.metadata["language_info"] = {"name": "python"}  # what the fences are marked with
    body, _ = MarkdownExporter().from_notebook_node(nb)
    body = re.sub(
        r"\]\((\w+\.ipynb|images/[\w.-]+)\)", r"](nbs/\1)", body
    )  # they are neighbours of index.ipynb, not of README.md
    body = re.sub(r"<!-- /?(verdict|results|cost)[^>]*-->\n?", "", body)
    return NOTE + re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"


def marked(nb):
    "The cells of index.ipynb whose text is computed in part, as one text with a separator."
    return [c for c in nb.cells if c.cell_type == "markdown" and "made by tools/readme.py" in c.source]


_CUT = "\n\x00\n"


def main(check: bool):
    nb = nbformat.read(SOURCE, as_version=4)
    cells, d = marked(nb), study()[0]
    new = filled(_CUT.join(c.source for c in cells), "en", f"images/{FIGURE.name}").split(_CUT)
    japanese = filled(JAPANESE.read_text(encoding="utf-8"), "ja", f"nbs/images/{FIGURE.name}")
    if check:
        if [c.source for c in cells] != new or JAPANESE.read_text(encoding="utf-8") != japanese:
            sys.exit("what the README says of the study is not what its stored verdicts give; run: make readme")
        if not FIGURE.exists() or f"<!-- data {fingerprint(d)} -->" not in FIGURE.read_text(encoding="utf-8"):
            sys.exit(f"{FIGURE.name} is not drawn from the stored verdicts; run: make readme")
        if README.read_text(encoding="utf-8") != readme(nb):
            sys.exit("README.md is not what nbs/index.ipynb gives; run: make readme")
        return
    if [c.source for c in cells] != new:
        for c, text in zip(cells, new):
            c.source = text
        nbformat.write(nb, SOURCE)
    FIGURE.parent.mkdir(exist_ok=True)
    if not FIGURE.exists() or f"<!-- data {fingerprint(d)} -->" not in FIGURE.read_text(encoding="utf-8"):
        FIGURE.write_bytes(draw(d))
    JAPANESE.write_text(japanese, encoding="utf-8")
    README.write_text(readme(nb), encoding="utf-8")


if __name__ == "__main__":
    main("--check" in sys.argv[1:])
