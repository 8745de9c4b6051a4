"""Training over several processes: who is where, and features gathered with their gradients.

Started by torchrun; alone, nothing here does anything. Knows no encoder and no loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class GlobalBatch:
    """A batch spread over processes in the order of their ranks, equal parts each.

    Attributes:
        rank: This process's place.
        world_size: How many processes there are.
    """

    rank: int
    world_size: int

    def gather(self, tensor: Tensor) -> Tensor:
        """Returns every process's (n, ...) rows as (N, ...), gradients passing through.

        Each process gets back the sum, over all processes, of the gradients of its own rows.
        """
        gathered: Tensor = _Gather.apply(  # type: ignore[no-untyped-call]
            tensor, self.rank, self.world_size
        )
        return gathered

    def any(self, flag: bool) -> bool:
        """Returns whether the flag is up in any process; all must ask at the same time."""
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        raised = torch.tensor(float(flag), device=device)
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return bool(raised.item())

    @property
    def is_first_here(self) -> bool:
        """Whether this process is the first on its machine: the one that writes shared files."""
        return dist.get_node_local_rank(self.rank) == 0

    def of_first(self, number: int) -> int:
        """Returns the first process's number: what only one may decide."""
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        told = torch.tensor(number, device=device)
        dist.broadcast(told, 0)
        return int(told.item())


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rank: int, world_size: int) -> Tensor:
        ctx.rank, ctx.rows = rank, len(tensor)
        parts = [torch.empty_like(tensor) for _ in range(world_size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        summed = gradients[0].contiguous()
        dist.all_reduce(summed)
        return summed[ctx.rank * ctx.rows : (ctx.rank + 1) * ctx.rows], None, None


@contextmanager
def joined() -> Iterator[GlobalBatch | None]:
    """Joins the processes that torchrun started and leaves them at the end; None alone.

    What was made of the group (DistributedDataParallel, graphs) has to be gone by then: a group
    that outlives its end is torn down with the interpreter, whose threads may abort it.
    """
    if not dist.is_torchelastic_launched():
        yield None
        return
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        world_size = dist.get_world_size()
        yield GlobalBatch(dist.get_rank(), world_size) if world_size > 1 else None
        dist.barrier()  # nobody closes its connections while another still talks
    finally:
        dist.destroy_process_group()
