"""Convolutions of small maps on a CPU, without the products with padding.

A padded 3x3 kernel meets zeros in 44 of the 144 products of a 4x4 map, in 20 of the 36 of a 2x2 map, and in 8 of the 9
of a single place. oneDNN, which computes torch's convolutions on a CPU, leaves out a part of them forward, and none in
the gradient of the weights, which is the slowest of its kernels there. The benchmark times steps without this file
("torch's own convolutions").
The same sums are taken here from what is really in the map:

- where each window covers the whole map, the convolution is a linear layer from all places to all outputs;
- elsewhere, up to `OUTPUTS` outputs, the gradient of the weights is one matrix product for each place of the kernel.

Values and gradients are those of ``nn.Conv2d`` but for rounding, which also depends on how many images a pass has: a
linear layer is worth its while for many. Other devices, larger maps, compiled networks and all that nn.Conv2d refuses
are nn.Conv2d's. There are no derivatives forward, and no vmap.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# All three from timings in bf16 on a processor with avx512_bf16.
OUTPUTS = 16  # of a map: at 8x8 a matrix product for each place of the kernel was as fast as oneDNN's
THIN = 32  # channels: the narrowest layers that were timed
ASSEMBLY = 80  # products that must be spared for each weight of a linear layer: by 10 images of one place, 64 of 2x2

Pair = tuple[int, int]


def with_small_maps(network: nn.Module) -> nn.Module:
    """The network itself, in which every ``nn.Conv2d`` of one group, undilated and padded with zeros, has become a
    `SmallMapConv2d`; a ``Conv2d`` that is added later is not one."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _replaceable(module):
            module.__class__ = SmallMapConv2d
    return network


class SmallMapConv2d(nn.Conv2d):
    """A convolution of one group, without dilation, whose padding is zeros. Parameters and names are nn.Conv2d's.

    Shape:
        images [B, C, H, W] -> map [B, O, h, w], in both layouts; channels last is what is fast.
    """

    def forward(self, images: Tensor) -> Tensor:
        if not self._worth_trying(images):
            return super().forward(images)
        sides = images.shape[2:]
        if all(side <= size - edge for side, size, edge in zip(sides, self.kernel_size, self.padding)):
            inputs, spared = sides.numel(), self.weight[0, 0].numel() - sides.numel()
            if len(images) * spared >= ASSEMBLY * inputs:
                return linear_layer(images, self.weight, self.bias, self.stride, self.padding)
        if prod(self._map_sides(images)) > OUTPUTS or min(self.weight.shape[:2]) < THIN:
            return super().forward(images)
        given = images, self.weight, self.bias
        if _narrowed(images):
            given = (None if one is None else one.to(torch.get_autocast_dtype("cpu")) for one in given)
        return _Convolution.apply(*given, self.stride, self.padding)

    def _worth_trying(self, images: Tensor) -> bool:
        """Whether something could be left out, and torch would not refuse the images."""
        types = {images.dtype, self.weight.dtype}
        return (images.device.type == "cpu" and not torch.compiler.is_compiling() and any(self.padding)
                and images.dim() == 4 and images.shape[1] == self.in_channels
                and (len(types) == 1 or _narrowed(images) and images.is_floating_point() and torch.float64 not in types)
                and min(self._map_sides(images)) > 0)

    def _map_sides(self, images: Tensor) -> list[int]:
        return [_windows(*each) for each in zip(images.shape[2:], self.kernel_size, self.stride, self.padding)]


