"""What a memory of latents tells, in bits, of an image and of its class (docs/methods.md, 16).

The memory answers a cue q with softmax(cos(q, stored) / T). Two questions, of one scale:

    episode bits   log2 M + log2 p(own image | q)             among the M test images of a gallery
    concept bits   log2 p(own class | q) - log2 p(own class)  p(class | q): the sum over its stored training images

Their means are lower bounds of the mutual information of the latent with the image given its class, and with the class
(log2 C - cross entropy, of C equally frequent classes). T is a number for each kind of cue and question, chosen on one
half of the cues and read on the other, both ways.

Legend: N stored latents, K cues (one of each image in a gallery), D features, M images of a gallery.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from lib.evaluate.codes import is_binary
from lib.evaluate.galleries import Galleries
from lib.runtime.chunks import chunks

RANKS = {"1": (0, 1), "2-5": (1, 5), "6-20": (5, 20), "21-100": (20, 100), "rest": (100, None)}  # of look-alikes
NEAREST = 20  # look-alikes that recall is against
COLDEST, HOTTEST, PER_DECADE = -5, 1, 2  # powers of ten of T, steps of the first grid
GOLDEN_STEPS = 8  # after which T is within 3 %
FIT_CUES, FIT_ELEMENTS = 200, 2**26  # of a half that choose T of the concept bits; similarities held at a time


@dataclass(frozen=True)
class Space:
    """From latents to the unit vectors whose dot product is the memory's similarity.

    Latents are centered by the store's mean, if asked for whitened, and L2-normalized. Of binary codes the dot product
    is the share of active units that two have in common: they are not centered.
    """

    center: Tensor | None
    whitening: Tensor | None = None

    def __call__(self, latents: Tensor) -> Tensor:
        """float32 [n, D] -> [n, D], on the space's device."""
        if self.center is None:
            return functional.normalize(latents)
        centered = latents.to(self.center.device) - self.center
        return functional.normalize(centered if self.whitening is None else centered @ self.whitening)


def fit_space(store: Tensor, whitened: bool = False) -> Space:
    """The space of a store [N, D]."""
    if is_binary(store):
        return Space(None)
    center = store.mean(0)
    return Space(center, shrinkage_whitening(store - center) if whitened else None)


def shrinkage_whitening(centered: Tensor) -> Tensor:
    """Inverse square root of the covariance of centered latents [N, D], shrunk as Ledoit and Wolf (2004): [D, D]."""
    count, width = centered.shape
    parts = centered.split(4096)
    covariance = sum((part.T @ part).double() for part in parts) / count
    fourth = sum(part.double().square().sum(1).square().sum() for part in parts) / count
    identity = torch.eye(width, dtype=torch.float64, device=centered.device)
    mean = covariance.trace() / width
    spread = (covariance - mean * identity).square().sum()
    noise = ((fourth - covariance.square().sum()) / count).clamp(min=0).minimum(spread)
    share = (noise / spread).nan_to_num(1.0)
    values, vectors = torch.linalg.eigh((1 - share) * covariance + share * mean * identity)
    values = values.clamp(min=1e-12 * values[-1])  # more units than images, or a constant one
    return (vectors * values.rsqrt().nan_to_num(0.0, posinf=0.0) @ vectors.T).float()


def best_temperature(cross_entropy: Callable[[float], float]) -> float:
    """The T of least cross entropy, in nats and in sum over cues: the best of a grid, then golden sections around it.

    A nat is granted for every e-fold of T: of those that fit alike the hotter one. Where cues of one half are told
    apart without an error, any cold T fits them, and a single error in the other half would cost hundreds of bits.
    """

    def cost(point: float) -> float:
        return cross_entropy(math.exp(point)) - point

    low, high = (power * math.log(10) for power in (COLDEST, HOTTEST))
    step = math.log(10) / PER_DECADE
    grid = [low + step * number for number in range((HOTTEST - COLDEST) * PER_DECADE + 1)]
    best = min((cost(point), point) for point in grid)
    left, right = max(low, best[1] - step), min(high, best[1] + step)
    first, second = ((cost(point), point) for point in _golden(left, right))
    for _ in range(GOLDEN_STEPS):
        if first <= second:
            right, second = second[1], first
            first = (cost(point := _golden(left, right)[0]), point)
        else:
            left, first = first[1], second
            second = (cost(point := _golden(left, right)[1]), point)
    return math.exp(min(best, first, second)[1])


