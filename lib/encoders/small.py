"""A small residual network for CPUs: 1.36 M parameters, 512 channels, a 4x4 map of a 32x32 image.

A 4x4 stem of stride 2 halves the image at once; three stages of one residual block (64, 128, 256
channels; multiples of 32 are what CPU kernels are fast at) follow, and a 1x1 convolution widens the
map, because a linear probe gains from width and this is where width is cheap.
"""

from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, conv1x1

STAGES = (64, 128, 256)
WIDTH = 512


class SmallResNet(nn.Module):
    """Shape: images [B, 3, S, S] -> map [B, 512, S / 8, S / 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.width = WIDTH
        self.conv1 = nn.Conv2d(3, STAGES[0], kernel_size=4, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STAGES[0])
        self.relu = nn.ReLU(inplace=True)
        inputs = (STAGES[0], *STAGES[:-1])
        self.stages = nn.Sequential(*(_block(*channels) for channels in zip(inputs, STAGES)))
        self.widen = nn.Sequential(conv1x1(STAGES[-1], WIDTH), nn.BatchNorm2d(WIDTH), nn.ReLU(inplace=True))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        return self.widen(self.stages(self.relu(self.bn1(self.conv1(images)))))

    def about(self) -> dict[str, Any]:
        """The stem and what follows it, for the exported file."""
        return {"stem_kernel": 4, "stem_stride": 2, "stem_padding": 1, "padding_mode": "zeros",
                "max_pool": False, "width": self.width}


def _block(inputs: int, outputs: int) -> BasicBlock:
    """One residual block; it halves the map where the channels grow."""
    if inputs == outputs:
        return BasicBlock(inputs, outputs)
    return BasicBlock(inputs, outputs, 2, nn.Sequential(conv1x1(inputs, outputs, 2), nn.BatchNorm2d(outputs)))


def build() -> SmallResNet:
    return SmallResNet()
