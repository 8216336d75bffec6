"A folder with two tiny models, a task file with its data, and a preset of both: all that the command line needs."

import pandas as pd

from hpt_nb.store import Store
from tiny import tiny_lm

GOOD, BAD = "the film was good and great", "the plot was bad and boring"
TASK = """name = "mine"
suffix = ". It was"
labels = [" bad", " great"]
[data]
train = "train.csv"
validation = "dev.csv"
text = "text"
label = "label"
"""
PRESET = """name = "tiny"
tasks = ["mine.toml"]
seeds = [0, 1]
[[source]]
model = "./one"
counterparts = ["./two"]
targets = ["./two"]
[[source]]
model = "./two"
counterparts = ["./one"]
targets = ["./one"]
[vocab]
k = 8
s = 40
[tuning]
steps = 30
batch = 4
n_tokens = 4
eval_every = 10
holdout_n = 8
dtype = "float32"
"""


def make_place(d, preset=PRESET):
    "Write models, data, task and preset into the folder `d`."
    for name, arch, seed in (("one", "llama3", 0), ("two", "gemma3", 1)):
        lm = tiny_lm(arch, seed)
        lm.model.save_pretrained(d / name), lm.tokenizer.save_pretrained(d / name)
    for part, n in (("train", 40), ("dev", 24)):
        rows = [(f"{GOOD if i % 2 else BAD} {part} {i}", i % 2) for i in range(n)]
        pd.DataFrame(rows, columns=["text", "label"]).to_csv(d / f"{part}.csv", index=False)
    (d / "mine.toml").write_text(TASK)
    (d / "preset.toml").write_text(preset)
    return d


def plain_pages(monkeypatch):
    """Until it is undone, a page's figures are not laid out and written, and its intervals are of few draws.

    For tests of what leads to a page, or of its words; test_report.py has whole pages."""
    from base64 import b64encode
    from functools import partial
    from matplotlib.figure import Figure
    from hpt_nb import page, reading_tables

    def undrawn(draw, height, width, limits):
        draw(Figure().subplots())
        return b64encode(b"<svg></svg>").decode()

    monkeypatch.setattr(page, "_svg", undrawn)
    monkeypatch.setattr(reading_tables, "rank_correlation", partial(reading_tables.rank_correlation, repeats=100))


def short_searches(monkeypatch):
    "Until it is undone, a soft prompt's vectors are searched for in another model for 50 steps, not 2,000."
    from functools import partial
    from hpt_nb import scores

    monkeypatch.setattr(scores, "transfer_soft", partial(scores.transfer_soft, steps=50))


def results(folder):
    "All that a table is made of: every score's identity, count and predictions."
    return {
        c["hash"]: (c["result"]["correct"], c["result"]["n"], c["result"]["predictions"])
        for c in Store(folder).cells("eval")
    }
