"""The measured parts of docs/scaling.md: ``python -m lib.report.scaling [--price 2.0] [--speeds FILE]``.

What variants side by side gain, and the planning table.

Speeds are measured (``make bench``, a recorded run, steps recorded on a GPU) or published by others. Memory is
counted from the shapes of tensors, which are never filled. The rest is arithmetic.
"""

import argparse
import statistics
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from pandas import read_csv
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from lib.core.progress import duration
from lib.encoders import build_encoder
from lib.errors import UserError
from lib.files import read_json, size, write_text
from lib.params.spec import load_yaml
from lib.report.record import RECORDS

PAGE, BENCH = Path("docs/scaling.md"), Path("bench/results.json")
TABLE, BESIDE = "table", "side by side"  # parts of the page that are written here, between their markers
MEASURED_SIZE = 32  # pixels, of the bench's images and of the published ones
SOURCE = "README of github.com/dkobak/simclr-cifar10, batch 512, their code, images augmented by 16 CPU workers"
BATCH, VIEWS = 256, 2
ADAM = 16  # bytes per parameter: itself, its gradient and Adam's two averages, in fp32
PRICE, GPU_MEMORY, LINK = 2.0, 80e9, 1.25e9  # assumed: USD per GPU hour, bytes, bytes per second (10 Gbit/s Ethernet)


class Task(NamedTuple):
    """So many training images of ``pixels`` x ``pixels``, seen ``epochs`` times. ``data``: their bytes as uint8 RGB."""

    name: str
    images: int
    pixels: int
    epochs: int

    @property
    def data(self) -> int:
        return self.images * 3 * self.pixels**2


TASKS = (Task("CIFAR-10", 50_000, 32, 100), Task("ImageNet-64", 1_281_167, 64, 100), Task("1 B images", 10**9, 64, 1))


class Speed(NamedTuple):
    """Images per second at MEASURED_SIZE; every image is seen in two views. ``note``: what else is known of it."""

    encoder: str
    device: str
    images_per_second: float
    origin: str
    note: str

    def at(self, pixels: int) -> float:
        """Images per second at another size, in proportion to the work of an image."""
        return self.images_per_second * work(self.encoder, MEASURED_SIZE) / work(self.encoder, pixels)


GPU_STEPS = "*/steps.csv"  # below RECORDS
PUBLISHED = [Speed(encoder, "A100", 50_000 / seconds, "published", f"an epoch of 50,000 in {seconds} s")
             for encoder, seconds in (("resnet18", 11.9), ("resnet50", 36.9))]


def default_source() -> Path:
    """The record of ``make bench``, or else the curves of the newest record of a run.

    Raises:
        UserError: there is neither.
    """
    found = [*sorted(RECORDS.glob("*/curves.csv")), *([BENCH] if BENCH.exists() else [])]
    if not found:
        raise UserError(f"there is neither {BENCH} nor a record in {RECORDS}; run make bench")
    return found[-1]


def measured_speeds(path: Path) -> tuple[list[Speed], str]:
    """This code's speeds from a record of ``make bench`` or a record's curves.csv, and how they were measured.

    Raises:
        UserError: the record is of a quick run, or holds no step.
    """
    if path.suffix == ".csv":
        curves, params = read_csv(path), load_yaml(path.with_name("params.yaml"))
        curves = curves.dropna(subset=["images_per_second"])  # encoders that were not trained have none
        if "variant" in curves:  # one system's, where a record has several
            curves = curves[curves.variant == curves.variant.iloc[0]]
        rate = curves.images_per_second.median()
        memory = f", peak memory {size(1e9 * curves.memory_gb.max())}" if "memory_gb" in curves else ""
        speed = Speed(params["encoder"], curves.device.iloc[0], rate, "measured", f"median epoch{memory}")
        return [speed], "its README says what else the machine did meanwhile"
    bench, speeds = read_json(path), []
    for row in bench["rows"]:
        runs = [run for run in row["runs"].get("ours.step", []) if "seconds" in run]
        if runs and row["section"] == "step":
            batch, memory = row["settings"]["batch"], max(run["memory"] for run in runs) * 2**20
            about = bench["machine"]
            device = f"{about.get('gpu') or 'cpu'} x1, {about['threads']} threads, {runs[0]['precision']}"
            rate = batch / statistics.median(run["seconds"] for run in runs)
            note = f"batch {batch}, peak memory of the whole process {size(memory)}"
            speeds.append(Speed(row["settings"]["encoder"], device, rate, "measured", note))
    speeds = list({speed.encoder: speed for speed in speeds}.values())  # of several batches the last, the largest
    if bench["quick"] or not speeds:
        raise UserError(f"{path} holds no step of a run that is not quick; make one with make bench BENCH=step")
    when = _run_of(bench, "step")
    return speeds, f"make bench, {when['date']}, {bench['machine']['processor']}, load {when['load']}"


