"""Measure this project and its peers side by side: ``python -m bench.run data step --repetitions 5``.

Every measurement has a process of its own. A repetition goes through all arms of all rows in turn, so that
what is compared is measured close together; ratios are taken within it. Every run writes bench/partial.json and
bench/partial.md, and with --add keeps the other sections that are there; a whole one writes bench/results.* too.
With --device cuda a GPU is measured, for bench/partial-cuda.* and bench/cuda.*. Linux alone.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench import machine as facts
from bench.ours import preset_params
from bench.plan import (
    CUDA,
    CUDA_SECTIONS,
    FULL,
    NAMES,
    QUICK,
    SECTIONS,
    Row,
    Sizes,
    name_of,
    rows,
    sweep_of,
    worker_counts,
)
from bench.report import document
from lib.data.store import IMAGES_FILE
from lib.runtime.errors import UserError
from lib.runtime.files import read_about, read_json, write_json, write_text
from lib.runtime.machine import read_machine

FOLDER = Path("bench")
NAMES_OF_FILES = {"cpu": ("results", "partial"), "cuda": ("cuda", "partial-cuda")}  # of a whole run, and of any
# Few epochs want a rate that is high from the start: with preset cpu's own, which falls to 0, 4 epochs are not enough.
RACE = ("epochs=4", "optimizer.lr=0.002", "optimizer.schedule=constant", "optimizer.warmup_epochs=0.2")
Record = dict[str, Any]


class Bench:
    """A run: what was asked, what has been measured so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        os.environ |= {
            "ENGRAM_DEVICE": arguments.device,
            "ENGRAM_PROCESSES": "1",
            "ENGRAM_COMPILE": "auto",
            "ENGRAM_PRECISION": "auto",
            "ENGRAM_TORCHRUN": "",
        }
        on_gpu = arguments.device == "cuda"
        machine = read_machine()
        preset_params("cpu", arguments.ours)  # a slip must not wait for the hours before it is read
        self.arguments, self.threads = arguments, machine.threads
        self.processors = sorted(os.sched_getaffinity(0))[: machine.threads]
        full = CUDA if on_gpu else FULL
        self.sizes: Sizes = replace(QUICK, cuda=on_gpu) if arguments.quick else full
        self.every = CUDA_SECTIONS if on_gpu else tuple(SECTIONS)
        self.sections = arguments.sections or list(self.every)
        self.whole, self.name = NAMES_OF_FILES[arguments.device]
        self.rows = rows(self.sizes, self.sections)
        self.record: Record = {
            "date": facts.today(),
            "commit": facts.commit(),
            "quick": arguments.quick,
            "whole": False,
            "sections": [],
            "repetitions": 0,
            "sizes": asdict(self.sizes),
            "machine": facts.describe_machine(machine, self.processors),
            "versions": facts.versions(),
            "workers": {},
            "accuracy": {"skipped": "not asked for"},
            "rows": [{**asdict(row), "flops": None, "runs": {arm: [] for arm in row.arms}} for row in self.rows],
            "before": [],
        }
        earlier = FOLDER / f"{self.name}.json"
        self.kept = kept(read_json(earlier), self.record, self.sections, earlier) if arguments.add else None

    def measure(self) -> None:
        """All of it; what is there is written after every repetition."""
        own = list(self.record["rows"])
        if self.kept:
            self.record.update(self.kept, rows=sorted(own + self.kept["rows"], key=_place))
        for row, record in zip(self.rows, own):
            if row.section == "step":
                record["flops"] = self.child("ceiling.flops", row.settings).get("flops")
        for repetition in range(self.arguments.repetitions if self.rows else 0):
            for row, record in zip(self.rows, own):
                for arm in row.arms:
                    record["runs"][arm].append(self.arm(row, arm, repetition))
            self.record["repetitions"] = repetition + 1
            self.record["sections"] = [section for section in self.sections if section != "accuracy"]
            self.write(self.name)
        if "accuracy" in self.sections:
            self.record["accuracy"] = self.accuracy()
            self.record["sections"] = self.sections
        runs = [self.record, *self.record["before"]]
        measured = {section for run in runs for section in run["sections"]}
        self.record["whole"] = not self.arguments.quick and measured == set(self.every)
        self.write(self.name)
        if self.record["whole"]:
            self.write(self.whole)

    def arm(self, row: Row, arm: str, repetition: int) -> Record:
        settings = dict(row.settings)
        if (sweep := sweep_of(arm, settings, self.sizes)) is not None:
            settings["workers"] = self.workers(*sweep)
        found = self.child(arm, settings)
        shown = found.get("error") or (f"{found['seconds']:.4g} s for {row.unit}" if "seconds" in found else "done")
        say(
            f"{repetition + 1}/{self.arguments.repetitions}  {SECTIONS[row.section]}, {row.name}, "
            f"{name_of(arm)}: {shown}"
        )
        return {**found, **({"workers": settings["workers"]} if "workers" in settings else {})}

    def workers(self, arm: str, settings: Record) -> int:
        """The number of workers with which ``arm`` is fastest here, measured at its first use and kept."""
        module, function = arm.split(".")
        what = f"step, {settings['encoder']}, batch {settings['batch']}" if function == "step" else "data path"
        key = f"{NAMES[module]}: {what}"
        if self.arguments.workers is not None:
            self.record["workers"][key] = {"chosen": self.arguments.workers, "seconds": {}}
        if key not in self.record["workers"]:
            counts = worker_counts(len(self.processors))[: 2 if self.arguments.quick else None]
            found = {count: self.child(arm, {**settings, "workers": count}).get("seconds") for count in counts}
            measured = {count: seconds for count, seconds in found.items() if seconds is not None}
            if not measured:
                raise UserError(f"{key}: no number of workers could be measured; what went wrong is above")
            best = min(measured, key=measured.get)
            self.record["workers"][key] = {"chosen": best, "seconds": found}
            say(f"{key}: fastest with {best} workers of {', '.join(map(str, found))}")
        return self.record["workers"][key]["chosen"]

    def accuracy(self) -> Record:
        """The peer and then ours, each to the goal; or one line that says why not."""
        asked, path = self.arguments, Path(self.arguments.images)
        if reason := unusable(path):
            say(f"accuracy: skipped, {reason}")
            return {"skipped": reason}
        common = {
            "images": str(path),
            "goal": asked.goal,
            "limit": 60 * asked.limit_minutes,
            "share": asked.share,
            "seed": asked.seed,
        }
        peer = dict(common, batch=asked.peer_batch)
        peer["workers"] = self.workers(*sweep_of("leftthomas.step", {**peer, "encoder": "small"}, self.sizes))
        return {
            **common,
            "images": read_about(path)["source"],
            "peer": self.child("accuracy.leftthomas", peer),
            "ours": self.child("accuracy.ours", {**common, "changes": asked.ours}),
        }

    def child(self, arm: str, settings: Record) -> Record:
        """The record that the arm's own process prints last, or ``error``; its messages go to the terminal."""
        count = str(self.threads)
        environment = {
            **os.environ,
            "ENGRAM_THREADS": count,
            "OMP_NUM_THREADS": count,
            "MKL_NUM_THREADS": count,
            "PYTHONWARNINGS": "ignore",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.arm", arm, json.dumps(settings)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            preexec_fn=lambda: os.sched_setaffinity(0, self.processors),
        )
        try:
            printed = process.communicate()[0]
        except BaseException:  # it is interrupted too, and may have trainings of its own to end
            process.wait()
            raise
        if process.returncode:
            say(f"{arm} failed with status {process.returncode}; the run goes on without it")
            return {"error": f"failed with status {process.returncode}"}
        return json.loads(printed.splitlines()[-1])

    def write(self, name: str) -> None:
        page = document(self.record)
        write_json(FOLDER / f"{name}.json", self.record)
        write_text(FOLDER / f"{name}.md", page)
        self.written = FOLDER / f"{name}.md"

    def failed(self) -> bool:
        runs = [run for record in self.record["rows"] for arm in record["runs"].values() for run in arm]
        runs += [self.record["accuracy"].get(arm, {}) for arm in ("peer", "ours")]
        uncounted = any(record["section"] == "step" and record["flops"] is None for record in self.record["rows"])
        return uncounted or any("error" in run for run in runs)


