"""The network of EmbedderSDR's codes of CIFAR-10 (docs/methods.md, 12): three filters and a pooling.

Convolution 3x3 of 3 channels without bias, BatchNorm, ReLU, max-pool 3: 87 parameters. The sources do not say whether
the convolution is padded; it is not here, and either way a 32x32 image becomes a 10x10 map. Its layer of units sees
all 300 numbers of the map: the option ``flatten`` of ``lib.methods.kwta``. Other methods see the mean of three.
"""

from typing import Any

from torch import Tensor, nn

FILTERS, POOL = 3, 3


class SDR(nn.Module):
    """Shape: images [B, inputs, S, S] -> map [B, 3 width, s, s], s = (S - 2) // 3."""

    name = "sdr"

    def __init__(self, inputs: int = 3, width: float = 1.0) -> None:
        super().__init__()
        self.width = max(1, round(FILTERS * width))
        self.conv1 = nn.Conv2d(inputs, self.width, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(self.width)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(POOL)

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(self.relu(self.bn1(self.conv1(images))))

    def about(self) -> dict[str, Any]:
        return {"stem_kernel": 3, "stem_stride": 1, "stem_padding": 0, "max_pool": True, "width": self.width}


def build(inputs: int = 3, width: float = 1.0) -> SDR:
    return SDR(inputs, width)
