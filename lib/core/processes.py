"""Several processes that share one global batch, through torch.distributed; one process needs none of it.

Each process embeds its slice of the batch. Embeddings are gathered, every process computes the loss of
the whole batch, and the gradient of its own slice flows back; summing the parameters' gradients over the
processes then gives exactly the gradient of the whole batch.
"""

import os
import sys
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

from lib.machine import Machine

# The others wait while the lead waits for another training of the same variant to end.
PATIENCE = timedelta(days=30)


def start(machine: Machine, module: str, arguments: list[str]) -> None:
    """Replace this process by ``machine.processes`` of ``python -m module``, or join those already started."""
    if machine.processes == 1:
        return
    if "LOCAL_RANK" not in os.environ:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                    "--nproc-per-node", str(machine.processes), "-m", module, *arguments]
        sys.stdout.flush()
        os.execv(sys.executable, launcher)
    if torch.device(machine.device).type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl", timeout=PATIENCE)
    else:
        distributed.init_process_group("gloo", timeout=PATIENCE)


def wait() -> None:
    """Until every process is here."""
    if distributed.is_initialized():
        distributed.barrier()


def stop() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def own_rows(batch_size: int) -> slice:
    """This process's rows of the global batch, of which every process has the same number."""
    share = batch_size // world()
    return slice(rank() * share, (rank() + 1) * share)


def gather(rows: Tensor) -> Tensor:
    """Rows of all processes in order, [B, D] -> [world * B, D]; only this process's carry a gradient."""
    if world() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world())]
    distributed.all_gather(parts, rows.detach().contiguous())
    parts[rank()] = rows
    return torch.cat(parts)


def sum_gradients(module: nn.Module) -> None:
    """Add every parameter's gradient over the processes, in one flat message."""
    if world() == 1:
        return
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start:start + gradient.numel()].view_as(gradient))
        start += gradient.numel()


def share_statistics(module: nn.Module, machine: Machine) -> nn.Module:
    """BatchNorm over the global batch where the device has it (CUDA); on CPUs each process has its own."""
    if world() > 1 and torch.device(machine.device).type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return module
