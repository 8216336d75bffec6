"Tokens of every script in figures and strips: as text or as code points, never as an empty box."

import base64
import re
import warnings

import pandas as pd
import pytest

from hpt_nb.figures import plot_accuracy, plot_neighbors
from hpt_nb.glyphs import drawn_text
from hpt_nb.page import figure_html
from hpt_nb.strips import strip_html

SCRIPTS = {"Chinese": "电影", "Japanese": "えいが", "Thai": "ภาพยนตร์", "Korean": "영화", "emoji": "🎬"}


def texts_of(html: str) -> str:
    "What stands in a page's figures, which say each text beside its shapes."
    return "\n".join(base64.b64decode(part).decode() for part in re.findall('base64,([^"]+)"', html))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_token_is_text_or_code_points_wherever_it_is_drawn(script):
    token = SCRIPTS[script]
    near = [dict(model=m, place=1, neighbor=token, shared=True) for m in ("a", "b")]
    one = pd.DataFrame(near).assign(models=[("a", "b")] * 2, what="stable", token=token, J=0.5, k=1)
    rows = pd.DataFrame(dict(row=[token], counterpart=["-"], seed=[0], accuracy=[0.5], place=["Original"], mean=[50.0]))
    draws = [lambda ax: plot_neighbors(one, ax), lambda ax: plot_accuracy(rows, rows, ax).set_title(token)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "Glyph ... missing from font(s)"
        svg = texts_of(figure_html(draws, "x"))
    points = f"⟨{' '.join(f'U+{ord(c):04X}' for c in token[:3])}"
    assert svg.count(points) >= 5 and token not in svg  # two neighbours, two titles, the name of a row
    strip = strip_html([f" {token}"], {})
    assert token in strip and f"<small>{' '.join(f'U+{ord(c):04X}' for c in f' {token}')}</small>" in strip


def test_what_the_font_has_stays_text():
    kept = "naïve фильм ταινία ␣film – × é"
    assert drawn_text(kept) == kept
