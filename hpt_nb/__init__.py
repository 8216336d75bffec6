__version__ = "0.1.0"

import os

# Idle threads of libgomp spin for milliseconds, which takes the cores from others and, on a busy machine, from the thread that they wait for.
# 10,000 times round is enough for the gaps inside a tuning step (chapter 6 shows both figures). It is read when torch is loaded; a user's own choice stands.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys(): os.environ["GOMP_SPINCOUNT"] = "10000"
