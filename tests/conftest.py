import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the tests never ask a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import pytest


@pytest.fixture(autouse=True)
def messages_are_shown():
    "On stderr, as the command line shows them: what is said can be tested where nothing but the library is called."
    from hpt_nb.store import messages

    with messages():
        yield
