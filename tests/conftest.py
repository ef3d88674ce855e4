"""What the whole test run prints at its end: how many faults were tried, and what became of them."""

import os
from pathlib import Path

import pytest

from tests.faults.count import add, given, lines, summary


def pytest_sessionfinish(session) -> None:
    if hasattr(session.config, "workeroutput"):  # one of several processes: what it counted goes to the first
        session.config.workeroutput["faults"] = given()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error) -> None:
    if "faults" in getattr(node, "workeroutput", {}):  # not of a process that crashed, whose tests have failed
        add(node.workeroutput["faults"])


def pytest_terminal_summary(terminalreporter) -> None:
    if counted := summary():
        terminalreporter.write_line(f"faults: {counted}")
    if (path := os.environ.get("FAULTS_LINES")) and lines():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text("\n".join(lines()) + "\n")
        terminalreporter.write_line(f"the {len(lines()):,} different lines in which something was refused: {path}")
