"""Does a sparse code collapse if nothing keeps different images apart? ``python -m tests.sparse_collapse``

Positives alone pull the two views of an image together; k winners take all keeps k units active and says nothing
of which. Trains tiny variants with and without synaptic scaling and prints how the units of the codes are used.
"""

import dataclasses
import sys

import torch
from torch import nn

from lib.core.trainer import Pretrainer
from lib.evaluate.codes import pattern_entropy, unused, usage_entropy
from lib.evaluate.features import extract
from lib.methods import build_method
from tests.examples import CPU, images, pretraining

ARMS = {
    "positives, no scaling": {"loss": "positives", "scaling": "off"},
    "positives, additive": {"loss": "positives", "scaling": "additive"},
    "positives, multiplicative": {"loss": "positives", "scaling": "multiplicative"},
    "triplets, no scaling": {"loss": "triplet", "scaling": "off"},
    "triplets, additive": {"loss": "triplet", "scaling": "additive"},
}
COUNT = 128  # images to learn from, and as many codes to measure


def codes_after(
    epochs: int, encoder: nn.Module | None = None, seed: int = 0, lr: float = 1e-3, **options
) -> list[dict[str, float]]:
    """Measures of the codes of the training images, before training and after it; ``encoder`` replaces the usual."""
    params = dataclasses.replace(
        pretraining("kwta", epochs=epochs, seed=seed, optimizer__lr=lr, batch_size=32),
        options={"units": 128, **options},
    )
    torch.manual_seed(seed)
    data = images(count=COUNT, classes=8, seed=seed)
    method = build_method(params)
    method.encoder = encoder or method.encoder
    run = Pretrainer(method, data, params, CPU)
    found = [_measures(run, data)]
    for epoch in range(epochs):
        for step, rows in enumerate(run.order(epoch)):
            loss = run.step(epoch, step, rows)[0].item()
    return [*found, {**_measures(run, data), "loss": loss}]


def _measures(run: Pretrainer, data) -> dict[str, float]:
    codes = extract(run.method, data.train_images, data.mean, data.std, CPU)["code"]
    run.method.train()
    return {"usage entropy": usage_entropy(codes), "pattern entropy": pattern_entropy(codes), "unused": unused(codes)}


def main() -> None:
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    for name, options in ARMS.items():
        before, after = codes_after(epochs, **options)
        print(
            name,
            *(f"{key} {before.get(key, float('nan')):.3f} -> {value:.3f}" for key, value in after.items()),
            sep="; ",
            flush=True,
        )


if __name__ == "__main__":
    main()
