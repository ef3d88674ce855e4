"""Convolutions of small maps on a CPU, without the work that padding makes.

A padded 3x3 kernel meets zeros in 44 of the 144 products of a 4x4 map, in 20 of the 36 of a 2x2 map, and in 8 of the 9
of a single place. torch's kernels leave out some of them in the forward pass and none in the gradient of the weights,
which is their slowest part there. The same sums are taken here from what is really in the map:

- where every place of the output sees the whole map, the convolution is a linear layer of all places;
- elsewhere, up to `PLACES` places of output, the weights' gradient is one matrix product for each place of the kernel.

Values and gradients are those of ``nn.Conv2d`` but for rounding; other devices and larger maps have torch's own.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

PLACES = 16  # of a map: with 8x8, a matrix product for each place of the kernel is no faster than torch's kernels

Pair = tuple[int, int]


def without_padding(network: nn.Module) -> nn.Module:
    """The network itself, with every ``nn.Conv2d`` that has what is needed turned into a `SmallMapConv2d`."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _plain(module):
            module.__class__ = SmallMapConv2d
    return network


class SmallMapConv2d(nn.Conv2d):
    """A convolution of one group, without dilation, whose padding is zeros. Parameters and names are nn.Conv2d's.

    Shape:
        images [B, C, H, W] -> map [B, O, h, w], in both layouts; channels last is what is fast.
    """

    def forward(self, images: Tensor) -> Tensor:
        if images.device.type != "cpu" or images.dim() != 4:
            return super().forward(images)
        sides = images.shape[2:]
        if all(side <= size - edge for side, size, edge in zip(sides, self.kernel_size, self.padding)):
            return _as_linear_layer(images, self.weight, self.bias, self.stride, self.padding)
        if _outputs(sides, self.kernel_size, self.stride, self.padding) > PLACES:
            return super().forward(images)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return _Convolution.apply(images.to(dtype), self.weight.to(dtype), bias, self.stride, self.padding)


def weight_gradient(images: Tensor, slope: Tensor, size: Pair, stride: Pair, padding: Pair) -> Tensor:
    """The gradient of a convolution's weights, each place of the kernel by one product of what it has seen.

    Shape:
        images [B, C, H, W], slope of the output [B, O, h, w] -> [O, C, *size], channels last
    """
    seen, told = (values.permute(2, 3, 0, 1).contiguous() for values in (images, slope))  # places first
    found = images.new_zeros(slope.shape[1], *size, images.shape[1])
    for row in range(size[0]):
        rows, inner_rows = _meeting(row, stride[0], padding[0], len(told), len(seen))
        for column in range(size[1]):
            columns, inner_columns = _meeting(column, stride[1], padding[1], told.shape[1], seen.shape[1])
            outer, inner = (values.flatten(0, 2) for values in (told[rows, columns], seen[inner_rows, inner_columns]))
            if len(outer):
                found[:, row, column] = outer.t() @ inner
    return found.permute(0, 3, 1, 2)


class _Convolution(torch.autograd.Function):
    """torch's convolution with `weight_gradient`."""

    @staticmethod
    def forward(context: Any, images: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair,
                padding: Pair) -> Tensor:
        context.save_for_backward(images, weight)
        context.biases = None if bias is None else list(bias.shape)
        context.steps = stride, padding
        return functional.conv2d(images, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(context: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = context.saved_tensors
        stride, padding = context.steps
        of_images, of_weight, of_bias, *_ = context.needs_input_grad
        found = torch.ops.aten.convolution_backward(slope, images, weight, context.biases, stride, padding, (1, 1),
                                                    False, (0, 0), 1, (of_images, False, of_bias))
        weights = weight_gradient(images, slope, weight.shape[2:], stride, padding) if of_weight else None
        return found[0], weights, found[2], None, None


def _as_linear_layer(images: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
    """All places of the map to all places of the output: the kernel's places that each output sees, side by side."""
    sides, size = images.shape[2:], weight.shape[2:]
    height, width = (_output(*each) for each in zip(sides, size, stride, padding))
    first, second = ([slice(edge - step * place, edge - step * place + side) for place in range(count)]
                     for edge, step, side, count in zip(padding, stride, sides, (height, width)))
    places = torch.stack([weight[:, :, rows, columns] for rows in first for columns in second])  # [h w, O, C, H, W]
    layer = places.permute(0, 1, 3, 4, 2).flatten(2).flatten(0, 1)  # [h w O, H W C]
    outputs = functional.linear(images.permute(0, 2, 3, 1).flatten(1), layer,
                                None if bias is None else bias.repeat(height * width))
    return outputs.view(len(images), height, width, -1).permute(0, 3, 1, 2)


def _plain(module: nn.Conv2d) -> bool:
    return (module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
            and not isinstance(module.padding, str))


def _output(side: int, size: int, step: int, edge: int) -> int:
    return (side + 2 * edge - size) // step + 1


def _outputs(sides: Pair, size: Pair, stride: Pair, padding: Pair) -> int:
    height, width = (_output(*each) for each in zip(sides, size, stride, padding))
    return height * width


def _meeting(place: int, step: int, edge: int, outputs: int, inputs: int) -> tuple[slice, slice]:
    """The outputs, along one side, whose kernel has ``place`` inside the map, and the inputs that it lies on."""
    first = max(0, -((place - edge) // step))
    last = min(outputs - 1, (inputs - 1 + edge - place) // step)
    start = first * step + place - edge
    return slice(first, last + 1), slice(start, start + (last - first) * step + 1, step)
