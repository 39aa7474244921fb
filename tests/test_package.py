"""The folders are the layers: lower ones never import upper ones, and report and claims load no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["report.figures", "report.page", "report.theory", "claims.judge"])
def test_what_reads_tables_loads_no_torch(module):
    code = f"import sys, pdunroll.{module}; print([name for name in ('torch', 'librosa') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_lists_the_commands_without_torch():
    code = "import sys, pdunroll.__main__ as m; sys.argv = ['pdunroll']; m.main(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[-1] == "False"
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list_of_commands()


def list_of_commands() -> list[str]:
    from pdunroll.__main__ import COMMANDS

    return list(COMMANDS)