def kept(earlier: Record, now: Record, sections: list[str], path: Path = FOLDER / "partial.json") -> Record:
    """What a run of ``sections`` keeps of an ``earlier`` record, read from ``path``.

    Raises:
        UserError: it was measured on another machine, with other versions or sizes.
    """
    if not {"before", "sections", "sizes", "machine", "versions", "rows"} <= earlier.keys():
        raise UserError(
            f"{path} is of another version of this benchmark; --add needs one of this: run all sections again"
        )
    sizes = earlier["sizes"].keys() & now["sizes"].keys()  # a section that is new may bring a size of its own
    unknown = {"gpu": None, "compile": "off"}  # to records of before
    same = [
        json.dumps(
            [
                {**unknown, **found["machine"], "load": None, "quiet": None},
                found["versions"],
                {name: found["sizes"][name] for name in sorted(sizes)},
            ],
            sort_keys=True,
        )
        for found in (earlier, now)
    ]
    if same[0] != same[1]:
        raise UserError(
            f"{path} was measured on another machine, or with other versions or sizes; --add needs the "
            "same: run all sections again"
        )
    last = {
        **{key: earlier[key] for key in ("date", "commit", "sections")},
        **{key: earlier["machine"][key] for key in ("load", "quiet")},
    }
    runs = [*earlier["before"], last]
    runs = [{**run, "sections": [name for name in run["sections"] if name not in sections]} for run in runs]
    return {
        "before": [run for run in runs if run["sections"]],
        "workers": earlier["workers"],
        "rows": [row for row in earlier["rows"] if row["section"] not in sections],
        "accuracy": now["accuracy"] if "accuracy" in sections else earlier["accuracy"],
    }


