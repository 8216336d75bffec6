"""Every pack of results has a page, small and made in time, or is refused in a line that says where it is shown."""

import re
from pathlib import Path

import pytest

from hpt_nb.page import OPEN_PARTS, open_parts
from hpt_nb.report import write_report
from hpt_nb.store import InputError

pytestmark = pytest.mark.slow
PACKS = sorted((Path(__file__).parent.parent / "results").glob("*.pack"))
BYTES = 3_000_000  # of a page


@pytest.mark.parametrize("pack", PACKS, ids=lambda p: p.stem)
def test_pack_has_a_page(pack, tmp_path):
    if pack.stem == "study-strata":
        with pytest.raises(InputError, match="random prompts by strata.*37_strata"):
            write_report(pack, tmp_path)
        return
    page = write_report(pack, tmp_path)
    assert page.stat().st_size < BYTES
    html = page.read_text(encoding="utf-8")
    assert all(open_parts(html)[part] <= most for part, most in OPEN_PARTS.items())
    first = html.split("<main>")[0]
    for what in ("Compared with", "Models", "What ran", "What is missing"):
        assert f"<dt>{what}</dt>" in first, what
    assert re.search(r'class="verdict">[^<]*(interval)', first) and 'class="panels"' in first