def _golden(left: float, right: float) -> tuple[float, float]:
    part = (5**0.5 - 1) / 2 * (right - left)
    return right - part, left + part


def log_probability(similarity: Tensor, own: Tensor, temperature: float) -> Tensor:
    """Nats of the stored image that is meant: similarities [M, N], ``own`` [M] of them -> [M]."""
    # Less the largest first: at low temperatures single precision would lose the differences that count.
    most = similarity.amax(1)
    return (own - most) / temperature - ((similarity - most[:, None]) / temperature).logsumexp(1)


def class_log_probability(similarity: Tensor, own: slice, temperature: float) -> Tensor:
    """Nats of the class that the columns ``own`` are of: similarities [n, N] less the largest of a row -> [n]."""
    scaled = similarity * (1 / temperature)
    return scaled[:, own].logsumexp(1) - scaled.exp_().sum(1).log()


def _below_largest(similarity: Tensor) -> Tensor:
    return similarity.sub_(similarity.amax(1, keepdim=True))


@dataclass
class Reading:
    """What one kind of cue gave, in sums over its draws.

    ``episode`` [K]; ``concept`` [K] in bits, of the first draw, nan for images that were not asked; ``recall`` [K];
    ``gains`` by rank [K]; the two temperatures of a question are those that half 0 and half 1 were read with.
    ``variance``: `variance_shares`, of two draws or more.
    """

    draws: int = 0
    episode: Tensor = field(default_factory=lambda: torch.zeros(()))
    recall: Tensor = field(default_factory=lambda: torch.zeros(()))
    concept: Tensor = field(default_factory=lambda: torch.full((), math.nan))
    gains: dict[str, Tensor] = field(default_factory=dict)
    temperatures: dict[str, list[float]] = field(default_factory=dict)
    variance: dict[str, float] | None = None


