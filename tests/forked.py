"""Programs that start as a copy of a process whose libraries are loaded, where what is tested is the process.

A program of its own takes seconds to import torch and transformers; a copy takes none of them. What is tested about the
imports themselves, or about the command `python`, still starts anew (test_lean.py, test_manners.py).
"""

import gc
import multiprocessing
import os
import signal
import sys
import threading
from types import SimpleNamespace

import pytest

KINDS = multiprocessing.get_all_start_methods()
CTX = multiprocessing.get_context("forkserver" if "forkserver" in KINDS else "spawn")
CTX.set_forkserver_preload(
    [
        "hpt_nb.experiments",
        "hpt_nb.tuning_commands",
        "hpt_nb.run_commands",
        "transformers.models.gpt2.modeling_gpt2",
        "transformers.models.llama.modeling_llama",
        "transformers.models.gemma3.modeling_gemma3",
        "accelerate",
    ]
)


ANEW = """
import sys
for name in [m for m in sys.modules if m.partition(".")[0] == "hpt_nb"]:
    del sys.modules[name]
"""  # before a program that has to find out for itself what is installed, or must not need this package


def _child(code, args, folder, env, out, err):
    "What the copy does: `code` as `python -c CODE ARGS` in `folder`, with pipes for what it writes."
    gc.freeze()  # what the copied process has loaded stays
    os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, encoding="utf-8", closefd=False) for n in (1, 2))
    os.environ.clear(), os.environ.update(env)
    os.chdir(folder)
    os.fsync = lambda fd: None  # as in conftest.py
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits one that is ignored
    sys.argv = ["-c", *args]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


class Program:
    "A program that runs. `stdout` can be read line by line while it does."

    def __init__(self, code, *args, cwd=None, env=None):
        (r_out, w_out), (r_err, w_err) = CTX.Pipe(duplex=False), CTX.Pipe(duplex=False)
        env = {**os.environ, **(env or {})}
        args = [str(a) for a in args]
        self.process = CTX.Process(target=_child, args=(code, args, cwd or os.getcwd(), env, w_out, w_err), daemon=True)
        self.process.start()
        w_out.close(), w_err.close()
        self.stdout, err = (os.fdopen(os.dup(r.fileno()), encoding="utf-8") for r in (r_out, r_err))
        r_out.close(), r_err.close()
        self.stderr, self.said = "", threading.Thread(target=lambda: setattr(self, "stderr", err.read()), daemon=True)
        self.said.start()
        self.pid = self.process.pid

    def send_signal(self, number):
        os.kill(self.pid, number)

    def wait(self) -> int:
        "The exit code; less than 0 where a signal ended it. `stderr` is then what it wrote there."
        self.process.join()
        self.said.join()
        return self.process.exitcode


def run(code, *args, check=False, **how):
    "`subprocess.run` of a program as text: `returncode`, `stdout`, `stderr`."
    p = Program(code, *args, **how)
    out = p.stdout.read()
    done = SimpleNamespace(returncode=p.wait(), stdout=out, stderr=p.stderr)
    assert not check or done.returncode == 0, done.stderr
    return done


needs_copies = pytest.mark.skipif(CTX.get_start_method() != "forkserver", reason="copies of a process need fork")