def _place(row: Record) -> int:
    return list(SECTIONS).index(row["section"])


def unusable(path: Path) -> str:
    """Why time to accuracy cannot be measured with the images of ``path``; empty if it can."""
    how = "`python -m lib.preset cpu && dvc repro download` gets CIFAR-10 (or set dataset and images_path)"
    if not path.is_file():
        return f"{path} does not exist; {how}"
    about = read_about(path)
    if about["dataset"] not in ("cifar10", "images") or about["image_size"] != 32:
        return (
            f"{path} holds {about['dataset']} of {about['image_size']} pixels; it needs cifar10, or images, "
            f"of 32: {how}"
        )
    return ""


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__.split("\n", 1)[0])
    parser.add_argument("sections", nargs="*", metavar="section", help=f"{', '.join(SECTIONS)}; without one, all")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--add", action="store_true", help="to the sections of the last run, of this machine")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works: numbers mean nothing")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--workers", type=int, help="of the peers' data loaders; without it, the fastest number")
    race = parser.add_argument_group("time to accuracy")
    race.add_argument("--goal", type=float, default=55.0, help="validation kNN in percent (55)")
    race.add_argument("--limit-minutes", type=float, default=240.0, help="training after which an arm is stopped (240)")
    race.add_argument("--share", type=float, default=0.25, help="of an epoch between two evaluations (0.25)")
    race.add_argument(
        "--ours",
        action="append",
        metavar="key=value",
        help=f"a change to preset cpu for ours, may be repeated ({', '.join(RACE)})",
    )
    race.add_argument("--peer-batch", type=int, default=256, help="the recipe's batch (256)")
    race.add_argument("--seed", type=int, default=0)
    race.add_argument("--images", default=str(IMAGES_FILE), help=f"data file with real images ({IMAGES_FILE})")
    arguments = parser.parse_args()
    for section in arguments.sections:
        if section not in SECTIONS:
            parser.error(f"there is no section {section!r}; sections: {', '.join(SECTIONS)}")
        if arguments.device == "cuda" and section not in CUDA_SECTIONS:
            parser.error(f"section {section} is of a CPU alone; with --device cuda: {', '.join(CUDA_SECTIONS)}")
    if arguments.workers is not None and arguments.workers < 0:
        parser.error(f"--workers is {arguments.workers}; allowed: at least 0")
    if arguments.repetitions < 1:
        parser.error(f"--repetitions is {arguments.repetitions}; allowed: at least 1")
    arguments.ours = arguments.ours or list(RACE)
    return arguments


def main() -> None:
    arguments = parse()
    name = NAMES_OF_FILES[arguments.device][1]
    try:
        bench = Bench(arguments)
        if not bench.record["machine"]["quiet"]:
            say(f"the machine is not quiet (load {bench.record['machine']['load']}): the report will say so")
        bench.measure()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(f"interrupted; repetitions that were finished are in bench/{name}.md", file=sys.stderr)
        sys.exit(130)
    print(bench.written.read_text())
    say(f"written: {bench.written}, {bench.written.with_suffix('.json')}")
    if bench.failed():
        sys.exit("error: some measurements failed; they are marked in the report and what went wrong is above")


if __name__ == "__main__":
    main()
