"""Contrastive predictive coding on patches of an image: CPC, Hinge-CPC and CLAPP (docs/methods.md, 9 and 10).

From the code of a patch, linear maps predict the codes of patches in the rows below it, and each prediction must
tell its patch from patches of other images: by InfoNCE (van den Oord et al. 2018) or by a hinge (Illing et al.
2021). A code is its own context, as in Greedy InfoMax: there is no recurrent network over the patches.

CLAPP as its authors' script has it is ``loss: hinge``, ``form: asynchronous``, ``negatives: 1``, ``places: same``,
``asymmetric: true`` and ``local: true``; Hinge-CPC is the same without ``local``; CLAPP-s is ``loss: hinge`` and
``local: true`` alone.

B images, P places in each, D features, n negatives of each prediction. The places of all K distances are laid out one
after the other and compared at once; ``places`` is how many each distance has, and each has its own mean.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from lib.encoders.vgg6 import GRID, VGG6
from lib.methods.base import Method, Named, at_least_fp32, full_precision
from lib.params.pretraining import Pretraining
from lib.params.spec import param
from lib.runtime.chunks import chunks
from lib.runtime.seeds import send

SKIP = 1  # neighboring rows share pixels, so the nearest row that is predicted is the next but one
FURTHEST = GRID - 1 - SKIP  # rows ahead, counted after those skipped


@full_precision
def true_logits(predicted: Tensor, codes: Tensor) -> Tensor:
    """u of each prediction and the patch that it is about, their plain product: [B, P, D] each -> [B, P]."""
    return (predicted * codes).sum(2)


@full_precision
def false_logits(predicted: Tensor, codes: Tensor, negatives: Tensor) -> Tensor:
    """u of each prediction and each of its n ``negatives`` [B, P, n], numbered as in codes [B * P, D]: [B, P, n]."""
    rows = codes.flatten(0, 1)
    images, places, count = negatives.shape
    # The n codes of every prediction are laid out for it, B P n D numbers in all: some places at a time fit a cache.
    parts = chunks(places, images * count * rows.shape[1])
    # `embedding` adds up a code's gradients in one order; those of rows[...] come in the order of the threads
    logits = [(embedding(negatives[:, part], rows) @ predicted[:, part, :, None]).squeeze(3) for part in parts]
    return torch.cat(logits, 1)


def draw_negatives(images: int, count: int, places: tuple[int, ...], where: str) -> Tensor:
    """``count`` patches of other images for each prediction, int64 [B, P, count], of the same distance.

    With replacement, on the CPU from torch's global generator, so that every device sees the same. ``where``: any
    place of any other image, each as likely; or the same, the very place of ``count`` other images, which are the
    same for all places of a distance.
    """
    drawn, start, own = [], 0, torch.arange(images)[:, None, None]
    for size in places:
        step = torch.randint(1, images, (images, size if where == "any" else 1, count))
        place = torch.randint(size, step.shape) if where == "any" else torch.arange(size)[:, None]
        drawn.append((own + step) % images * sum(places) + start + place)
        start += size
    return torch.cat(drawn, 1)


@full_precision
def info_nce(true: Tensor, false: Tensor, places: tuple[int, ...] = ()) -> Tensor:
    """Mean of -log softmax at the true patch, in nats, of each distance: [K]; all logits equal: log(1 + n).

    Logits are [B, P] of the true patches and [B, P, n] of the others; without ``places`` there is one distance.
    """
    return by_distance(torch.cat([true[:, :, None], false], 2).logsumexp(2) - true, places).mean(0)


@full_precision
def hinge(true: Tensor, false: Tensor, places: tuple[int, ...] = (), same: Tensor | None = None) -> Tensor:
    """True patches above 1, others below -1: mean of max(0, 1 - u) plus mean of max(0, 1 + u), of each distance [K].

    Synchronous: every prediction meets its true patch and others at once. With ``same``, bool [B], asynchronous: the
    predictions of an image meet either their true patches (``same``) or others, each mean is over the images of its
    kind, and a kind without images adds 0. With all logits 0 both forms cost exactly 2. Arguments as of `info_nce`.
    """
    pulled = by_distance(torch.relu(1 - true), places)  # [B, K]
    pushed = by_distance(torch.relu(1 + false).mean(2), places)
    if same is None:
        return (pulled + pushed).mean(0)
    return _mean_of(pulled, same) + _mean_of(pushed, ~same)


def by_distance(values: Tensor, places: tuple[int, ...]) -> Tensor:
    """Means over the places of each distance: [B, P] -> [B, K]; [B, 1] without ``places``."""
    return torch.stack([part.mean(1) for part in values.split(places or values.shape[1], 1)], 1)


def _mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """Over the chosen rows of [B, K]; 0 if there is none, without asking the device."""
    return (values * chosen[:, None]).sum(0) / chosen.sum().clamp(min=1)


@dataclass(frozen=True)
class CPCOptions:
    """``channels`` of the first layer, the last has 8 times as many; ``furthest``, rows ahead of the last prediction;
    ``gray``, whether only brightness is seen.

    ``negatives`` of each prediction, drawn from ``places``: any of other images, or the very place of the true one.
    ``form`` of the hinge: in a step an image's predictions meet true patches and others, or one kind (asynchronous),
    by a coin of the image that each layer and each direction tosses anew, as in the authors' code.
    ``local``: every layer learns from its own loss alone; no gradient passes between layers. ``asymmetric``: maps of
    their own for the way from predicted to predicting code, so that no weight is used in both directions.
    """

    loss: str = param("info_nce", choices=("info_nce", "hinge"))
    channels: int = param(128, low=4, high=512)
    furthest: int = param(FURTHEST, low=1, high=FURTHEST)
    negatives: int = param(16, low=1, high=4096)
    places: str = param("any", choices=("any", "same"))
    form: str = param("synchronous", choices=("synchronous", "asynchronous"))
    local: bool = param(False)
    asymmetric: bool = param(False)
    gray: bool = param(True)


class Ahead(nn.Module):
    """A linear map without bias for each number of rows ahead: the code it predicts there, from each patch above."""

    def __init__(self, width: int, furthest: int) -> None:
        super().__init__()
        maps = [nn.Linear(width, width, bias=False) for _ in range(furthest)]
        self.maps = nn.ModuleList(maps)
        for layer in maps:
            nn.init.normal_(layer.weight, std=1 / width)  # logits start of the order of one whatever the width

    def forward(self, codes: Tensor) -> Tensor:
        """Codes [B, 7, 7, D] -> all predictions of an image in one row, [B, P * D]."""
        rows = [layer(codes[:, : GRID - SKIP - distance]).flatten(1) for distance, layer in enumerate(self.maps, 1)]
        return torch.cat(rows, 1)


def places_ahead(furthest: int) -> tuple[int, ...]:
    """How many patches have one that is 1, 2, ... rows ahead."""
    return tuple((GRID - SKIP - distance) * GRID for distance in range(1, furthest + 1))


def pairs(predicted: Tensor, codes: Tensor, places: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """What `Ahead` predicts [B, P * D], and the codes [B, 49 * D] that are truly there: [B, P, D] each."""
    grid = at_least_fp32(codes).unflatten(1, (GRID * GRID, -1))
    there = torch.cat([grid[:, -count:] for count in places], 1)
    return predicted.view(there.shape), there


class CPC(Method):
    """An encoder of patches and the maps that predict.

    Latents are the means of an image's codes: ``h``, the last layer's; where each layer learns by itself, those of
    all, the last first. Adam moves every weight alone, so one for all layers is the same as one for each.
    """

    Options = CPCOptions
    views = 1
    without_effect = (("loss", "info_nce", ("form",), "hinge"),)
    encoder: VGG6

    @classmethod
    def reads(cls, options: CPCOptions) -> frozenset[str]:
        return frozenset()

    def __init__(self, options: CPCOptions, params: Pretraining) -> None:
        super().__init__(options, params)
        widths = {f"layer{number}": width for number, width in enumerate(self.encoder.widths, 1)}
        self.names = list(widths) if options.local else list(widths)[-1:]  # of the layers that have a loss
        self.ways = ("ahead", "back") if options.asymmetric else ("ahead",)
        self.places = places_ahead(options.furthest)
        self.maps = nn.ModuleDict(
            {f"{name}_{way}": Ahead(widths[name], options.furthest) for name in self.names for way in self.ways}
        )

    def network(self, params: Pretraining) -> nn.Module:
        return VGG6(self.options.channels, self.options.gray, self.options.local)

    def embed(self, views: list[Tensor]) -> Named:
        """For each layer that has a loss, the codes of an image's patches and all predictions, each in one row.

        With asymmetric maps, predictions ``ahead`` teach the predicted codes and ``back`` the predicting ones.
        """
        embeddings = {}
        for name, codes in self._codes(views[0]).items():
            embeddings[name] = codes.flatten(1)
            predicting = {"ahead": codes.detach() if self.options.asymmetric else codes, "back": codes}
            for way in self.ways:
                embeddings[f"{name}_{way}"] = self.maps[f"{name}_{way}"](predicting[way])
        return embeddings

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        """The sum over the layers of the mean over the distances.

        Parts are the layers' losses, or the distances' where one layer alone learns; and ``score``, the mean size of
        the true patches' logits at the last layer: they have no bound, and a hinge may be met by growth alone.
        """
        errors: Named = {}
        for name in self.names:
            codes = embeddings[name]
            errors[name], score = self._one_way(embeddings[f"{name}_ahead"], codes)
            if self.options.asymmetric:
                errors[name] = errors[name] + self._one_way(embeddings[f"{name}_back"], codes.detach())[0]
        parts = {name: error.mean() for name, error in errors.items()}
        total = torch.stack(list(parts.values())).sum()
        if not self.options.local:
            parts = {f"ahead{distance}": error for distance, error in enumerate(errors[self.names[-1]], 1)}
        return total, {**parts, "score": score}

    def _one_way(self, predicted: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each distance [K], and the mean size of the logits of true patches []."""
        options, places = self.options, self.places
        ahead, there = pairs(predicted, codes, places)
        negatives = send(draw_negatives(len(there), options.negatives, places, options.places), there.device)
        true, false = true_logits(ahead, there), false_logits(ahead, there, negatives)
        score = by_distance(true.detach().abs(), places).mean()
        if options.loss == "info_nce":
            return info_nce(true, false, places), score
        asynchronous = options.form == "asynchronous"
        same = send(torch.rand(len(there)) < 0.5, there.device) if asynchronous else None
        return hinge(true, false, places, same), score

    def allow_end_to_end_gradient(self) -> None:
        self.encoder.local = False

    def latents(self, images: Tensor) -> Named:
        means = {name: codes.mean((1, 2)) for name, codes in self._codes(images).items()}
        last = means.pop(self.names[-1])
        return {self.names[-1] if means else "h": last, **means}

    def _codes(self, images: Tensor) -> Named:
        """Of the layers that have a loss: [B, 7, 7, D] by name."""
        return dict(zip(self.names, self.encoder(images)[-len(self.names) :]))


METHOD = CPC
