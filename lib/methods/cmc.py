"""CMC, contrastive multiview coding (Tian, Krishnan and Isola 2019; docs/methods.md, 11): lightness against color.

The two views are not two crops but the channels of one: an encoder of half width reads L, another a and b of
Lab, and each must tell from the other's code which image it is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.encoders import build_encoder
from lib.losses.cmc import bank_scores, first_normalizer, in_batch, nce_error, softmax_error
from lib.methods.base import WIDEST, Method, Named, l2_normalize, pool, require_effect
from lib.methods.parts.lab import normalized_lab
from lib.params.pretraining import Pretraining
from lib.params.spec import param
from lib.runtime.errors import UserError
from lib.runtime.seeds import generator

SIDES = ("l", "ab")
FORMS = ("batch", "bank", "nce")


@dataclass(frozen=True)
class Options:
    """``form``: where the negatives are: in the batch, or in a memory bank of all images (softmax, or NCE).

    ``negatives`` of each image and ``bank_momentum``, the share of its old row that an image keeps, are for the
    forms with a bank. ``outputs``: units of each head.
    """

    form: str = param("batch", choices=FORMS)
    temperature: float = param(0.1, above=0)
    outputs: int = param(128, low=2, high=WIDEST)
    negatives: int = param(4096, low=1, high=2**20)
    bank_momentum: float = param(0.5, low=0, high=0.9999)


class SplitEncoder(nn.Module):
    """Two encoders of half width, of one channel and of two. Shape: Lab [B, 3, S, S] -> map [B, width, s, s]."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.lightness = build_encoder(name, inputs=1, width=0.5)
        self.color = build_encoder(name, inputs=2, width=0.5)
        self.width = self.lightness.width + self.color.width

    def forward(self, lab: Tensor) -> Tensor:
        return torch.cat([self.lightness(lab[:, :1]), self.color(lab[:, 1:])], 1)

    def about(self) -> dict[str, object]:
        """As of one encoder: the two differ in their input alone."""
        return {**self.lightness.about(), "inputs": "L and ab", "width": self.width}


class CMC(Method):
    """One crop, two encoders; the main latent ``h`` is ``l`` and ``ab`` one after the other."""

    Options = Options
    losses = ("cmc",)
    part = "methods/parts/lab"
    views = 1
    needs = ("indices",)

    def __init__(self, options: Options, params: Pretraining) -> None:
        super().__init__(options, params)
        self.seed = params.seed
        _refuse(options, params)
        half = self.encoder.width // 2
        self.heads = nn.ModuleDict({side: nn.Linear(half, options.outputs) for side in SIDES})
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))
        if options.form != "batch":
            for side in SIDES:
                self.register_buffer(f"bank_{side}", torch.empty(0, options.outputs))  # as long as the data
            self.register_buffer("normalizers", torch.zeros(len(SIDES)))  # of NCE; 0: no batch seen yet
        self.latest: Named = {}  # what the banks take up after the step

    def network(self, params: Pretraining) -> nn.Module:
        return SplitEncoder(params.encoder)

    def setup(self, mean: Tensor, std: Tensor, count: int, classes: int) -> None:
        self.mean.copy_(mean)
        self.std.copy_(std)
        if self.options.form != "batch":
            for number, side in enumerate(SIDES):
                rows = torch.randn(count, self.options.outputs, generator=generator(self.seed, "memory bank", number))
                setattr(self, f"bank_{side}", l2_normalize(rows).to(self.mean.device))

    def latents(self, images: Tensor) -> Named:
        h = pool(self.encoder(normalized_lab(images, self.mean, self.std)))
        return {"h": h, **dict(zip(SIDES, h.chunk(2, 1)))}

    def project(self, latents: Named) -> Named:
        return {f"z_{side}": l2_normalize(self.heads[side](latents[side])) for side in SIDES}

    def embed(self, views: list[Tensor]) -> Named:
        return self.project(self.latents(views[0]))

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        parts = self._in_batch(embeddings) if self.options.form == "batch" else self._in_bank(embeddings)
        return sum(parts.values()), parts

    def _in_batch(self, embeddings: Named) -> Named:
        lightness, color = embeddings["z_l"], embeddings["z_ab"]
        return {
            "find_ab": in_batch(lightness, color, self.options.temperature),
            "find_l": in_batch(color, lightness, self.options.temperature),
        }

    def _in_bank(self, embeddings: Named) -> Named:
        """Each side against the bank of the other. Negatives are drawn evenly from the other images."""
        own, count = embeddings["indices"], len(self.bank_l)
        drawn = torch.randint(count - 1, (len(own), self.options.negatives), device=own.device)
        others = drawn + (drawn >= own[:, None])  # the image itself is left out
        scores = {
            other: bank_scores(
                embeddings[f"z_{side}"], getattr(self, f"bank_{other}"), own, others, self.options.temperature
            )
            for side, other in zip(SIDES, reversed(SIDES))
        }
        self.latest = {"own": own, **{side: embeddings[f"z_{side}"].detach() for side in SIDES}}
        if self.options.form == "bank":
            return {f"find_{side}": softmax_error(found) for side, found in scores.items()}
        first = torch.stack([first_normalizer(scores[side], count) for side in SIDES])
        normalizers = self.latest["normalizers"] = torch.where(self.normalizers > 0, self.normalizers, first)
        return {f"find_{side}": nce_error(scores[side], value, count) for side, value in zip(SIDES, normalizers)}

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        """The step's images move their rows of the bank; NCE's normalizers stay those of the first step."""
        latest, self.latest = self.latest, {}
        for side in SIDES if latest else ():
            bank, own, keep = getattr(self, f"bank_{side}"), latest["own"], self.options.bank_momentum
            bank[own] = l2_normalize(keep * bank[own] + (1 - keep) * latest[side])
        if "normalizers" in latest:
            self.normalizers.copy_(latest["normalizers"])

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
        """A bank is as long as the data that it was made for, which a file tells and `Options` does not."""
        for name in (f"bank_{side}" for side in SIDES):
            if prefix + name in state and hasattr(self, name):
                setattr(self, name, getattr(self, name).new_empty(state[prefix + name].shape))
        super()._load_from_state_dict(state, prefix, *rest)


def _refuse(options: Options, params: Pretraining) -> None:
    """Settings without effect, and one that leaves nothing to learn."""
    if options.form == "batch":
        require_effect(options, params.variant, ("negatives", "bank_momentum"), "form batch", "set form to bank or nce")
    if params.augment.grayscale > 0:
        raise UserError(
            f"params.yaml: augment.grayscale is {params.augment.grayscale:g} for the variant "
            f"{params.variant}; allowed: 0, because gray images have no color to tell them by; set "
            f"variants.{params.variant}.augment.grayscale to 0"
        )


METHOD = CMC
