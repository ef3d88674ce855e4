"""CMC, contrastive multiview coding (Tian, Krishnan and Isola 2019; docs/methods.md, 11): lightness against color.

The two views are not two crops but the channels of one: an encoder of half width reads L, another a and b of Lab, and
each must tell from the other's code which image it is.

B images of a batch, D features, n images of the bank, m negatives of each image. Each loss is one direction, one
view's embeddings that look for those of the other; the objective is the sum of both.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.encoders import build_encoder
from lib.methods.base import WIDEST, DataFacts, Named, PixelMethod, full_precision, l2_normalize, pool
from lib.params.pretraining import Pretraining
from lib.params.spec import param
from lib.runtime.seeds import generator
from lib.views.lab import normalized_lab

SIDES = ("l", "ab")


def in_batch(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Each L2-normalized query [B, D] must find the key [B, D] of its own image: mean of -log softmax, in nats.

    Both carry a gradient.
    """
    logits = _cosines(queries, keys) / temperature  # [B, B]
    return functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def bank_logits(queries: Tensor, bank: Tensor, own: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Cosines over temperature of each query with its own row of the bank, then with its negatives: [B, 1 + m].

    Queries [B, D] and the other view's bank [n, D], which gets no gradient, are L2-normalized; ``own`` and
    ``negatives``, int64 [B] and [B, m], are rows of the bank.
    """
    # logits of the whole bank are picked from: B n numbers instead of the B m D of the negatives' rows
    logits = _cosines(queries, bank.detach()) / temperature  # [B, n]
    return logits.gather(1, torch.cat([own[:, None], negatives], 1))


def softmax_error(logits: Tensor) -> Tensor:
    """Mean of -log softmax at the first column, in nats; logits [B, 1 + m]. Equal logits: log(1 + m)."""
    return (logits.logsumexp(1) - logits[:, 0]).mean()


def nce_error(logits: Tensor, log_normalizer: Tensor, images: int) -> Tensor:
    """Noise-contrastive estimation: is a row the image's own, or one of m drawn evenly from n? Mean over B.

    With P = exp(logit) / Z, for logits [B, 1 + m] and n ``images``, it is -log(P / (P + m / n)) at the first column,
    and the sum of -log((m / n) / (P + m / n)) over the others. P = 1 / n everywhere: log(1 + m) + m log(1 + 1 / m).
    """
    noise = math.log((logits.shape[1] - 1) / images)  # a plain number: a tensor of it would make the host wait
    odds = logits - log_normalizer - noise  # log of P n / m
    return (functional.softplus(-odds[:, 0]) + functional.softplus(odds[:, 1:]).sum(1)).mean()


def first_log_normalizer(logits: Tensor, images: int) -> Tensor:
    """log Z, with Z the mean of exp(logit) over a batch, times the number of images: [], without gradient.

    A logarithm, because exp of a logit of 100, a cosine of 1 at temperature 0.01, is beyond fp32.
    """
    return logits.detach().flatten().logsumexp(0) + math.log(images / logits.numel())


@full_precision
def _cosines(first: Tensor, second: Tensor) -> Tensor:
    """[N, D] x [M, D], L2-normalized -> [N, M]."""
    return first @ second.T


@dataclass(frozen=True)
class CMCOptions:
    """``form``: where the negatives are: in the batch, or in a memory bank of all images (softmax, or NCE).

    ``negatives`` of each image and ``bank_momentum``, the share of its old row that an image keeps, are for the
    forms with a bank. ``outputs``: units of each head.
    """

    form: str = param("batch", choices=("batch", "bank", "nce"))
    temperature: float = param(0.1, above=0)
    outputs: int = param(128, low=2, high=WIDEST)
    negatives: int = param(4096, low=1, high=2**20)
    bank_momentum: float = param(0.5, low=0, high=0.9999)


class SplitEncoder(nn.Module):
    """Two encoders of half width: Lab [B, 3, S, S] -> map [B, width, s, s]."""

    lightness: Any
    color: Any

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.lightness = build_encoder(name, inputs=1, width=0.5)
        self.color = build_encoder(name, inputs=2, width=0.5)
        self.width: int = self.lightness.width + self.color.width

    def forward(self, lab: Tensor) -> Tensor:
        return torch.cat([self.lightness(lab[:, :1]), self.color(lab[:, 1:])], 1)

    def about(self) -> dict[str, object]:
        return {**self.lightness.about(), "inputs": "L and ab", "width": self.width}


class CMC(PixelMethod):
    """One crop, two encoders; the main latent ``h`` is ``l`` and ``ab`` one after the other."""

    Options = CMCOptions
    needs = ("indices",)
    without_effect = (("form", "batch", ("negatives", "bank_momentum"), "bank or nce"),)
    encoder: SplitEncoder
    bank_l: Tensor  # [n, outputs], as bank_ab
    bank_ab: Tensor
    log_normalizers: Tensor  # [2], of NCE for l and ab; -inf: no batch seen yet

    def __init__(self, options: CMCOptions, params: Pretraining) -> None:
        super().__init__(options, params)
        if (gray := params.augment.grayscale) > 0:
            allowed = "allowed with cmc: 0, because gray images have no color to tell them by"
            self.refuse("augment.grayscale", f"{gray:g}", f"; {allowed}")
        self.heads = nn.ModuleDict({side: nn.Linear(self.encoder.width // 2, options.outputs) for side in SIDES})
        for side in SIDES if options.form != "batch" else ():
            self.register_buffer(f"bank_{side}", torch.empty(0, options.outputs))  # as long as the data
        if options.form == "nce":
            self.register_buffer("log_normalizers", torch.full((len(SIDES),), -torch.inf))
        self.latest: Named = {}  # what the banks take up after the step

    def network(self, params: Pretraining) -> nn.Module:
        return SplitEncoder(str(params.encoder))

    def setup(self, facts: DataFacts) -> None:
        super().setup(facts)
        for number, side in enumerate(SIDES if self.options.form != "batch" else ()):
            stream = generator(self.params.seed, "memory bank", number)
            rows = l2_normalize(torch.randn(facts.count, self.options.outputs, generator=stream))
            setattr(self, f"bank_{side}", rows.to(self.mean.device))

    def latents(self, images: Tensor) -> Named:
        h = pool(self.encoder(normalized_lab(images, self.mean, self.std)))
        return {"h": h, **dict(zip(SIDES, h.chunk(2, 1)))}

    def project(self, latents: Named) -> Named:
        return {f"z_{side}": l2_normalize(self.heads[side](latents[side])) for side in SIDES}

    def embed(self, views: list[Tensor]) -> Named:
        return self.embed_view(views[0])

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        if self.options.form == "batch":
            light, color, temperature = embeddings["z_l"], embeddings["z_ab"], self.options.temperature
            find_ab, find_l = in_batch(light, color, temperature), in_batch(color, light, temperature)
        else:
            find_ab, find_l = self._in_bank(embeddings)
        return find_ab + find_l, {"find_ab": find_ab, "find_l": find_l}

    def _in_bank(self, embeddings: Named) -> tuple[Tensor, Tensor]:
        """Lightness against the bank of color, and color against that of lightness."""
        own, count, options = embeddings["indices"], len(self.bank_l), self.options
        # negatives are drawn evenly from the other images; the image itself is left out
        drawn = torch.randint(count - 1, (len(own), options.negatives), device=own.device)
        negatives = drawn + (drawn >= own[:, None])
        find_ab = bank_logits(embeddings["z_l"], self.bank_ab, own, negatives, options.temperature)
        find_l = bank_logits(embeddings["z_ab"], self.bank_l, own, negatives, options.temperature)
        self.latest = {"own": own, **{side: embeddings[f"z_{side}"].detach() for side in SIDES}}
        if options.form == "bank":
            return softmax_error(find_ab), softmax_error(find_l)
        # NCE's normalizers are those of the first batch for good
        first = torch.stack([first_log_normalizer(logits, count) for logits in (find_l, find_ab)])
        logs = torch.where(self.log_normalizers.isfinite(), self.log_normalizers, first)
        self.latest["log_normalizers"] = logs
        return nce_error(find_ab, logs[1], count), nce_error(find_l, logs[0], count)

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        """The step's images move their rows of the bank."""
        latest, self.latest = self.latest, {}
        for side in SIDES if latest else ():
            bank, own, keep = getattr(self, f"bank_{side}"), latest["own"], self.options.bank_momentum
            bank[own] = l2_normalize(keep * bank[own] + (1 - keep) * latest[side])
        if "log_normalizers" in latest:
            self.log_normalizers.copy_(latest["log_normalizers"])

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
        """A bank is as long as the data that it was made for, which a file tells and `Options` does not."""
        for name in (f"bank_{side}" for side in SIDES):
            if prefix + name in state and hasattr(self, name):
                setattr(self, name, getattr(self, name).new_empty(state[prefix + name].shape))
        super()._load_from_state_dict(state, prefix, *rest)


METHOD = CMC
