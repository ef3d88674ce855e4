"""Processes and machines for the tests of scaling: two machines are two folders of this one."""

import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import yaml

from lib.data.store import IMAGES_FILE, save_data
from lib.params.experiment import read_experiment
from lib.resolve import VARIANTS, resolve, write_variants
from tests.examples import ROOT, images, pretraining

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
STANDALONE = ["--standalone", "--nproc-per-node", "2"]
STAGE = ["-m", "stages.pretrain", "joint"]
RESULTS = ("data/encoders/joint.safetensors", "plots/curves/joint.csv")
PATIENCE = 900  # seconds; a quiet machine needs a tenth


def start(command: list[str], folder: Path = ROOT, **settings: str) -> subprocess.Popen:
    """The command in this environment without its settings of the machine, plus ``settings``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ENGRAM_", "DVC_"))}
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ENGRAM_THREADS": "1", "ENGRAM_PRECISION": "fp32"}
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**kept, **own, **settings},
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def output(process: subprocess.Popen, status: int = 0) -> str:
    """What the process still prints until it ends, with ``status``."""
    try:
        text = process.communicate(timeout=PATIENCE)[0]
    finally:
        process.kill()
    assert process.returncode == status, text[-3000:]
    return text


def project(folder: Path, *variants: str, count: int = 96, classes: int = 2, **changes) -> Path:
    """What pretraining reads, of one machine: params.yaml, the resolved variants, images. The code is this one."""
    raw: dict = {"dataset": "digits", "variants": {}}
    for variant in variants:
        params = pretraining(variant, **changes)
        shared = ("image_size", "encoder", "batch_size", "epochs", "seed", "gamma")
        raw |= {key: getattr(params, key) for key in shared} | {"monitor": asdict(params.monitor)}
        raw["variants"][variant] = {"method": params.method, **params.options, "augment": asdict(params.augment)}
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    write_variants(resolve(read_experiment(folder / "params.yaml")), folder / VARIANTS)
    save_data(folder / IMAGES_FILE, images(count, classes=classes))
    return folder


def start_both(nodes: list[Path]) -> list[subprocess.Popen]:
    """The stage on both machines, which find each other on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    point = f"--nnodes 2 --node-rank {{}} --master-addr 127.0.0.1 --master-port {port}"
    return [
        start([sys.executable, *STAGE], folder, ENGRAM_TORCHRUN=point.format(rank)) for rank, folder in enumerate(nodes)
    ]


def written(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def same_training(first: Path, second: Path) -> bool:
    """Whether two folders hold the same encoder and curve."""
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in RESULTS)
