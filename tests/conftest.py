"""What the whole test run prints at its end: how many faults were tried, and what became of them."""

import os
from pathlib import Path

from tests.faults.count import lines, summary


def pytest_terminal_summary(terminalreporter) -> None:
    if counted := summary():
        terminalreporter.write_line(f"faults: {counted}")
    if (path := os.environ.get("FAULTS_LINES")) and lines():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text("\n".join(lines()) + "\n")
        terminalreporter.write_line(f"the {len(lines()):,} different lines in which something was refused: {path}")
