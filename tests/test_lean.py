"""What the command line costs before it does anything: heavy libraries wait until they are needed."""

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "transformers",
    "pandas",
    "pyarrow",
    "datasets",
    "matplotlib",
    "seaborn",
    "numpy",
    "accelerate",
    "gguf",
)


@pytest.mark.parametrize(
    "code",
    [
        "import hpt_nb.cli",
        "import hpt_nb.cli, sys\ntry: hpt_nb.cli.main(['--help'])\nexcept SystemExit: pass",
        "import hpt_nb.cli, sys\ntry: hpt_nb.cli.main(['tune', '--help'])\nexcept SystemExit: pass",
    ],
    ids=["import", "--help", "tune --help"],
)
def test_command_line_loads_nothing_heavy(code):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint('LOADED', *sorted(sys.modules))"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.rpartition("LOADED")[2].split()
    assert "hpt_nb.cli" in loaded and [m for m in HEAVY if m in loaded] == []
