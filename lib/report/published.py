"""The accuracies that the study published, shown beside ours on CIFAR-10 and marked as published."""

from typing import Any

DATASET = "cifar10"  # the edition that the study used; no other images have these rows beside them
# The best test epoch of 50, of a linear layer on the frozen encoder, percent: the README of
# github.com/jungsunyoo/uci-fall2020-psych239-neuralnet-machine-learning
_SETTINGS = {"dataset": DATASET, "encoder": "resnet50", "epochs": 100, "batch_size": 256, "study_epochs": 50}
_SETTINGS["optimizer"] = "adam 0.001, constant"
ROWS: tuple[dict[str, Any], ...] = (
    {"model": "simclr (published)", "study_top1": 85.15, "study_top5": 99.60, **_SETTINGS},
    {"model": "joint (published)", "study_top1": 83.80, "study_top5": 99.44, "gamma": 0.01, **_SETTINGS},
    {"model": "dual (published)", "study_top1": 82.84, "study_top5": 99.45, "gamma": 0.01, **_SETTINGS},
)