class LatentMemory:
    """One latent's memory, which cues are read from, kind by kind and draw by draw.

    Args:
        store: latents of clean training images [N, D], or a function that returns them where they are only held while
            they are needed; store_labels: int64 [N].
        test: latents of all clean test images.
        galleries: from `make_galleries`.
        whitened: the control in another metric.
        device: where to compute.
    """

    def __init__(
        self,
        store: Tensor | Callable[[], Tensor],
        store_labels: Tensor,
        test: Tensor,
        galleries: Galleries,
        whitened: bool = False,
        device: str = "cpu",
    ) -> None:
        self.get_store = (lambda: store) if isinstance(store, Tensor) else store
        self.galleries, self.device = galleries, device
        self.space = fit_space(self.get_store().to(device), whitened)
        self.gallery = self.space(test[galleries.images].to(device))
        self.order = store_labels.argsort(stable=True)
        ends = store_labels.bincount(minlength=int(galleries.labels.max()) + 1).cumsum(0).tolist()
        self.classes = [slice(start, end) for start, end in zip([0, *ends], ends)]  # of the store in that order
        self.readings: dict[str, Reading] = {}
        self._sums, self._squares = torch.zeros(()), 0.0  # of unit vectors, over the draws of the kind that is read

    def read(self, kind: str, cues: Tensor, concept_cues: int | None = None) -> None:
        """Read a draw of cues [K, D], in the order of the galleries' images.

        The draws of a kind follow each other. The first chooses T and gives the concept bits, of ``concept_cues``
        images if not of all. T of these is chosen on `FIT_CUES` cues: one number fitted to n costs others about
        1 / (2 n) nats.
        """
        units = self.space(cues.to(self.device))
        first = kind not in self.readings
        reading = self.readings.setdefault(kind, Reading())
        self._read_episodes(reading, units)
        if first and len(self.classes) > 1:
            self._read_concepts(reading, units, concept_cues)
        reading.draws += 1
        squares = units.square().sum().item()
        if first:
            self._sums, self._squares = units.cpu(), squares
        else:
            self._sums, self._squares = self._sums + units.cpu(), self._squares + squares
            reading.variance = variance_shares(self._sums, self._squares, reading.draws, self.galleries.labels)

    def _read_episodes(self, reading: Reading, units: Tensor) -> None:
        blocks = self.galleries.blocks
        similarities = [units[block] @ self.gallery[block].T for block in blocks]  # [M, M] each
        owns = [similarity.diagonal() for similarity in similarities]
        if "episode" not in reading.temperatures:
            fits = [(similarities[1 - half :: 2], owns[1 - half :: 2]) for half in (0, 1)]  # on the other half
            reading.temperatures["episode"] = [best_temperature(partial(_episode_loss, *fit)) for fit in fits]
        bits, recalled, gains = [], [], []
        for number, (similarity, own) in enumerate(zip(similarities, owns)):
            temperature = reading.temperatures["episode"][number % 2]
            bits.append(math.log2(len(own)) + log_probability(similarity, own, temperature) / math.log(2))
            others = similarity.gather(1, self.galleries.look_alikes[number].to(self.device))  # [M, M - 1]
            recalled.append(recall(own, others))
            gains.append(gains_by_rank(own, others, temperature))
        reading.episode = reading.episode + torch.cat(bits).cpu()
        reading.recall = reading.recall + torch.cat(recalled).cpu()
        for rank in RANKS:
            reading.gains[rank] = reading.gains.get(rank, 0.0) + torch.cat([gain[rank] for gain in gains]).cpu()

    def _read_concepts(self, reading: Reading, units: Tensor, count: int | None) -> None:
        store, half = self.space(self.get_store()[self.order].to(self.device)), self.galleries.half
        images = torch.arange(len(units))
        asked = evenly(images, len(images) if count is None else count)
        few = max(1, min(FIT_CUES, FIT_ELEMENTS // len(store)))
        reading.concept = torch.full((len(units),), math.nan)
        reading.temperatures["concept"] = []
        for own_half in (0, 1):
            fitting = self._by_class(evenly(images[half != own_half], few))
            fit = [(_below_largest(units[rows.to(self.device)] @ store.T), own) for rows, own in fitting]
            temperature = best_temperature(partial(_concept_loss, fit))
            reading.temperatures["concept"].append(temperature)
            for rows, own in self._by_class(asked[half[asked] == own_half]):
                prior = math.log((own.stop - own.start) / len(store))
                for part in chunks(len(rows), len(store)):
                    similarity = _below_largest(units[rows[part].to(self.device)] @ store.T)  # [n, N]
                    nats = class_log_probability(similarity, own, temperature) - prior
                    reading.concept[rows[part]] = nats.cpu() / math.log(2)

    def _by_class(self, rows: Tensor) -> Iterable[tuple[Tensor, slice]]:
        """Some of the K, class by class, with the place of the class in the store."""
        labels = self.galleries.labels[rows]
        for label in labels.unique().tolist():
            yield rows[labels == label], self.classes[label]

    def bits(self, kind: str) -> dict[str, Tensor]:
        """Per image, means over draws: {"episode": [K], "concept": [K]}, in bits."""
        reading = self.readings[kind]
        return {"episode": reading.episode / reading.draws, "concept": reading.concept}

    def numbers(self, kind: str) -> dict[str, object]:
        """Means over the images, rounded; what a gallery is too small for is absent."""
        reading, found = self.readings[kind], self.bits(kind)
        gains = {rank: _mean(values / reading.draws) for rank, values in reading.gains.items()}
        numbers: dict[str, object] = {
            "episode_bits": _mean(found["episode"]),
            "concept_bits": _mean(found["concept"]),
            "recall21": _mean(reading.recall / reading.draws),
            "gain_by_rank": {rank: gain for rank, gain in gains.items() if gain is not None},
            "temperatures": {
                question: [float(f"{value:.4g}") for value in values]
                for question, values in reading.temperatures.items()
            },
        }
        return {name: value for name, value in numbers.items() if value is not None}


def _episode_loss(similarities: list[Tensor], owns: list[Tensor], temperature: float) -> float:
    """Nats, in sum over the galleries of a half."""
    return -sum(log_probability(*each, temperature).sum().item() for each in zip(similarities, owns))


def _concept_loss(fit: list[tuple[Tensor, slice]], temperature: float) -> float:
    """Nats, in sum over the classes."""
    return -sum(class_log_probability(part, own, temperature).sum().item() for part, own in fit)


def recall(own: Tensor, others: Tensor) -> Tensor:
    """Whether a cue is nearer to its own image [M] than to each of its `NEAREST` look-alikes, of others [M, M - 1].

    Images that tie share it. nan: there are fewer look-alikes.
    """
    if others.shape[1] < NEAREST:
        return torch.full_like(own, math.nan)
    near = others[:, :NEAREST]
    ties = (near == own[:, None]).sum(1)
    return (own >= near.amax(1)) / (1.0 + ties)


def gains_by_rank(own: Tensor, others: Tensor, temperature: float) -> dict[str, Tensor]:
    """Bits that a cue gives on whether its own image is meant or one look-alike, mean over look-alikes of a rank: [M].

    For one competitor: 1 - log2(1 + exp((s_other - s_own) / T)); 1 where it is far behind, 0 where both are as near.
    """
    bits = 1 - functional.softplus((others - own[:, None]) / temperature) / math.log(2)
    return {rank: bits[:, start:end].mean(1) for rank, (start, end) in RANKS.items()}


def variance_shares(sums: Tensor, squares: float, draws: int, labels: Tensor) -> dict[str, float]:
    """Shares of class, image and view in the variance of unit vectors, components of a nested design; they sum to one.

    ``sums`` [K, D]: over the draws of an image; ``squares``: of all numbers. A component is what is left of the mean
    square of its level after the one below it, at least 0. As a description: no share is evidence for information.
    """
    means, classes = sums / draws, labels.unique()
    members = functional.one_hot(torch.searchsorted(classes, labels)).float()  # [K, C]
    counts = members.sum(0)
    centers = members.T @ means / counts[:, None]
    within = max(0.0, squares - draws * means.square().sum().item())
    images = draws * (means - members @ centers).square().sum().item()
    between = draws * (counts[:, None] * (centers - means.mean(0)).square()).sum().item()
    view = within / (len(sums) * (draws - 1))
    per_image = images / max(1, len(sums) - len(classes))
    per_class = between / max(1, len(classes) - 1)
    size = (len(sums) - counts.square().sum().item() / len(sums)) / max(1, len(classes) - 1)  # images of a class
    image = max(0.0, per_image - view) / draws
    components = {"class": max(0.0, per_class - per_image) / (draws * max(size, 1)), "image": image, "view": view}
    if len(classes) == 1:
        del components["class"]
    total = sum(components.values()) or 1.0
    return {name: round(value / total, 4) for name, value in components.items()}


def evenly(rows: Tensor, count: int) -> Tensor:
    """``count`` of rows [n], or all, evenly spread."""
    return rows[torch.arange(min(count, len(rows))) * len(rows) // max(1, min(count, len(rows)))]


def _mean(values: Tensor) -> float | None:
    """Rounded, without nan; None if nothing is left."""
    mean = values.double().nanmean().item()
    return None if math.isnan(mean) else round(mean, 4) + 0.0
