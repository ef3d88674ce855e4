"""torchvision's ResNet with another stem and without its pooling and classifier.

Parameter names stay torchvision's, so weights load into a torchvision model of the same shape.
"""

from typing import Any

from torch import Tensor, nn
from torchvision.models import resnet

from lib.encoders import Encoder

BASE = 64  # channels of torchvision's stem and first stage


class ResNetMap(resnet.ResNet, Encoder):
    """Images [B, 3, S, S] -> last map [B, width, S / stride, S / stride]; channels grow with those of the stem."""

    def __init__(self, block: type[resnet.BasicBlock | resnet.Bottleneck], layers: list[int], stem: nn.Conv2d) -> None:
        self.base = stem.out_channels
        super().__init__(block, layers)
        self.conv1 = stem
        self.bn1 = nn.BatchNorm2d(self.base)
        self.maxpool = nn.Identity()
        self.width = 8 * self.base * block.expansion
        del self.avgpool, self.fc
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")

    def _make_layer(
        self, block: type[resnet.BasicBlock | resnet.Bottleneck], planes: int, *rest: Any, **more: Any
    ) -> nn.Sequential:
        if planes == BASE:  # the first stage, behind the stem
            self.inplanes = self.base
        return super()._make_layer(block, planes * self.base // BASE, *rest, **more)

    def _forward_impl(self: Any, images: Tensor) -> Tensor:
        features = self.relu(self.bn1(self.conv1(images)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = stage(features)
        return features


def cifar_stem(inputs: int, width: float) -> nn.Conv2d:
    """3x3, stride 1: the stem that keeps a 32x32 image whole (as in leftthomas/SimCLR)."""
    return nn.Conv2d(inputs, round(BASE * width), kernel_size=3, stride=1, padding=1, bias=False)
