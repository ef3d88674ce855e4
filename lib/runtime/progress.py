"""How far a long computation is: a bar with the time left on a terminal, plain lines elsewhere."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_SECONDS = 60.0  # between lines about steps
QUIET_SECONDS = 5.0  # between lines about epochs


class StepProgress:
    """Counts steps, and estimates after the second what is left; ``note`` prints a line that stays.

    Without a terminal a computation of some seconds says nothing of its steps.

    Use as a context manager. The first step, in which libraries set themselves up, is not counted into an estimate:
    `advance` is called when the work of a step is done, at the first two at least.
    """

    def __init__(self, title: str, total: int, done: int = 0, silent: bool = False) -> None:
        self.title, self.total, self.done, self.silent = title, total, done, silent
        self.first, self.started = done + 1, 0.0  # the step that the estimate counts from, and when it ended
        self.last_line, self.estimated = time.monotonic(), False
        self.bar: Progress | None = None
        if sys.stdout.isatty() and not silent:
            done_of = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
            times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
            self.bar = Progress(*done_of, *times, console=Console(file=sys.stdout), transient=True)
            self.task = self.bar.add_task(title, total=total, completed=done)

    def __enter__(self) -> "StepProgress":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    @property
    def estimates_next(self) -> bool:
        """Whether the step that is now done must be waited for before `advance`."""
        return self.done <= self.first

    def advance(self, steps: int = 1) -> None:
        self.done += steps
        if not self.started and self.done >= self.first:
            self.first, self.started = self.done, time.monotonic()
        if self.bar:
            self.bar.advance(self.task, steps)
        elif not self.silent and self._due():
            self._line(f"step {self.done} of {self.total}")

    def reach(self, share: float) -> None:
        """Advance to this share of all steps: for work in hundredths, whose own steps are too many or too unequal."""
        if (steps := int(share * self.total) - self.done) > 0:
            self.advance(steps)

    def note(self, text: str) -> None:
        if self.silent:
            return
        if self.bar:
            self.bar.console.print(f"{self.title}: {text}", highlight=False)
        else:
            self._line(text)

    def _due(self) -> bool:
        """At the first estimate, and then some time after the last line."""
        if not (left := self._left()):
            return False
        first, self.estimated = not self.estimated, True
        return left > QUIET_SECONDS and (first or time.monotonic() - self.last_line > PLAIN_SECONDS)

    def _left(self) -> float:
        """Seconds; 0 where nothing is left, or known of it."""
        if not self.first < self.done < self.total:
            return 0.0
        return (time.monotonic() - self.started) / (self.done - self.first) * (self.total - self.done)

    def _line(self, text: str) -> None:
        self.last_line = time.monotonic()
        left = self._left()
        print(f"{self.title}: {text}" + (f", about {duration(left)} left" if left else ""), flush=True)


class EpochLines:
    """Prints ``label: epoch 5/50, loss 0.31, 12 s, 108 s left`` at about every tenth epoch and the last.

    Lines before the last are some seconds apart, so that a quick loop says little.
    """

    def __init__(self, label: str, epochs: int) -> None:
        self.label, self.epochs = label, epochs
        self.started = self.printed = time.monotonic()

    def epoch(self, epoch: int, **numbers: float) -> None:
        """Say that ``epoch``, counted from 1, has ended."""
        now = time.monotonic()
        due = epoch % max(1, self.epochs // 10) == 0 and now - self.printed >= QUIET_SECONDS
        if not due and epoch != self.epochs:
            return
        self.printed = now
        spent = now - self.started
        left = "" if epoch == self.epochs else f", {spent / epoch * (self.epochs - epoch):.0f} s left"
        shown = "".join(f"{name} {value:.4g}, " for name, value in numbers.items())
        print(f"{self.label}: epoch {epoch}/{self.epochs}, {shown}{spent:.0f} s{left}", flush=True)


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 12 min, 3.4 h, 2.1 days."""
    for size, unit in ((86400, "days"), (3600, "h")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
