"""One layer of 6x6 filters, as shallow-conv learns it from patches, and a second of 3x3 (docs/methods.md, 13).

The convolutions have no padding, and a bias. With pooling, a 7x7 patch becomes one place: 2x2 responses, of which the
largest counts; for the second layer so does a patch of 4x4 places of the first one's map.
"""

from typing import Any

from torch import Tensor, nn

FILTERS, SIZE = (256, 512), (6, 3)


class Shallow(nn.Module):
    """Shape: images [B, inputs, S, S] -> map [B, 256 width, s, s], s = (S - 5) // 2 with pooling, S - 5 without.

    With two layers -> [B, 512 width, t, t], t = (s - 2) // 2 with pooling, s - 2 without.
    """

    name = "shallow"

    def __init__(self, pool: bool = True, inputs: int = 3, width: float = 1.0, layers: int = 1) -> None:
        super().__init__()
        self.widths = [round(filters * width) for filters in FILTERS[:layers]]
        self.width = self.widths[-1]
        self.conv1 = nn.Conv2d(inputs, self.widths[0], SIZE[0])
        if layers == 2:
            self.conv2 = nn.Conv2d(self.widths[0], self.widths[1], SIZE[1])
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, inputs: Tensor, layer: int = 0) -> Tensor:
        """Through all layers; or through one, ``layer`` 1 or 2, which takes images or the map of layer 1."""
        if layer != 2:
            inputs = self.relu(self.pool(self.conv1(inputs)))
        if layer == 2 or (layer == 0 and len(self.widths) == 2):
            inputs = self.relu(self.pool(self.conv2(inputs)))
        return inputs

    def about(self) -> dict[str, Any]:
        pooled = isinstance(self.pool, nn.MaxPool2d)
        return {"widths": self.widths, "kernels": list(SIZE[: len(self.widths)]), "padding": 0, "max_pool": pooled}


def map_side(pixels: int, layers: int, pool: bool = True) -> int:
    """Rows of the map of layer ``layers`` of images with so many rows."""
    for size in SIZE[:layers]:
        pixels = (pixels - size + 1) // (2 if pool else 1)
    return pixels


def build(inputs: int = 3, width: float = 1.0) -> Shallow:
    return Shallow(inputs=inputs, width=width)
