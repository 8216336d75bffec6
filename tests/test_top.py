"The names that others rely on, from the top, and a quick import."

import subprocess
import sys

NAMES = (
    "load_lm, load_task, common_vocab, stability, stable_vocab, label_logprobs, tune, transfer, transferable, "
    "audit, Prompt, Task, Vocab, HardPromptClassifier"
)


def test_names_from_the_top_in_any_order():
    "Before and after their rooms are imported; `import hpt_nb` loads none of them."
    code = f"""
import sys, hpt_nb
assert not [m for m in ("torch", "pandas", "transformers") if m in sys.modules]
from hpt_nb import {NAMES}
import hpt_nb.transfer, hpt_nb.practice
from hpt_nb.transfer import certify, transfer as function
from hpt_nb import {NAMES}
assert all(map(callable, ({NAMES}))) and hpt_nb.transfer.certify is certify
try: transfer()
except TypeError as e: assert "transfer() missing" in str(e)
else: raise AssertionError("not the function")
try: hpt_nb.nothing
except AttributeError as e: assert "nothing" in str(e)
assert "audit" in dir(hpt_nb)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
