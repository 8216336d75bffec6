"""Rewrites constraints.txt from the packages this Python runs: `.venv/bin/python tools/pins.py`.

Walks the requirements of the installed `hpt_nb[dev,docs,readability]` (`make docs` installs the second, `make report`
the third), so that nothing is pinned that nothing asks for. A pin holds only where its package allows the Python at
hand (a marker says so); local versions (`+cpu`) are dropped.
"""

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEADER = """\
# The versions this project is tested with. Written by tools/pins.py; requirements themselves stand in settings.ini.
# A package whose pinned version needs a newer Python than yours is left free there.
"""


def closure(name: str, extras: set[str], seen: dict) -> dict:
    "Distributions that `name[extras]` needs here, itself included, by canonical name."
    try:
        dist = distribution(name)
    except PackageNotFoundError:
        return seen  # asked for on another platform
    seen.setdefault(canonicalize_name(name), (dist, set()))
    done = seen[canonicalize_name(name)][1]
    for extra in ({""} | extras) - done:
        done.add(extra)
        for req in map(Requirement, dist.requires or []):
            if req.marker is None or req.marker.evaluate({"extra": extra}):
                closure(req.name, set(req.extras), seen)
    return seen


def pin(dist) -> str:
    "One line of constraints.txt."
    floor = re.search(r">=\s*(3\.1[1-9](?:\.[1-9]\d*)?)", dist.metadata.get("Requires-Python") or "")
    marker = f'; python_full_version >= "{floor[1]}"' if floor else ""
    return f"{canonicalize_name(dist.metadata['Name'])}=={dist.version.split('+')[0]}{marker}\n"


if __name__ == "__main__":
    dists = closure("hpt_nb", {"dev", "docs", "readability"}, {})
    del dists["hpt-nb"]
    text = HEADER + "".join(pin(dists[name][0]) for name in sorted(dists))
    (Path(__file__).parents[1] / "constraints.txt").write_text(text, encoding="utf-8")
