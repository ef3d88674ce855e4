"""What a change would rerun, why, and about how long: ``python -m lib.plan -S gamma=0.1``.

Run it before ``dvc repro`` or ``dvc exp run``. The change is laid over params.yaml in memory; the file stays as it is.
"""

import argparse
import json
import sys
from collections import defaultdict

import yaml

from lib.durations import Estimate, estimates
from lib.forecast import Fate, Step, forecast
from lib.params.check import check_params
from lib.params.spec import PARAMS_FILE, Loader, load_yaml
from lib.preset import overlay, parse_settings
from lib.runtime.errors import UserError

RUNNING = (Fate.RUNS, Fate.RUNS_OR_RESTORED, Fate.DEPENDS)
NOT_A_TERMINAL = 200  # columns, so that no line of a log is folded


def make_plan(settings: list[str], targets: list[str]) -> tuple[list[Step], dict[str, Estimate]]:
    """The stages that are not up to date with ``settings`` (``key=value``) laid over params.yaml, and their times.

    Raises:
        UserError: a bad setting, a bad params.yaml, or what `forecast` raises.
    """
    raw = load_yaml(PARAMS_FILE)
    text = None
    if settings:
        text, _ = overlay(PARAMS_FILE.read_text(), parse_settings(settings))
        raw = yaml.load(text, Loader=Loader)
    check_params(raw)
    steps = forecast(text, targets)
    times = estimates(steps, raw)
    return [step for step in steps if step.fate != Fate.UP_TO_DATE], times


def as_json(steps: list[Step], times: dict[str, Estimate]) -> str:
    """For machines. ``seconds`` is null where no comparable run was recorded, and 0 for what is restored."""
    stages = [
        {
            "stage": step.stage,
            "fate": step.fate.name.lower(),
            "why": step.why,
            "after": step.causes,
            "seconds": 0.0 if step.fate == Fate.RESTORED else times[step.stage].seconds,
            "source": times[step.stage].source,
        }
        for step in steps
    ]
    known = [stage["seconds"] for stage in stages if stage["seconds"] is not None]
    return json.dumps({"stages": stages, "seconds": sum(known), "without_time": len(stages) - len(known)}, indent=2)


def total(steps: list[Step], times: dict[str, Estimate]) -> str:
    """One line: how many stages, how long."""
    from lib.runtime.progress import duration

    counts = [
        (sum(step.fate == Fate.RUNS for step in steps), "to run"),
        (sum(step.fate in (Fate.DEPENDS, Fate.RUNS_OR_RESTORED) for step in steps), "that may run"),
        (sum(step.fate == Fate.RESTORED for step in steps), "restored without running"),
    ]
    words = ", ".join(f"{count} {what}" for count, what in counts if count)
    running = [step.stage for step in steps if step.fate in RUNNING]
    known = [times[stage].seconds for stage in running if times[stage].seconds is not None]
    if not running:
        return f"stages: {words}"
    if not known:
        return f"stages: {words}; time not known, no comparable run is recorded"
    missing = f", without {len(running) - len(known)} of unknown time" if len(known) < len(running) else ""
    return f"stages: {words}; about {duration(sum(known))}, one after another{missing}"


def reasons(step: Step) -> str:
    """What moves a stage, in one line; of several variants' stages only the group and their number."""
    groups = defaultdict(list)
    for name in step.causes:
        groups[name.rpartition("@")[0] or name].append(name)
    after = [names[0] if len(names) == 1 else f"{group} ({len(names)})" for group, names in groups.items()]
    return ", ".join([*step.why, *([f"after {', '.join(after)}"] if after else [])])


def show(steps: list[Step], times: dict[str, Estimate]) -> None:
    """The table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from lib.runtime.progress import duration

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("stage", "what happens", "why", "about", "time taken from"):
        table.add_column(name, justify="right" if name == "about" else "left", overflow="fold")
    for step in steps:
        restored, estimate = step.fate == Fate.RESTORED, times[step.stage]
        about = "?" if estimate.seconds is None else duration(estimate.seconds)
        table.add_row(
            step.stage,
            step.fate,
            reasons(step),
            *(("-", "") if restored else (about, estimate.source)),
            style="dim" if restored else None,
        )
    console = Console(width=None if sys.stdout.isatty() else NOT_A_TERMINAL, highlight=False, markup=False)
    console.print(table)
    console.print(total(steps, times), soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lib.plan", description="Say what dvc repro would run, and why.")
    parser.add_argument(
        "targets",
        nargs="*",
        help="stages such as linear@joint, or groups such as pretrain; none means the whole pipeline",
    )
    parser.add_argument(
        "-S",
        dest="settings",
        metavar="key=value",
        action="append",
        default=[],
        help="a change of params.yaml that is not yet made, for example -S gamma=0.1; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    try:
        steps, times = make_plan(arguments.settings, arguments.targets)
        if arguments.json:
            print(as_json(steps, times))
        elif steps:
            show(steps, times)
        else:
            print("nothing to do")
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
