"""Several processes that share one global batch, through torch.distributed; one process needs none of it.

Each process embeds its slice of the batch. Embeddings are gathered, every process computes the loss of
the whole batch, and the gradient of its own slice flows back; summing the parameters' gradients over the
processes then gives exactly the gradient of the whole batch. The main rank, 0, alone reads checkpoints and writes.
"""

import os
import shlex
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from lib.runtime.errors import UserError
from lib.runtime.machine import Machine, launched

SILENCE = timedelta(minutes=30)  # a process that does not answer for so long is given up
PATIENCE = timedelta(days=30)  # the others wait while the main rank waits for another training of the variant

_patient: Any = None  # a group of all processes


def start(machine: Machine, module: str, arguments: list[str]) -> None:
    """Join the processes that torchrun has started, or become torchrun where the machine wants several."""
    if launched():
        _join(torch.device(machine.device).type)
    elif machine.processes > 1 or machine.torchrun:
        where = shlex.split(machine.torchrun) or ["--standalone"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(machine.processes), *where]
        sys.stdout.flush()
        os.execv(sys.executable, [*torchrun, "-m", module, *arguments])


def _join(kind: str) -> None:
    global _patient
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=SILENCE)
    _patient = distributed.new_group(backend="gloo", timeout=PATIENCE)


def barrier() -> None:
    """Until every process is here, however long the main rank takes."""
    if distributed.is_initialized():
        distributed.barrier(_patient)


def require_same(text: str) -> None:
    """Raise UserError unless every process has the same text; for a digest of all that a training depends on."""
    texts = [text] * world_size()
    if world_size() > 1:
        distributed.all_gather_object(texts, text)
    differ = [other for other, found in enumerate(texts) if found != text]
    if differ:
        raise UserError(
            f"process {rank()} and process {differ[0]} differ in parameters, code or data; give every "
            "machine the same commit, the same params.yaml and the same data file"
        )


def broadcast(load: Callable[[], Any]) -> Any:
    """What ``load`` returns in the main rank, in every process: other machines need not see its disk."""
    found = [load() if rank() == 0 else None]
    if world_size() > 1:
        distributed.broadcast_object_list(found, src=0)
    return found[0]


def stop() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def local_slice(batch_size: int) -> slice:
    """This process's images of the global batch, of which every process has the same number."""
    share = batch_size // world_size()
    return slice(rank() * share, (rank() + 1) * share)


def gather(rows: Tensor) -> Tensor:
    """Rows of all processes in order, [b, D] -> [B, D]; only this process's carry a gradient."""
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    distributed.all_gather(parts, rows.detach().contiguous())
    parts[rank()] = rows
    return torch.cat(parts)


def sum_gradients(module: nn.Module) -> None:
    """Add every parameter's gradient over the processes, in one flat message."""
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()


def share_statistics(module: nn.Module, machine: Machine) -> nn.Module:
    """BatchNorm over the global batch where the device has it (CUDA); on CPUs each process has its own."""
    if world_size() > 1 and torch.device(machine.device).type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return module
