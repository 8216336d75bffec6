"""What is pushed to a hub is what comes back from it; a hub that does not answer is one line."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import hub_mixin

from hpt_nb import hub
from hpt_nb.prompts import Prompt
from hpt_nb.selection import select, token_rules
from hpt_nb.store import InputError
from hpt_nb.vocab import Vocab

TASK = dict(name="mine", suffix=". It was", labels=[" bad", " great"])
TOKENS = Vocab([" a", "b", "12"], torch.arange(6).view(2, 3), ["one", "two"], J=torch.tensor([0.9, 0.5, 0.1]))
PROMPT = Prompt(" Is it good?", TASK, scores=[dict(model="one", accuracy=0.5)])
OBJECTS = [select(TOKENS, token_rules(deny=r"\d+")), PROMPT]


@pytest.mark.parametrize("kept", OBJECTS, ids=["vocabulary", "prompt"])
def test_pushed_and_fetched(kept, tmp_path, monkeypatch):
    "One file, its card and config.json go to the hub; what is fetched is equal to what was pushed."

    class Hub:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **how):
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, repo_id, folder_path, **how):
            return shutil.copytree(folder_path, tmp_path / repo_id)

    def download(repo_id, filename, **how):
        if not (tmp_path / repo_id / filename).is_file():
            raise FileNotFoundError(filename)
        return str(tmp_path / repo_id / filename)

    monkeypatch.setattr(hub_mixin, "HfApi", Hub)
    monkeypatch.setattr(hub_mixin, "hf_hub_download", download)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    kept.push_to_hub("me/thing")
    assert {p.name for p in (tmp_path / "me" / "thing").iterdir()} == {"README.md", "config.json", kept.FILE}
    for place in ("me/thing", tmp_path / "me" / "thing"):
        back = type(kept).from_pretrained(place)
        assert back.hash == kept.hash and back.config == kept.config if isinstance(kept, Vocab) else back == kept
    card = (tmp_path / "me" / "thing" / "README.md").read_text(encoding="utf-8")
    assert "library_name: hpt_nb" in card and str(tmp_path) not in card
    with pytest.raises(InputError, match="need a folder of save_pretrained") as e:
        type(kept).from_pretrained("me/gone")
    assert "\n" not in str(e.value)
