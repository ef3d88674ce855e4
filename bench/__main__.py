"""Measure this project and other implementations side by side: ``python -m bench step data --repetitions 5``.

A repetition goes through all arms of a section in turn, so that what is compared is measured close together. Each
section takes its place in bench/results.md and bench/results.json, a GPU's in bench/cuda.*. Linux alone.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.machine import facts
from bench.plan import ROWS, SECTIONS, TIMES, USUAL, name_of
from bench.report import document
from lib.data.store import IMAGES_FILE
from lib.runtime.files import read_json, write_json, write_text
from lib.runtime.machine import read_machine

Record = dict[str, Any]


def main() -> None:
    asked = parse()
    chosen = {"DEVICE": asked.device, "PROCESSES": "1", "COMPILE": "auto", "PRECISION": "auto", "TORCHRUN": ""}
    os.environ |= {f"ENGRAM_{name}": value for name, value in chosen.items()}
    machine = read_machine()
    threads = {name: str(machine.threads) for name in ("ENGRAM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ |= {**threads, "PYTHONWARNINGS": "ignore"}
    path = Path("bench") / {"cpu": "results.json", "cuda": "cuda.json"}[asked.device]
    results = read_json(path) if path.exists() and not asked.quick else {}
    workers = min(16, machine.threads)
    for section in asked.sections or USUAL[asked.device]:
        if section == "accuracy" and not IMAGES_FILE.is_file():
            say(f"accuracy: skipped, {IMAGES_FILE} does not exist; python -m lib preset cpu && dvc repro download")
            continue
        how = f"{workers} workers in the others' data loaders; repetitions: {asked.repetitions}"
        how = f"tiny sizes, the numbers mean nothing; {how}" if asked.quick else how
        results[section] = {**facts(machine), "about": how, "rows": measure(section, asked, workers)}
        if not asked.quick:
            write_json(path, results)
            write_text(path.with_suffix(".md"), document(results))
    print(document(results))
    runs = [run for found in results.values() for row in found["rows"] for arm in row["runs"].values() for run in arm]
    if {} in runs:
        sys.exit("error: some measurements failed; what went wrong is above")


def measure(section: str, asked: argparse.Namespace, workers: int) -> list[Record]:
    """All rows of a section, every arm as often as there are repetitions; of trainings to an accuracy there is one."""
    changes = {**TIMES["quick" if asked.quick else asked.device], "workers": workers}
    rows: list[Record] = []
    for row in ROWS[section]:
        arms = list(row.arms)
        if asked.before and arms[0] in ("ours.step", "ours.data", "ours.embed"):
            arms.insert(1, arms[0].replace("ours", "before"))
        rows.append({"name": row.name, "images": row.images, "runs": {arm: [] for arm in arms}})
    repetitions = 1 if section == "accuracy" else asked.repetitions
    for repetition in range(repetitions):
        for row, found in zip(ROWS[section], rows, strict=True):
            for arm, runs in found["runs"].items():
                runs.append(child(arm, row.settings | changes, asked.before))
                took = f"{runs[-1].get('seconds') or 'no'} seconds" if runs[-1] else "failed"
                say(f"{repetition + 1}/{repetitions}  {SECTIONS[section]}, {row.name}, {name_of(arm)}: {took}")
    return rows


def child(arm: str, settings: Record, before: Path | None) -> Record:
    """The record that the arm's own process prints last; empty if it failed. Its messages go to the terminal."""
    folder = before if arm.startswith("before") else None
    command = [sys.executable, "-m", "bench.arm", arm.replace("before", "ours"), json.dumps(settings)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=folder)
    if done.returncode == 130:
        raise KeyboardInterrupt
    return {} if done.returncode else json.loads(done.stdout.splitlines()[-1])


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.split("\n", 1)[0])
    parser.add_argument("sections", nargs="*", help=f"{', '.join(SECTIONS)}; without one, those usual for the device")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--before", type=Path, help="another checkout of the project, to be measured beside this one")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works; writes nothing")
    asked = parser.parse_args()
    for section in asked.sections:
        if section not in SECTIONS:
            parser.error(f"there is no section {section!r}; sections: {', '.join(SECTIONS)}")
    if asked.repetitions < 1:
        parser.error(f"--repetitions is {asked.repetitions}; allowed: at least 1")
    return asked


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        say("interrupted; the sections that were finished are written")
        sys.exit(130)