def gpu_speeds() -> tuple[list[Speed], Path | None]:
    """This code's speeds on a GPU from the newest record of steps, and where it is; of several batches the largest."""
    found = sorted(RECORDS.glob(GPU_STEPS))
    if not found:
        return [], None
    steps = read_csv(found[-1]).sort_values("batch").drop_duplicates("encoder", keep="last")
    return [Speed(row.encoder, row.device, row.images_per_second, "measured",
                  f"batch {row.batch}, {row.memory_gib:g} GiB of GPU memory") for row in steps.itertuples()], found[-1]


@cache
def work(encoder: str, pixels: int) -> int:
    """Floating-point operations of one view, forward and backward."""
    with torch.device("meta"):
        network, view = build_encoder(encoder), torch.empty(1, 3, pixels, pixels)
    with FlopCounterMode(display=False) as counter:
        network(view).sum().backward()
    return counter.get_total_flops()


@cache
def activations(encoder: str, pixels: int) -> int:
    """Bytes that autograd keeps of one view for the backward pass in bf16: half of what it keeps in fp32."""
    with torch.device("meta"):
        network = build_encoder(encoder).train()
    few, more = (_kept(network, views, pixels) for views in (2, 4))  # the difference is without the weights
    return (more - few) // 2 // 2


def _kept(network: torch.nn.Module, views: int, pixels: int) -> int:
    """Bytes of all tensors that autograd keeps in fp32, each storage once."""
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.empty(views, 3, pixels, pixels, device="meta"))
    return sum(storage.nbytes() for storage in kept.values())


@cache
def parameters(encoder: str) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in build_encoder(encoder).parameters())


def working_memory(encoder: str, pixels: int) -> int:
    """Bytes on a device beside the images: a batch's activations, the parameters with what trains them."""
    return BATCH * VIEWS * activations(encoder, pixels) + ADAM * parameters(encoder)


def document(path: Path, price: float = PRICE) -> str:
    """The table, where its speeds come from and its arithmetic, as markdown. ``path``: as in `measured_speeds`."""
    measured, how = measured_speeds(path)
    recorded, steps = gpu_speeds()
    rows = [_row(task, speed, price) for task in TASKS for speed in (*measured, *recorded, *PUBLISHED)]
    head = ["Images", "Encoder", "Device", "images/s", "One epoch", "Images' memory", f"Memory besides, batch {BATCH}",
            "Epochs", "Time", "Cost"]
    table = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * 3 + ["---:"] * 7, *rows)]
    own, gpu, theirs = ("; ".join(f"{speed.encoder} {speed.images_per_second:,.0f} images/s ({speed.note})"
                                  for speed in speeds) for speeds in (measured, recorded, PUBLISHED))
    sources = [f"- **Measured**: {own}. From [{path.as_posix()}](../{path.as_posix()}); {how}."]
    if recorded:
        place = steps.relative_to(PAGE.parent).as_posix()
        sources += [f"- **Measured on a GPU**, {recorded[0].device}: {gpu}; one run each. From [{place}]({place})."]
    sources += [f"- **Published, not measured here**: {theirs}; {SOURCE}."]
    task, speed = TASKS[1], (recorded or PUBLISHED)[-1]
    arithmetic = [f"- {line}" for line in _arithmetic(speed, task, price)]
    return "\n".join([*table, "", *sources, "", f"The arithmetic, for {task.name} with {speed.encoder} on an "
                      f"{speed.device}:", "", *arithmetic, ""])


def side_by_side_gain(path: Path) -> str:
    """What variants side by side gain by a record of ``make bench``, as markdown: ratios within each repetition."""
    bench = read_json(path) if path.exists() else {"rows": []}
    lines = []
    for row in bench["rows"]:
        if row["section"] == "pipeline" and (both := _both(row, "pipeline.side_by_side", "pipeline.in_turn")):
            one, other = (statistics.median(seconds) for seconds in zip(*both))
            lines.append(f"- {row['name']}: {one:.0f} s side by side, {other:.0f} s one stage after the other "
                         f"({_told(bench, 'pipeline', both)})")
        if row["section"] == "parts" and (both := _both(row, "ours.step", "parts.side_by_side")):
            ratio = statistics.median(alone / shared for alone, shared in both)
            lines.append(f"- {row['settings']['encoder']}: {bench['machine']['threads']} trainings, one for each "
                         f"processor, together do {ratio:.2f} times the steps of one training with all processors "
                         f"({_told(bench, 'parts', both)})")
    if not lines:
        return "Not measured.\n"
    return "\n".join([f"Measured, from [{path.as_posix()}](../{path.as_posix()}):", "", *lines, ""])


