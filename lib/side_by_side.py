"""Train the variants side by side, then finish the pipeline: ``python -m lib.side_by_side``, or ``-j 2``.

As many stages run at once as there are GPUs, or processor cores where there is none, and no more than there are
variants with work to do. Each is a ``dvc repro -s <stage>`` of its own, held to its share of the cores and to its GPU;
DVC gives its lock away while a stage's command runs. What DVC finds up to date is not run. ``dvc repro`` then does the
rest. A variant that fails leaves the others alone; Ctrl-C stops all, and the same command goes on from there.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from lib.errors import UserError
from lib.forecast import Fate, Step
from lib.shares import Share, job_count, shares

# DVC holds one lock for its own book-keeping, not while a stage's command runs: wait for it, do not give up after 3 s.
DVC_REPRO = (sys.executable, "-m", "dvc", "--wait-for-lock", "repro")
BUSY = "is being blocked by"  # DVC's words when another dvc process works on the same files
BUSY_WAIT, LONGEST_WAIT = 5.0, 60.0  # seconds until the next try; each is twice the one before
PATIENCE = ((signal.SIGINT, 30.0), (signal.SIGTERM, 10.0))  # how a stage is asked to end, seconds to the next word
HINTS = ("Updating lock file", "Generating lock file", "To track the changes", "To enable auto staging",
         "Use `dvc push`", "git add", "dvc config core.autostage")


@dataclass(frozen=True)
class Job:
    """One ``dvc repro``. ``label`` begins its lines; ``height`` counts the stages that wait for it in a row."""

    name: str
    label: str
    arguments: tuple[str, ...]
    after: frozenset[str] = frozenset()
    height: int = 0
    whole_machine: bool = False


def jobs_for(steps: list[Step]) -> list[Job]:
    """The stages of variants that may run, and those that they wait for."""
    by_name = {step.stage: step for step in steps if step.fate != Fate.UP_TO_DATE}
    wanted: set[str] = set()
    waiting = [step.stage for step in by_name.values() if step.key is not None]
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting.extend(by_name[name].after)
    heights: dict[str, int] = {}
    for name in reversed([name for name in by_name if name in wanted]):  # DVC's order: what comes before, first
        heights[name] = 1 + max((heights[other] for other in heights if name in by_name[other].after), default=0)
    return [_stage_job(by_name[name], heights[name]) for name in by_name if name in wanted]


def _stage_job(step: Step, height: int) -> Job:
    return Job(step.stage, step.key or step.stage, ("-s", step.stage), frozenset(step.after), height, step.key is None)


class Crew:
    """Runs jobs on shares of the machine, each when those before it are done.

    The main thread alone prints and decides; a thread for each child passes its lines on, a signal is one more event.
    """

    def __init__(self, jobs: Iterable[Job], places: list[Share], width: int = 0) -> None:
        self.waiting = {job.name: job for job in jobs}
        self.free = list(places)
        self.width = width or max((len(job.label) for job in self.waiting.values()), default=0)
        self.events: SimpleQueue[tuple[str, Any, Any]] = SimpleQueue()
        self.running: dict[str, tuple[Job, Share, subprocess.Popen, float]] = {}
        self.resting: dict[str, float] = {}  # jobs that met another dvc process, and when to try again
        self.tries: Counter[str] = Counter()
        self.failed: list[str] = []
        self.skipped: list[str] = []
        self.stopped: signal.Signals | None = None
        self.words: list[tuple[float, signal.Signals]] = []  # when to ask the children to end, and how

    def run(self) -> None:
        """Until every job is done, has failed or was left out, or a signal ended them all."""
        names = [name for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
                 if signal.getsignal(name) != signal.SIG_IGN]  # as nohup sets SIGHUP
        before = {name: signal.signal(name, lambda number, _: self.events.put(("signal", number, None)))
                  for name in names}
        try:
            while self.running or (self.waiting and not self.stopped):
                self._start_what_can()
                self._handle_event()
                self._ask_to_end()
        finally:
            self._tell(signal.SIGTERM)  # an error of this program's own must not leave trainings behind
            for name, handler in before.items():
                signal.signal(name, handler)

    def _start_what_can(self) -> None:
        ready = [job for job in self.waiting.values() if not job.after & (self.waiting.keys() | self.running.keys())
                 and self.resting.get(job.name, 0.0) <= time.monotonic()]
        for job in sorted(ready, key=lambda job: -job.height):
            if self.free and not self.stopped:
                del self.waiting[job.name]
                place = self.free.pop(0)
                child = _child(job, Share.whole() if job.whole_machine else place)
                self.running[job.name] = (job, place, child, time.monotonic())
                threading.Thread(target=self._listen, args=(job, child), daemon=True).start()
                self._say(job, f"{job.name} starts{'' if job.whole_machine else place.words()}")

    def _listen(self, job: Job, child: subprocess.Popen) -> None:
        busy = False
        for line in child.stdout:
            busy = busy or BUSY in line
            self.events.put(("line", job, line))
        self.events.put(("end", job, (child.wait(), busy)))

    def _handle_event(self) -> None:
        try:
            kind, subject, detail = self.events.get(timeout=1.0)
        except Empty:
            return
        if kind == "line":
            if detail.strip() and not detail.strip().startswith(HINTS):
                self._say(subject, detail.rstrip())
        elif kind == "end":
            self._close(subject, *detail)
        else:
            self._stop(signal.Signals(subject))

    def _close(self, job: Job, status: int, busy: bool) -> None:
        from lib.core.progress import duration

        _, place, _, started = self.running.pop(job.name)
        self.free.append(place)
        if self.stopped:
            return
        if status == 0:
            self._say(job, f"{job.name} is done after {duration(time.monotonic() - started)}")
        elif busy:
            self._say(job, f"another dvc process is at work on {job.name}; waiting for it")
            self.waiting[job.name] = job
            self.resting[job.name] = time.monotonic() + min(LONGEST_WAIT, BUSY_WAIT * 2 ** self.tries[job.name])
            self.tries[job.name] += 1
        else:
            self.failed.append(job.name)
            self._say(job, f"{job.name} failed")
            self._leave_out(job.name)

    def _leave_out(self, name: str) -> None:
        for other in [job.name for job in self.waiting.values() if name in job.after]:
            if self.waiting.pop(other, None):
                self.skipped.append(other)
                self._leave_out(other)

    def _stop(self, number: signal.Signals) -> None:
        """Ask all children to end, ever less politely; a second signal ends them at once."""
        now = time.monotonic()
        if self.stopped:
            self.words = [(now, signal.SIGKILL)]
            return
        self.stopped = number
        print("stopping all stages; once more ends them at once", file=sys.stderr, flush=True)
        for word, patience in PATIENCE:
            self.words.append((now, word))
            now += patience
        self.words.append((now, signal.SIGKILL))

    def _ask_to_end(self) -> None:
        while self.words and self.words[0][0] <= time.monotonic():
            self._tell(self.words.pop(0)[1])

    def _tell(self, word: signal.Signals) -> None:
        for _, _, child, _ in self.running.values():
            with suppress(ProcessLookupError):
                os.killpg(child.pid, word)  # dvc and the stage's own processes

    def _say(self, job: Job, text: str) -> None:
        print(f"{job.label.ljust(self.width)} | {text}", flush=True)


def _child(job: Job, share: Share) -> subprocess.Popen:
    """Start a job in a process group of its own, on its share of the machine."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **share.environment()}
    deaf = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # begun in a script's background; a child would be, too
    if deaf:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with share.held():  # a child inherits its parent's processors
            return subprocess.Popen([*DVC_REPRO, *job.arguments], env=environment, text=True, errors="replace",
                                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                    start_new_session=True)
    finally:
        if deaf:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def side_by_side(count: int | None) -> None:
    """Run everything that is not up to date.

    Raises:
        UserError: a bad params.yaml or setting of the machine; stages that failed, by name.
        SystemExit: a signal came; 128 and its number, as shells have it.
    """
    from lib.plan import make_plan

    steps, _ = make_plan([], [])
    jobs = jobs_for(steps)
    variants = {step.key for step in steps if step.key is not None}
    crew = Crew(jobs, shares(min(count or job_count(), len(variants))) if jobs else [])
    crew.run()
    _refuse_unfinished(crew)
    last = Crew([Job("dvc repro", "all", (), whole_machine=True)], [Share.whole()], crew.width)
    last.run()
    _refuse_unfinished(last)


def _refuse_unfinished(crew: Crew) -> None:
    if crew.stopped:
        print("interrupted; give the same command again (trainings go on from their last checkpoints)", file=sys.stderr)
        sys.exit(128 + crew.stopped)
    if crew.failed:
        left = f"; {', '.join(crew.skipped)} did not run" if crew.skipped else ""
        raise UserError(f"{', '.join(crew.failed)} failed, the reason is above{left}; mend it and give the same "
                        "command again")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lib.side_by_side",
                                     description="Train the variants side by side, then finish the pipeline.")
    parser.add_argument("-j", dest="count", type=int, metavar="N",
                        help="how many at once; without it, as many as there are GPUs, or else processor cores")
    arguments = parser.parse_args()
    try:
        if arguments.count is not None and arguments.count < 1:
            raise UserError(f"-j is {arguments.count}; allowed: a whole number of at least 1")
        side_by_side(arguments.count)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
