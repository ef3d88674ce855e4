"""CLAPP and Hinge-CPC (Illing et al. 2021; docs/methods.md, 10): predicting patches with a hinge loss, layer by layer.

CLAPP (``local: true``): every layer predicts its own codes and learns from its own loss; no gradient passes from
one to another. So one optimizer over all of them is the same as one for each. Hinge-CPC (``local: false``): the
last layer alone predicts, and its gradient passes through all.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from lib.encoders.vgg6 import FURTHEST, VGG6, Ahead, pairs, places_ahead
from lib.losses.cpc import any_place, false_scores, means, same_place, true_scores
from lib.losses.hinge import asynchronous, coins, synchronous
from lib.methods.base import Method, Named
from lib.params.pretraining import Pretraining
from lib.params.spec import param


@dataclass(frozen=True)
class Options:
    """``channels`` of the first layer, the last has 8 times as many; ``furthest``, rows ahead of the last prediction;
    ``gray``, whether only brightness is seen.

    ``form``: in a step an image's predictions meet true patches or others (asynchronous), or both (synchronous).
    ``negatives``: others for each prediction, drawn from ``places``: the very place of the true one in other images,
    or any place. ``asymmetric``: maps of their own for the way from predicted to predicting code, so that no weight
    is used in both directions.
    """

    channels: int = param(128, low=4, high=512)
    furthest: int = param(FURTHEST, low=1, high=FURTHEST)
    negatives: int = param(1, low=1, high=4096)
    places: str = param("same", choices=("same", "any"))
    form: str = param("asynchronous", choices=("asynchronous", "synchronous"))
    local: bool = param(True)
    asymmetric: bool = param(False)
    gray: bool = param(True)


class CLAPP(Method):
    """An encoder of patches and the maps that predict.

    Latents are the means of an image's codes: of each layer where each has a loss, the last first; else ``h``, the
    last layer's.
    """

    Options = Options
    losses = ("cpc", "hinge")
    part = "encoders/vgg6"
    own_encoder = "vgg6"
    views = 1

    def __init__(self, options: Options, params: Pretraining) -> None:
        super().__init__(options, params)
        widths = {f"layer{number}": width for number, width in enumerate(self.encoder.widths, 1)}
        self.names = list(widths) if options.local else list(widths)[-1:]
        directions = ("ahead", "back") if options.asymmetric else ("ahead",)
        self.maps = nn.ModuleDict(
            {
                f"{name}_{direction}": Ahead(widths[name], options.furthest)
                for name in self.names
                for direction in directions
            }
        )

    def network(self, params: Pretraining) -> nn.Module:
        return VGG6(self.options.channels, self.options.gray, self.options.local)

    def embed(self, views: list[Tensor]) -> Named:
        """For each layer that has a loss, the codes of an image's patches and all predictions, each in one row.

        With asymmetric maps, predictions ``ahead`` teach the predicted codes and ``back`` the predicting ones.
        """
        found = {}
        for name, codes in self._codes(views[0]).items():
            found[name] = codes.flatten(1)
            one_way = codes.detach() if self.options.asymmetric else codes
            found[f"{name}_ahead"] = self.maps[f"{name}_ahead"](one_way)
            if self.options.asymmetric:
                found[f"{name}_back"] = self.maps[f"{name}_back"](codes)
        return found

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        """The sum over the layers; the parts are the layers' losses and ``score``, the mean size of the last's scores.

        Scores have no bound, and a hinge may be met by growth alone. Each image's coin is one for all layers, but
        the two directions of asymmetric maps toss their own.
        """
        codes = embeddings[self.names[-1]]
        same = [coins(len(codes), codes.device) for _ in range(1 + self.options.asymmetric)]
        parts: Named = {}
        for name in self.names:
            parts[name], score = self._one_way(embeddings[f"{name}_ahead"], embeddings[name], same[0])
            if self.options.asymmetric:
                back, _ = self._one_way(embeddings[f"{name}_back"], embeddings[name].detach(), same[1])
                parts[name] = parts[name] + back
        return sum(parts.values()), {**parts, "score": score}

    def _one_way(self, predicted: Tensor, codes: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
        """The mean over the distances of the loss, and of the size of the scores of true patches."""
        draw = {"same": same_place, "any": any_place}[self.options.places]
        places = places_ahead(self.options.furthest)
        ahead, there = pairs(predicted, codes, self.options.furthest)
        true = true_scores(ahead, there)
        false = false_scores(ahead, there, draw(there, self.options.negatives, places))
        losses = (
            synchronous(true, false, places)
            if self.options.form == "synchronous"
            else asynchronous(true, false, same, places)
        )
        return losses.mean(), means(true.detach().abs(), places).mean()

    def allow_end_to_end_gradient(self) -> None:
        self.encoder.local = False

    def latents(self, images: Tensor) -> Named:
        found = {name: codes.mean((1, 2)) for name, codes in self._codes(images).items()}
        last = found.pop(self.names[-1])
        return {self.names[-1] if found else "h": last, **found}

    def project(self, latents: Named) -> Named:
        """None: the loss acts on patches, not on an image's latent."""
        return {}

    def _codes(self, images: Tensor) -> Named:
        """Of the layers that have a loss: [B, 7, 7, D] by name."""
        return dict(zip(self.names, self.encoder(images)[-len(self.names) :]))


METHOD = CLAPP