def _both(row: dict, *arms: str) -> list[tuple[float, ...]]:
    """The seconds of some arms in each repetition that measured them all."""
    seconds = ([run.get("seconds") for run in row["runs"].get(arm, [])] for arm in arms)
    return [each for each in zip(*seconds) if None not in each]


def _told(bench: dict, section: str, repetitions: list) -> str:
    count = len(repetitions)
    return f"{_run_of(bench, section)['date']}, {count} repetition{'s' if count > 1 else ''}"


def _run_of(bench: dict, section: str) -> dict:
    """When and under which load a section of a record was measured."""
    last = {"date": bench["date"], "load": bench["machine"]["load"], "sections": bench["sections"]}
    return next(run for run in [*bench["before"], last] if section in run["sections"])


def _row(task: Task, speed: Speed, price: float) -> list[str]:
    rate = speed.at(task.pixels)
    seconds = task.epochs * task.images / rate
    cost = "-" if speed.device.startswith("cpu") else f"{seconds / 3600 * price:,.2f} USD"
    return [f"{task.name}, {task.images:,} of {task.pixels} px", speed.encoder, speed.device,
            f"{rate:,.0f} ({speed.origin if task.pixels == MEASURED_SIZE else 'computed'})",
            duration(task.images / rate), size(task.data), size(working_memory(speed.encoder, task.pixels)),
            str(task.epochs), duration(seconds), cost]


def _arithmetic(speed: Speed, task: Task, price: float) -> list[str]:
    """How the numbers of one row came about."""
    before, after, rate = work(speed.encoder, MEASURED_SIZE), work(speed.encoder, task.pixels), speed.at(task.pixels)
    hours, weights = task.images / rate / 3600, parameters(speed.encoder)
    image, rest, message = task.data // task.images, working_memory(speed.encoder, task.pixels), 2 * 4 * weights
    return [f"**images/s** at {task.pixels} px = {speed.images_per_second:,.0f} x {before / 1e9:.2f} / "
            f"{after / 1e9:.2f} GFLOP a view, forward and backward = {rate:,.0f}",
            f"**One epoch** = {task.images:,} / {rate:,.0f} s = {hours:.2f} h",
            f"**Cost** = {task.epochs} epochs x {hours:.2f} h x an assumed {price:g} USD per GPU hour = "
            f"{task.epochs * hours * price:,.2f} USD",
            f"**Images** = {task.images:,} x 3 x {task.pixels} x {task.pixels} bytes = {size(task.data)}",
            f"**Besides** = {BATCH} images x {VIEWS} views x {size(activations(speed.encoder, task.pixels))} + {ADAM} "
            f"bytes x {weights:,} parameters = {size(rest)}",
            f"**{size(GPU_MEMORY)} hold** ({size(GPU_MEMORY)} - {size(rest)}) / {image:,} bytes = "
            f"{(GPU_MEMORY - rest) / image / 1e6:,.1f} million images of {task.pixels} px",
            f"**Between devices**, a step = 2 x 4 bytes x {weights:,} gradients / {8 * LINK / 1e9:g} Gbit/s = "
            f"{message / LINK:.2f} s, beside {BATCH} / {rate:,.0f} s = {BATCH / rate:.2f} s of computing"]


def markers(part: str) -> tuple[str, str]:
    return f"<!-- {part}: begin -->", f"<!-- {part}: end -->"


def write_page(page: Path, parts: dict[str, str]) -> None:
    """Put each part's text between the page's markers of that part.

    Raises:
        UserError: the page lacks the markers of one; nothing is written.
    """
    text = page.read_text()
    for part, written in parts.items():
        begin, end = markers(part)
        before, found, rest = text.partition(begin)
        _, last, after = rest.partition(end)
        if not found or not last:
            raise UserError(f"{page} lacks the markers of its {part}; put {begin} and after it {end} where it belongs")
        text = f"{before}{begin}\n{written}{end}{after}"
    write_text(page, text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the measured parts of docs/scaling.md.")
    parser.add_argument("--price", type=float, default=PRICE, help="USD per GPU hour (default: %(default)s)")
    parser.add_argument("--speeds", type=Path, help=f"a record of make bench, or a record's curves.csv ({BENCH}, or "
                        "else the newest record)")
    arguments = parser.parse_args()
    try:
        path = arguments.speeds or default_source()
        write_page(PAGE, {BESIDE: side_by_side_gain(BENCH), TABLE: document(path, arguments.price)})
        print(f"{PAGE} is written, from {path}")
    except UserError as error:
        sys.exit(f"error: {error}")
