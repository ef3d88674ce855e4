"""ResNet-50 with the CIFAR stem: 23,500,352 parameters, 2,048 channels, a 4x4 map of a 32x32 image."""

from torchvision.models.resnet import Bottleneck

from lib.encoders.resnet import ResNetMap, cifar_stem


def build(inputs: int = 3, width: float = 1.0) -> ResNetMap:
    return ResNetMap(Bottleneck, [3, 4, 6, 3], cifar_stem(inputs, width))