def linear_layer(images: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
    """A convolution each of whose windows covers the whole map, as one matrix product.

    The layer's weights from the map's places to one output are the part of the kernel that lies on the map there.

    Shape:
        images [B, C, H, W], weight [O, C, k, l] with H <= k - padding and W likewise -> [B, O, h, w], channels last
    """
    sides, kernel = images.shape[2:], weight.permute(0, 2, 3, 1)  # [O, k, l, C]
    height, width = (_windows(*each) for each in zip(sides, weight.shape[2:], stride, padding))
    rows, columns = ([slice(edge - step * place, edge - step * place + side) for place in range(count)]
                     for edge, step, side, count in zip(padding, stride, sides, (height, width)))
    parts = torch.stack([kernel[:, row, column] for row in rows for column in columns])  # [h w, O, H, W, C]
    outputs = functional.linear(images.permute(0, 2, 3, 1).flatten(1), parts.flatten(2).flatten(0, 1),
                                None if bias is None else bias.repeat(height * width))
    return outputs.view(len(images), height, width, len(weight)).permute(0, 3, 1, 2)


def weight_gradient(images: Tensor, slope: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """The gradient of a convolution's weights: for each place of the kernel, one product over all images and outputs
    where that place lies on the map.

    Shape:
        images [B, C, H, W], slope of the output [B, O, h, w] -> [O, C, *kernel], channels last
    """
    inputs, slopes = (values.permute(2, 3, 0, 1).contiguous() for values in (images, slope))  # places first
    gradient = images.new_zeros(slope.shape[1], *kernel, images.shape[1])
    for row in range(kernel[0]):
        rows_out, rows_in = _on_the_map(row, stride[0], padding[0], slopes.shape[0], inputs.shape[0])
        for column in range(kernel[1]):
            columns_out, columns_in = _on_the_map(column, stride[1], padding[1], slopes.shape[1], inputs.shape[1])
            out = slopes[rows_out, columns_out].flatten(0, 2)
            if len(out):
                gradient[:, row, column] = out.t() @ inputs[rows_in, columns_in].flatten(0, 2)
    return gradient.permute(0, 3, 1, 2)


class _Convolution(torch.autograd.Function):
    """torch's convolution with `weight_gradient`. All tensors have one type."""

    @staticmethod
    def forward(images: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
        return functional.conv2d(images, weight, bias, stride, padding)

    @staticmethod
    def setup_context(context: Any, inputs: tuple, output: Tensor) -> None:
        context.save_for_backward(*inputs[:2])
        context.geometry = inputs[3:]

    @staticmethod
    def backward(context: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = context.saved_tensors
        of_images, of_weight, of_bias, *_ = context.needs_input_grad
        to_images = to_weight = to_bias = None
        if of_images:
            to_images, *_ = torch.ops.aten.convolution_backward(
                slope, images, weight, None, *context.geometry, (1, 1), False, (0, 0), 1, (True, False, False))
        if of_weight:
            to_weight = weight_gradient(images, slope, weight.shape[2:], *context.geometry)
        if of_bias:  # oneDNN has it from its gradient of the weights alone
            to_bias = slope.sum((0, 2, 3))
        return to_images, to_weight, to_bias, None, None


def _replaceable(module: nn.Conv2d) -> bool:
    return (module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
            and not isinstance(module.padding, str))


def _narrowed(images: Tensor) -> bool:
    """Whether autocast computes a convolution of them in its own type: all but float64."""
    return torch.is_autocast_enabled("cpu") and images.dtype != torch.float64


def _windows(side: int, size: int, step: int, edge: int) -> int:
    """How many along one side of the map: windows of ``size``, every ``step``, with ``edge`` zeros at both ends."""
    return (side + 2 * edge - size) // step + 1


def _on_the_map(place: int, step: int, edge: int, outputs: int, inputs: int) -> tuple[slice, slice]:
    """Along one side, the outputs whose window has the kernel's ``place`` on the map, and the inputs below it.

    Of a 3-kernel with 1 zero at both ends, place 0: all outputs but the first, all inputs but the last.
    """
    first = max(0, -((place - edge) // step))
    last = max(first - 1, min(outputs - 1, (inputs - 1 + edge - place) // step))
    start = first * step + place - edge
    return slice(first, last + 1), slice(start, start + (last - first) * step + 1, step)
