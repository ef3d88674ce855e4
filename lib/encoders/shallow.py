"""One layer of 6x6 filters, as shallow-conv learns it from patches (docs/methods.md, 13).

The convolution has no padding. With pooling, a 7x7 patch becomes one place: 2x2 responses, of which the
largest counts. torch's default initialisation, and a bias, as in the source.
"""

from typing import Any

from torch import Tensor, nn

FILTERS, SIZE = 256, 6


class Shallow(nn.Module):
    """Shape: images [B, inputs, S, S] -> map [B, 256 width, s, s], s = (S - 5) // 2 with pooling, S - 5 without."""

    def __init__(self, pool: bool = True, inputs: int = 3, width: float = 1.0) -> None:
        super().__init__()
        self.width = round(FILTERS * width)
        self.conv1 = nn.Conv2d(inputs, self.width, SIZE)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        return self.relu(self.pool(self.conv1(images)))

    def about(self) -> dict[str, Any]:
        """The stem and what follows it, for the exported file."""
        return {"stem_kernel": SIZE, "stem_stride": 1, "stem_padding": 0, "padding_mode": "zeros",
                "max_pool": isinstance(self.pool, nn.MaxPool2d), "width": self.width}


def build(inputs: int = 3, width: float = 1.0) -> Shallow:
    return Shallow(inputs=inputs, width=width)
