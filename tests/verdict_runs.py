"""Made-up runs of a rule: the small files that `lib.report.verdict` reads, and a params.yaml with the rule."""

import base64
import functools
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy
import pandas
import torch

from lib.methods import typed_options
from lib.params.experiment import Experiment, parse_experiment
from lib.runtime.files import write_arrays, write_json, write_table, write_tensors
from tests.examples import raw_params

SEEDS = [11, 12, 13, 14, 15, 16]
# what each arm's seeds scatter about: concept bits, episode bits, probe, lambda, gain of the nearest look-alikes
ARMS: dict[str, tuple[dict[str, Any], tuple[float, float, float, float | None, float]]] = {
    "simclr": ({"temperature": 0.2}, (1.80, 4.00, 80.0, 0.0, 0.0)),
    "pull": ({"temperature": 0.2, "term": "pull", "gamma": 0.0315}, (1.81, 3.98, 79.9, 0.14, 0.0)),
    "push": ({"temperature": 0.2, "term": "push", "gamma": 0.78}, (1.76, 4.07, 79.8, -0.32, 0.05)),
    # a hidden width stands for the option that is the arm's own
    "lookalikes": ({"temperature": 0.2, "projector_hidden": 256}, (1.70, 4.60, 79.7, None, 0.6)),
    "temperature 0.1": ({"temperature": 0.1}, (1.55, 4.35, 78.0, 0.0, 0.2)),
    "temperature 0.5": ({"temperature": 0.5}, (1.95, 3.40, 79.5, 0.0, -0.2)),
    "temperature 1.0": ({"temperature": 1.0}, (2.00, 2.70, 78.0, 0.0, -0.4)),
    "oracle": ({"temperature": 0.3}, (1.20, 5.00, 70.0, None, 0.9)),
    "supervised": ({"method": "supervised"}, (3.00, 2.00, 90.0, None, -0.8)),
    "untrained": ({"epochs": 0}, (0.40, 0.60, 45.0, None, -1.0)),
}
FEWER = ("temperature 0.1", "temperature 0.5", "temperature 1.0", "oracle", "supervised")
RULE = {
    "arms": {arm: f"{arm.replace(' ', '').replace('.', '')}_s" for arm in ARMS},
    "baseline": "simclr",
    "hypotheses": ["pull", "push", "lookalikes"],
    "frontier": ["temperature 0.1", "simclr", "temperature 0.5", "temperature 1.0"],
    "oracle": "oracle",
    "supervised": "supervised",
    "landmarks": ["untrained"],
    "seeds": SEEDS,
    "pilot_seeds": [1],
    "delta": 0.15,
}


def raw(**changes: Any) -> dict[str, Any]:
    """params.yaml with the rule and its variants; ``changes`` of the rule."""
    variants = {
        f"{RULE['arms'][arm]}{seed}": {"method": "simclr", **block, "seed": seed}
        for arm, (block, _) in ARMS.items()
        for seed in (SEEDS[:3] if arm in FEWER else SEEDS)
    }
    params = raw_params(variants=variants)
    params["verdict"] = {"separation": {**RULE, **changes}}
    return params


@functools.cache
def experiment() -> Experiment:
    return parse_experiment(raw())


def run(params: Experiment, variant: str, noise: float = 0.02) -> dict[str, Any]:
    """The file of one made-up run; what seeds share, arms of one seed share too."""
    rule = params.rule
    assert rule
    arm, declared = rule.arm_of[variant], params.variants[variant]
    c, e, top1, dose, gain = ARMS[arm][1]
    own, shared = (numpy.random.default_rng([declared.seed, *text.encode()]) for text in (arm, "shared"))
    draw = noise * (own.normal(size=3) + 2 * shared.normal(size=3))
    c, e, top1 = c + draw[0], e + draw[1], top1 + 10 * draw[2]

    def bits(scale: float) -> dict[str, float]:
        return {"episode_bits": e * scale, "concept_bits": c * scale}

    share = [0, 12.5, 25, 37.5, 50, 62.5, 75]
    ranks = {"1": gain, "2-5": 0.8 * gain, "6-20": 0.5 * gain, "21-100": 0.2 * gain, "rest": 0.1 * gain}
    memory = {**bits(1), "recall21": 50.0, "z": bits(0.8), "whitened": bits(1.05), "occlusion_25": bits(0.9)}
    memory |= {"occlusion_50": bits(0.5), "rotation_15": bits(0.8), "shift_4": bits(0.8), "noise_0.1": bits(0.9)}
    memory["ranks"] = {rank: 1 + value + noise * own.normal() for rank, value in ranks.items()}
    curve = [e * (1 - (each / 100) ** 1.5) for each in share]
    memory["occlusion"] = {"episode_bits": curve, "concept_bits": curve, "share": share}
    correct = own.random(1000) < top1 / 100
    return {
        "name": variant,
        "arm": arm,
        "rule": rule.digest,
        "data": "of the images",
        "versions": {"torch": "2"},
        "pretraining": replace(declared, options=asdict(typed_options(declared))).as_json(),
        "lambda": dose,
        "top1": top1,
        "knn": top1 - 8,
        "z": {"top1": top1 - 5},
        "correct": {"images": 1000, "bits": base64.b64encode(numpy.packbits(correct)).decode()},
        "memory": memory,
    }


def write_runs(folder: Path, params: Experiment, leave_out: int = 0, noise: float = 0.02) -> None:
    assert params.rule
    for variant in list(params.rule.arm_of)[: len(params.rule.arm_of) - leave_out]:
        write_json(folder / f"runs/{variant}.json", run(params, variant, noise))


def latent_record(memory: dict[str, Any]) -> dict[str, Any]:
    """As the stage memory writes what a run's file has of ranks and occlusion."""
    curve = zip(*(memory["occlusion"][key] for key in ("share", "episode_bits", "concept_bits")))
    return {
        "cues": {"trained": {"episode_bits": 1.0, "concept_bits": 1.0, "gain_by_rank": memory["ranks"]}},
        "occlusion": [{"percent": share, "episode_bits": e, "concept_bits": c} for share, e, c in curve],
    }


def write_outputs(root: Path, params: Experiment, variant: str) -> None:
    """What the pipeline's stages leave of the run that `run` tells; its curve ends at a distance of 11.2."""
    made = run(params, variant)
    memory, bits = dict(made["memory"]), numpy.frombuffer(base64.b64decode(made["correct"]["bits"]), dtype=numpy.uint8)
    fuller = {key: memory.pop(key) for key in ("ranks", "occlusion")}
    about = {"pretraining": {**made["pretraining"], "rule": made["rule"]}, "data": {"checksum": made["data"]}}
    about["versions"] = made["versions"]
    write_tensors(root / f"data/encoders/{variant}.safetensors", {"weight": torch.zeros(1)}, about)
    write_json(root / f"metrics/{variant}.json", {key: made[key] for key in ("top1", "knn", "z")})
    write_json(root / f"metrics/memory/{variant}.json", memory)
    write_json(root / f"data/memory/{variant}.json", {"main": "h", "latents": {"h": latent_record(fuller)}})
    labels = numpy.arange(made["correct"]["images"]) % 10
    predictions = numpy.where(numpy.unpackbits(bits, count=len(labels)), labels, -1)
    write_arrays(root / f"data/scores/{variant}.npz", {"labels": labels, "h": predictions})
    term = made["pretraining"]["options"].get("term")
    curve = pandas.DataFrame({"epoch": [1, 2], "loss": [5.0, 4.0], **({"distance": [15.0, 11.2]} if term else {})})
    write_table(root / f"plots/curves/{variant}.csv", curve)
