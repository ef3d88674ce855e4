"""What a step does alike every time, recorded as CUDA graphs and started as a whole.

A GPU often finishes a kernel sooner than the host can ask for the next. A graph is asked for once: one from the
batch to its embeddings, one from the slopes at the embeddings to the gradient of the parameters. Between them the
loss is computed as usual, on leaves, as for micro-batches, because losses draw random numbers and the forward pass
must not: a graph would repeat the first ones.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

WARM_UPS = 3  # before recording, so that libraries have chosen their kernels and taken their memory

Named = dict[str, Tensor]
Embed = Callable[[list[Tensor]], Named]


class DrawsNumbers(Exception):
    """The forward pass draws random numbers, so that it cannot be recorded."""


class Recorded:
    """One method's forward and backward pass. Recorded at the first call, and again when the method changes.

    The same, as long as the inputs have the same shapes, the same parameters learn, and no plain attribute of the
    method's own modules differs, such as the number of the layer that learns.
    """

    def __init__(self) -> None:
        self.of: tuple[Any, ...] = ()

    def forward(self, method: nn.Module, embed: Embed, inputs: list[Tensor]) -> Named:
        """``embed`` of inputs on the device: its embeddings as leaves, overwritten by the next call.

        Raises:
            DrawsNumbers: ``embed`` draws random numbers; nothing has changed.
        """
        state = (id(method), _state(method), [(value.shape, value.dtype) for value in inputs])
        with torch.cuda.device(inputs[0].device):
            if state != self.of:
                self._record(method, embed, inputs)
                self.of = state
            for place, value in zip(self.inputs, inputs, strict=True):
                place.copy_(value)
            self.ahead.replay()
        return {name: values.detach().requires_grad_(values.requires_grad) for name, values in self.outputs.items()}

    def backward(self, embeddings: Named) -> None:
        """Add to the parameters' gradients what the slopes at ``embeddings``, from `forward`, pass on."""
        slopes = {name: leaf.grad for name, leaf in embeddings.items() if leaf.grad is not None}
        with torch.cuda.device(self.inputs[0].device):
            if self.slopes.keys() != slopes.keys():
                self._record_backward(slopes)
            for name, slope in slopes.items():
                self.slopes[name].copy_(slope)
            self.back.replay()
        for weight, gradient in self.gradients:
            weight.grad = gradient if weight.grad is None else weight.grad + gradient

    def _record(self, method: nn.Module, embed: Embed, inputs: list[Tensor]) -> None:
        self.weights = [weight for weight in method.parameters() if weight.requires_grad]
        self.inputs = [value.clone() for value in inputs]
        self.slopes, self.gradients, self.outputs, self.back = {}, [], {}, None
        _warm_up(method, lambda: embed(self.inputs), self.weights)
        self.ahead = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.ahead):
            self.outputs = embed(self.inputs)

    def _record_backward(self, slopes: Named) -> None:
        if self.slopes:  # another set of slopes than before: what the first pass kept is gone
            raise RuntimeError(f"the loss first used {', '.join(self.slopes)}, now {', '.join(slopes)}")
        self.slopes = {name: slope.clone() for name, slope in slopes.items()}
        self.back = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.back, pool=self.ahead.pool()):
            found = torch.autograd.grad([self.outputs[name] for name in slopes], self.weights,
                                        [self.slopes[name] for name in slopes], allow_unused=True)
            self.gradients = [(weight, _laid_out(gradient, weight)) for weight, gradient in zip(self.weights, found)
                              if gradient is not None]


def _warm_up(method: nn.Module, embed: Callable[[], Named], weights: list[Tensor]) -> None:
    """A few passes forward and back that leave the method as it was.

    Raises:
        DrawsNumbers: a random number was drawn on the way.
    """
    kept = [(buffer, buffer.clone()) for buffer in method.buffers()]
    before = torch.cat([torch.get_rng_state(), torch.cuda.get_rng_state()])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            outputs = [values for values in embed().values() if values.requires_grad]
            torch.autograd.grad(outputs, weights, [torch.ones_like(values) for values in outputs], allow_unused=True)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.no_grad():
        for buffer, value in kept:
            buffer.copy_(value)
    if not torch.equal(before, torch.cat([torch.get_rng_state(), torch.cuda.get_rng_state()])):
        raise DrawsNumbers


def _laid_out(gradient: Tensor, weight: Tensor) -> Tensor:
    """The gradient in the memory format of its weight, which fused optimisers ask for."""
    return gradient if gradient.stride() == weight.stride() else torch.empty_like(weight).copy_(gradient)


def _state(method: nn.Module) -> tuple[Any, ...]:
    """What changes a recorded pass without being a tensor."""
    own = tuple((name, value) for module in method.modules() if not type(module).__module__.startswith("torch.")
                for name, value in vars(module).items() if isinstance(value, (bool, int, float, str)))
    return own, tuple(weight.requires_grad for weight in method.parameters())
