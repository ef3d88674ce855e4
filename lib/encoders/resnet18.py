"""ResNet-18 with the CIFAR stem: 11,168,832 parameters, 512 channels, a 4x4 map of a 32x32 image."""

from torchvision.models.resnet import BasicBlock

from lib.encoders.resnet import ResNetMap, cifar_stem


def build(inputs: int = 3, width: float = 1.0) -> ResNetMap:
    return ResNetMap(BasicBlock, [2, 2, 2, 2], cifar_stem(inputs, width))
