"""How far a training is: a bar with the time left on a terminal, plain lines elsewhere."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_SECONDS = 60.0


class StepProgress:
    """Counts steps; ``note`` prints a line that stays. Use as a context manager."""

    def __init__(self, title: str, total: int, done: int = 0, silent: bool = False) -> None:
        self.title, self.total, self.done = title, total, done
        self.silent = silent
        self.first, self.started = done, time.monotonic()
        self.last_line = self.started
        self.bar: Progress | None = None
        if sys.stdout.isatty() and not silent:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("steps"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=Console())
            self.task = self.bar.add_task(title, total=total, completed=done)

    def __enter__(self) -> "StepProgress":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def advance(self) -> None:
        self.done += 1
        if self.bar:
            self.bar.advance(self.task)
        elif not self.silent and time.monotonic() - self.last_line > PLAIN_SECONDS:
            self._line(f"step {self.done} of {self.total}")

    def note(self, text: str) -> None:
        if self.silent:
            return
        if self.bar:
            self.bar.console.print(f"{self.title}: {text}", highlight=False)
        else:
            self._line(text)

    def _line(self, text: str) -> None:
        self.last_line = time.monotonic()
        left = "" if self.done in (self.first, self.total) else f", {duration(self._left())} left"
        print(f"{self.title}: {text}{left}", flush=True)

    def _left(self) -> float:
        return (time.monotonic() - self.started) / (self.done - self.first) * (self.total - self.done)


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 12 min, 3.4 h, 2.1 days."""
    for size, unit in ((86400, "days"), (3600, "h")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
