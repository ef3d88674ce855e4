"""Model 3 as the study ran it: two latents, one contrasted, one pulled together (docs/methods.md, 3).

The "two latents" are the two halves of the picture: the mean of the upper and of the lower half of the
encoder's final map. NT-Xent acts on the upper half's projection, gamma times the distance of the views
on the lower half's, which has nothing to keep it from collapsing.
"""

from torch import Tensor
from torch.nn import functional

from lib.losses.ntxent import nt_xent
from lib.losses.view_distance import frobenius_distance
from lib.methods.base import ContrastiveOptions, Method, Named, l2_normalize, projector
from lib.params.pretraining import Pretraining
from lib.runtime.errors import UserError

LATENTS = ("upper", "lower")


class Dual(Method):
    """Two spatial halves, two heads. The mean of the two latents is ordinary global average pooling."""

    Options = ContrastiveOptions
    losses = ("ntxent", "view_distance")
    reads_gamma = True
    halves = True

    def __init__(self, options: ContrastiveOptions, params: Pretraining) -> None:
        super().__init__(options, params)
        self.gamma = params.gamma
        sizes = (self.encoder.width, options.projector_hidden, options.projector_out)
        self.projector = projector(*sizes)
        self.projector_lower = projector(*sizes)

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        contrast = nt_xent(embeddings["z_upper_a"], embeddings["z_upper_b"], self.options.temperature)
        distance = frobenius_distance(embeddings["z_lower_a"], embeddings["z_lower_b"])
        return contrast + self.gamma * distance, {"nt_xent": contrast, "distance": distance}

    def latents(self, images: Tensor) -> Named:
        features = self.encoder(images).float()  # [B, C, H, W]
        if features.shape[2] % 2:
            raise UserError(
                f"params.yaml: image_size is {images.shape[2]}, which gives the encoder's final map "
                f"{features.shape[2]} row(s); allowed for dual: a size that gives an even number"
            )
        halves = functional.adaptive_avg_pool2d(features, (2, 1))  # [B, C, 2, 1]
        return {name: halves[:, :, row, 0] for row, name in enumerate(LATENTS)}

    def project(self, latents: Named) -> Named:
        return {
            "z_upper": l2_normalize(self.projector(latents["upper"])),
            "z_lower": l2_normalize(self.projector_lower(latents["lower"])),
        }


METHOD = Dual
