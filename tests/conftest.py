"""What the whole test run prints at its end: how many faults were tried, and what became of them."""

from tests.faults.count import summary


def pytest_terminal_summary(terminalreporter) -> None:
    if counted := summary():
        terminalreporter.write_line(f"faults: {counted}")
