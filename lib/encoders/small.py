"""A small residual network for CPUs: 1.36 M parameters, 512 channels, a 4x4 map of a 32x32 image.

A 4x4 stem of stride 2 halves the image at once; three stages of one residual block follow (64, 128, 256 channels;
multiples of 32 are what CPU kernels are fast at). A 1x1 convolution widens the map, because a linear probe gains from
width and this is where width is cheap.
"""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, conv1x1

from lib.encoders import Encoder

STAGES = (64, 128, 256)
WIDTH = 512


class SmallResNet(Encoder):
    """Shape: images [B, inputs, S, S] -> map [B, 512 width, S / 8, S / 8]."""

    def __init__(self, inputs: int = 3, width: float = 1.0) -> None:
        super().__init__()
        *stages, self.width = (round(channels * width) for channels in (*STAGES, WIDTH))
        self.conv1 = nn.Conv2d(inputs, stages[0], kernel_size=4, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stages[0])
        self.relu = nn.ReLU(inplace=True)
        before = (stages[0], *stages[:-1])
        self.stages = nn.Sequential(*(_block(*channels) for channels in zip(before, stages)))
        self.widen = nn.Sequential(conv1x1(stages[-1], self.width), nn.BatchNorm2d(self.width), nn.ReLU(inplace=True))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        return self.widen(self.stages(self.relu(self.bn1(self.conv1(images)))))


def _block(inputs: int, outputs: int) -> BasicBlock:
    """One residual block; it halves the map where the channels grow."""
    if inputs == outputs:
        return BasicBlock(inputs, outputs)
    return BasicBlock(inputs, outputs, 2, nn.Sequential(conv1x1(inputs, outputs, 2), nn.BatchNorm2d(outputs)))


def build(inputs: int = 3, width: float = 1.0) -> SmallResNet:
    return SmallResNet(inputs, width)
