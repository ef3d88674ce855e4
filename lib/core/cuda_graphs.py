"""CUDA graphs of the forward and the backward pass: one launch each instead of one per kernel.

A GPU often finishes a kernel sooner than the host can launch the next. One graph leads from the batch to its
embeddings, another from the gradient at the embeddings to that of the parameters. Between them the loss is computed
as usual, on leaves, as for micro-batches: losses draw random numbers, and a graph would repeat the first.

B images, V views; a view's `lib.views.parameters.PackedParams` has N numbers of each image; embeddings are [B, D].
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lib.core.optimizers import laid_out

WARM_UPS = 3  # before recording, so that libraries have chosen their kernels and taken their memory
MOST = 8  # recordings of one training; a method has a few layers that learn in turn, not a change in every step
PLAIN = (bool, int, float, str)

Named = dict[str, Tensor]
Embed = Callable[[list[Tensor]], Named]


class Unrecordable(Exception):
    """Why a pass cannot be recorded, in words that follow "its forward pass"."""


class CudaGraphs:
    """One method's forward and backward pass, captured at the first call, and again when the method changes.

    It is the same as long as the inputs have the same shapes, parameters and buffers stay where they are, the same
    parameters learn, and no plain attribute of any of its modules differs: a number, a word, or a list of them, such
    as the number of the layer that learns, or whether BatchNorm is training. What hides deeper is not seen.
    """

    def __init__(self) -> None:
        self.of: tuple[Any, ...] = ()  # the state of the method that was captured
        self.count = 0
        self.ahead: Any = None  # the two graphs
        self.back: Any = None
        self.weights: list[nn.Parameter] = []
        self.embedding_gradients: Named = {}
        self.weight_gradients: list[tuple[nn.Parameter, Tensor]] = []

    def forward(self, method: nn.Module, embed: Embed, inputs: list[Tensor]) -> Named:
        """``embed`` of ``inputs``: int64 [B], then V float32 [B, N], on the device.

        Returns:
            Its embeddings as leaves [B, D] by name, which the next call overwrites.

        Raises:
            Unrecordable: nothing was computed, and the method is as it was.
        """
        with torch.cuda.device(inputs[0].device):
            state = (id(method), _state(method), [(value.shape, value.dtype) for value in inputs])
            if state != self.of:
                self._record(method, embed, inputs)
                self.of = state
            for place, value in zip(self.inputs, inputs, strict=True):
                place.copy_(value)
            for weight, gradient in self.weight_gradients:  # what the last `backward` left in the graphs' memory
                if weight.grad is gradient:
                    weight.grad = gradient.clone()
            self.ahead.replay()
        return {name: values.detach().requires_grad_(values.requires_grad) for name, values in self.outputs.items()}

    def backward(self, embeddings: Named) -> None:
        """Carry the gradients at ``embeddings``, which `forward` returned, to the parameters, and add them up there.

        Raises:
            Unrecordable: the loss did not use these embeddings when it was recorded, or used others.
        """
        gradients = {name: leaf.grad for name, leaf in embeddings.items() if leaf.grad is not None}
        with torch.cuda.device(self.inputs[0].device):
            if gradients and not self.embedding_gradients:
                self._record_backward(gradients)
            if not gradients or self.embedding_gradients.keys() != gradients.keys():
                raise Unrecordable(
                    f"met a loss that uses {', '.join(gradients) or 'no embedding'}, and not what it used "
                    "when the pass was recorded"
                )
            for name, gradient in gradients.items():
                self.embedding_gradients[name].copy_(gradient)
            self.back.replay()
        for weight, gradient in self.weight_gradients:
            weight.grad = gradient if weight.grad is None else weight.grad + gradient

    def _record(self, method: nn.Module, embed: Embed, inputs: list[Tensor]) -> None:
        self.of, self.count = (), self.count + 1
        if self.count > MOST:
            raise Unrecordable(f"has changed {MOST} times")
        self.weights = [weight for weight in method.parameters() if weight.requires_grad]
        self.inputs = [value.clone() for value in inputs]
        self.embedding_gradients, self.weight_gradients, self.outputs = {}, [], {}
        self.ahead = self.back = None  # what an earlier recording held is free before the next is made
        _warm_up(method, lambda: embed(self.inputs), self.weights)
        self.ahead = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.ahead):
            self.outputs = embed(self.inputs)

    def _record_backward(self, gradients: Named) -> None:
        self.embedding_gradients = {name: gradient.clone() for name, gradient in gradients.items()}
        self.back = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.back, pool=self.ahead.pool()):
            found = torch.autograd.grad(
                [self.outputs[name] for name in gradients],
                self.weights,
                [self.embedding_gradients[name] for name in gradients],
                allow_unused=True,
            )
            self.weight_gradients = [
                (weight, laid_out(gradient, weight))
                for weight, gradient in zip(self.weights, found)
                if gradient is not None
            ]


def _warm_up(method: nn.Module, embed: Callable[[], Named], weights: list[nn.Parameter]) -> None:
    """A few passes forward and back that leave the method as it was.

    Raises:
        Unrecordable: a random number was drawn on the way, or the host waited for the device.
    """
    kept = [(buffer, buffer.clone()) for buffer in method.buffers()]
    before = _streams()
    side, watch = torch.cuda.Stream(), torch.cuda.get_sync_debug_mode()
    side.wait_stream(torch.cuda.current_stream())
    waits = ""
    with torch.cuda.stream(side):
        for number in range(WARM_UPS):
            if number == WARM_UPS - 1:
                _tell_of_waits("error")
            try:
                outputs = [values for values in embed().values() if values.requires_grad]
                gradients = [torch.ones_like(values) for values in outputs]
                torch.autograd.grad(outputs, weights, gradients, allow_unused=True)
            except RuntimeError as error:
                if "synchroniz" not in str(error):
                    raise  # an error of the method's own
                waits = str(error).splitlines()[0]
            finally:
                _tell_of_waits(watch)
    torch.cuda.current_stream().wait_stream(side)
    with torch.no_grad():
        for buffer, value in kept:
            buffer.copy_(value)
    if waits:
        raise Unrecordable(f"makes the host wait for the device ({waits})")
    if not torch.equal(before, _streams()):
        raise Unrecordable("draws random numbers, which a graph would repeat")


def _tell_of_waits(mode: str | int) -> None:
    """torch's check, without its warning that it does not see all of them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode")
        torch.cuda.set_sync_debug_mode(mode)


def _streams() -> Tensor:
    """Where the random numbers of the host and of the device are."""
    return torch.cat([torch.get_rng_state(), torch.cuda.get_rng_state()])


def _state(method: nn.Module) -> tuple[Any, ...]:
    """What a recorded pass depends on beside the numbers in its tensors."""
    plain = [
        (name, _plain(value))
        for module in method.modules()
        for name, value in vars(module).items()
        if name[0] != "_" and type(value) in (*PLAIN, tuple, list)
    ]
    weights = [(weight.data_ptr(), weight.requires_grad) for weight in method.parameters()]
    return plain, weights, [buffer.data_ptr() for buffer in method.buffers()]


def _plain(value: Any) -> Any:
    """A list or tuple with nothing but plain values in it; what else it holds is not looked into."""
    if type(value) in PLAIN:
        return value
    return tuple(item if type(item) in PLAIN else type(item).__name__ for item in value)
