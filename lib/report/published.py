"""The accuracies that the study published, shown beside ours and marked as published."""

from dataclasses import dataclass

from lib.params.pretraining import Optimizer

# the options of the study's methods, in the words of params.yaml
OPTIONS = {"temperature": 0.5, "projector_hidden": 512, "projector_out": 128}
SOURCE = "README of github.com/jungsunyoo/uci-fall2020-psych239-neuralnet-machine-learning"


@dataclass(frozen=True)
class Published:
    """Accuracies in percent of the best test epoch of a linear layer on the frozen encoder."""

    model: str
    top1: float
    top5: float
    gamma: float | None
    dataset: str = "cifar10"
    encoder: str = "resnet50"
    epochs: int = 100
    batch_size: int = 256
    study_epochs: int = 50
    optimizer: Optimizer = Optimizer()


ROWS = (
    Published("simclr", 85.15, 99.60, None),
    Published("joint", 83.80, 99.44, 0.01),
    Published("dual", 82.84, 99.45, 0.01),
)
