"""Plain lines about a long loop, at about every tenth of it."""

import time

QUIET_SECONDS = 5.0


class EpochLines:
    """Prints ``label: epoch 5/50, loss 0.31, 12 s, 108 s left`` at about every tenth epoch and the last.

    Lines before the last are some seconds apart, so that a quick loop says little.
    """

    def __init__(self, label: str, epochs: int) -> None:
        self.label = label
        self.epochs = epochs
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
