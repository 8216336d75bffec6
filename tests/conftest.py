import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")            # the tests never ask a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
