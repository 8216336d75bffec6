__version__ = "0.1.0"
import os

# Idle threads of libgomp spin for milliseconds, which takes the cores from others and, on a busy machine, from the thread that they wait for.
# 10,000 times round is enough for the gaps inside a tuning step (chapter 6 shows both figures). It is read when torch is loaded; a user's own choice stands.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys(): os.environ["GOMP_SPINCOUNT"] = "10000"

_FROM = dict(   # names that can be taken from the top, and the rooms that they live in; loaded when first used
    load_lm="models", load_task="tasks", Task="tasks", common_vocab="vocab", Vocab="vocab", stability="neighbors", stable_vocab="neighbors",
    label_logprobs="scoring", tune="pez", transfer="transfer", transferable="practice", audit="auditing", Prompt="prompts",
    HardPromptClassifier="classifier")


def __getattr__(name):
    if name not in _FROM: raise AttributeError(f"module 'hpt_nb' has no attribute {name!r}")
    from importlib import import_module
    return getattr(import_module(f"hpt_nb.{_FROM[name]}"), name)


def __dir__(): return sorted({*globals(), *_FROM})
