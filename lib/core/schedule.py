"""The learning rate as a function of the step."""

import math


def learning_rate(step: int, steps: int, warmup: int, peak: float, schedule: str) -> float:
    """The rate used at ``step`` (0-based) of ``steps``.

    It rises linearly over ``warmup`` steps (the first uses peak / warmup, the last of them peak), then
    stays (``constant``) or falls along half a cosine towards zero after the last step (``cosine``).
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    if schedule == "cosine":
        done = (step - warmup) / max(1, steps - warmup)
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    raise ValueError(f"no schedule {schedule!r}")
