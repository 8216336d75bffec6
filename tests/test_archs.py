"""Every causal architecture that transformers knows, tiny and random, against archs.json: how it is scored, or why not.

It takes minutes: make test leaves it out, make test-all runs it.
"""

import pytest

from archs import LISTED, kind, outcome

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(LISTED))
def test_an_architecture_fares_as_listed(name):
    """Scores equal the plain pass to 1e-4 in the way that is listed, or the line that refuses it gives the reason
    that is listed."""
    found = outcome(name)
    assert kind(found) == kind(LISTED[name]), (
        f"{name} was {LISTED[name]!r} and is {found!r}; if that is right, "
        "`python tests/archs.py --write` writes the list anew"
    )
