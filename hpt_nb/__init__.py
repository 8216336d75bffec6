"""Hard prompts that transfer. The names of everyday use stand here; each, and torch with it, is loaded at first use."""

__version__ = "0.1.0"

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Idle threads of libgomp spin for milliseconds, which takes the cores from others and, on a busy machine, from the
# thread that they wait for. 10,000 times round is enough for the gaps inside a tuning step (chapter 6 shows both
# figures). It is read when torch is loaded; a user's own choice stands.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "10000"

if TYPE_CHECKING:  # what type checkers and editors read; `_FROM` says the same to Python
    from .auditing import audit as audit
    from .classifier import HardPromptClassifier as HardPromptClassifier
    from .experiments import run_preset as run_preset
    from .export import export_prompt as export_prompt
    from .following import tune as tune
    from .labelling import compare_labels as compare_labels
    from .models import LM as LM, load_lm as load_lm
    from .neighbors import stability as stability, stable_vocab as stable_vocab
    from .pez import Callback as Callback, Run as Run
    from .practice import transferable as transferable
    from .predicting import predict as predict
    from .prompts import Prompt as Prompt
    from .scoring import evaluate as evaluate, label_logprobs as label_logprobs
    from .store import InputError as InputError
    from .tasks import Split as Split, Task as Task, load_task as load_task
    from .transfer import transfer as transfer
    from .vocab import Vocab as Vocab, common_vocab as common_vocab, whole_vocab as whole_vocab

_FROM = {  # module -> the names that it gives
    "auditing": ["audit"],
    "classifier": ["HardPromptClassifier"],
    "experiments": ["run_preset"],
    "export": ["export_prompt"],
    "following": ["tune"],
    "labelling": ["compare_labels"],
    "models": ["LM", "load_lm"],
    "neighbors": ["stability", "stable_vocab"],
    "pez": ["Callback", "Run"],
    "practice": ["transferable"],
    "predicting": ["predict"],
    "prompts": ["Prompt"],
    "scoring": ["evaluate", "label_logprobs"],
    "store": ["InputError"],
    "tasks": ["Split", "Task", "load_task"],
    "transfer": ["transfer"],
    "vocab": ["Vocab", "common_vocab", "whole_vocab"],
}
_MODULE = {name: module for module, names in _FROM.items() for name in names}

__all__ = sorted(_MODULE)


if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        "A public name, at its first use (PEP 562)."
        if name not in _MODULE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        room = import_module(f".{_MODULE[name]}", __name__)
        if name == _MODULE[name]:
            return room  # `transfer` names a function and its room, which can be called as the function
        globals()[name] = value = getattr(room, name)
        return value


def __dir__() -> list:
    return sorted({*globals(), *__all__})
