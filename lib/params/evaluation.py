"""What the stages after pretraining read: probe, nearest neighbors, memory, t-SNE, transfer of filters."""

from dataclasses import dataclass

from lib.params.spec import param

LABEL_DRAWS = 5  # of each share of the labels
STUDY_EPOCHS = 50  # of the study's own protocol: the best of fewer is another number, and no table shows it


@dataclass(frozen=True)
class Linear:
    """The linear probe, which has no settings of its own, or fine-tuning, which has three.

    ``labels``: shares of the training labels; below 1 the main latent has `LABEL_DRAWS` draws of each in a table apart.
    ``study_epochs: 0`` leaves out the study's own protocol; tables show it for `STUDY_EPOCHS` alone.
    """

    mode: str = param("probe", choices=("probe", "finetune"))
    labels: tuple[float, ...] = param((1.0,), above=0, high=1)
    finetune_epochs: int = param(50, low=1)
    finetune_batch_size: int = param(256, low=1)
    finetune_lr: float = param(1e-4, above=0, high=1)
    study_epochs: int = param(STUDY_EPOCHS, low=0)


@dataclass(frozen=True)
class Knn:
    """Weighted nearest neighbors in cosine similarity."""

    k: int = param(200, low=1)
    temperature: float = param(0.1, above=0)


@dataclass(frozen=True)
class Memory:
    """Cues of each image from the family of augmentations that training used."""

    draws: int = param(4, low=1, high=100)


@dataclass(frozen=True)
class Tsne:
    """t-SNE of test latents; ``points`` are the first of a fixed draw, the same for all variants."""

    points: int = param(5000, low=4)
    perplexity: float = param(30.0, low=1)
    iterations: int = param(1000, low=250)
    seed: int = param(0, low=0, high=2**31 - 1)


MANY_CLASSES = 20  # from here on top-5 tells something
FILTERS_ENCODER, SMALLEST_TRANSFER = "shallow", 16  # the encoder whose filters a classifier takes; its images' pixels


@dataclass(frozen=True)
class Transfer:
    """A classifier that starts from learned filters, against others; ``lr`` is a tenth of it in the last third.

    ``source``: a filters file that this stage wrote with other images; empty: the variant's own filters.
    ``double_softmax`` repeats the source's slip, a softmax before the cross entropy.
    """

    source: str = param("")
    epochs: int = param(100, low=1)
    batch_size: int = param(128, low=2)
    lr: float = param(1e-3, above=0, high=1)
    double_softmax: bool = param(False)
