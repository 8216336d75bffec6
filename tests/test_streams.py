"""What a stream's encoding lacks is written as an escape; a command never ends in a traceback after its work, and a
remark never stands beside a refusal."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest
from hypothesis import example, given, settings, strategies as st

from hpt_nb import cli
from hpt_nb.options import say
from hpt_nb.store import InputError, remark, say_remarks

ENCODINGS = (
    "ascii",
    "latin-1",
    "cp1252",
    "cp437",
    "cp932",
    "euc_jp",
    "gb2312",
    "koi8-r",
    "iso8859-6",
    "utf-8",
    "utf-16",
)


def ran(work, encoding):
    "(exit code, stdout, stderr) of a command whose work is a function, on streams of an encoding."
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    with pytest.MonkeyPatch.context() as m, redirect_stdout(out), redirect_stderr(err):
        m.setitem(cli.COMMANDS, "status", cli.COMMANDS["status"]._replace(run=lambda a: work()))
        code = cli.main(["status", "x"])
    assert out.errors == err.errors == "strict"  # as they were
    return code, *(s.flush() or s.buffer.getvalue().decode(encoding) for s in (out, err))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=20), st.sampled_from(ENCODINGS))
@example("映画の \U0001f44e caf\u00e9 \u202e\x1b[2J", "ascii")
def test_any_text_on_any_stream(text, encoding):
    def fail():
        raise InputError(f"no {text}")

    code, out, err = ran(lambda: say(text), encoding)
    assert code == 0 and err == "" and out.count("\n") == 1 + text.count("\n")
    code, out, err = ran(fail, encoding)
    assert code == 2 and out == "" and err.count("\n") == 1
    code, out, err = ran(lambda: remark(text), encoding)
    assert code == 0 and err.startswith("note: ") and err.count("\n") == 1


def test_a_refusal_is_one_line_whatever_was_remarked():
    def refused():
        remark("texts are dropped")
        raise InputError("no such model")

    def later():
        remark("a")
        say_remarks()
        remark("b")
        remark("a")
        raise InputError("no room")

    assert ran(refused, "utf-8") == (2, "", "hpt: no such model\n")
    assert ran(later, "utf-8") == (2, "", "note: a\nnote: b\nhpt: no room\n")
    assert ran(lambda: (remark("a"), say("done"), remark("a")), "utf-8") == (0, "done\n", "note: a\n")


@pytest.mark.parametrize(
    "env",
    [
        dict(PYTHONIOENCODING="ascii"),
        dict(PYTHONIOENCODING="cp1252:strict"),
        dict(PYTHONIOENCODING="eucJP"),
        dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
        dict(LC_ALL="POSIX", PYTHONUTF8="1"),
    ],
    ids=str,
)
def test_a_process_under_any_locale(env):
    work = "lambda a: say('\\u6620\\u753b \\xe9 \\U0001F44E')"
    code = (
        "import sys; from hpt_nb.cli import COMMANDS, main; from hpt_nb.options import say; "
        f"COMMANDS['status'] = COMMANDS['status']._replace(run={work}); sys.exit(main(['status', 'x']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONIO", "PYTHONUTF8"))},
            **env,
        },
    )
    assert done.returncode == 0 and done.stderr == b"" and done.stdout.strip(), done.stderr
