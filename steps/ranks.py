"""What one of several training processes has -> what all of them agree on; a process alone agrees with itself."""

from collections.abc import Iterable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

WAIT = timedelta(hours=1)       # for the first rank to evaluate or save while the others wait


def join() -> None:
    """Makes this process, which torchrun started, a rank: on a GPU of its own, or on the CPU."""
    import os

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=WAIT)


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def first() -> bool:
    """Whether this process is the one that writes, prints and decides."""
    return rank() == 0


def agreed(value):
    """The first rank's value."""
    held = [value]
    if world() > 1:
        dist.broadcast_object_list(held, src=0)
    return held[0]


def everyones(value) -> list:
    """[ranks] the value of each."""
    found = [value] * world()
    if world() > 1:
        dist.all_gather_object(found, value)
    return found


def total(*numbers: float) -> list[float]:
    """Each of the numbers, summed over the ranks."""
    found = torch.tensor(numbers, dtype=torch.float64, device="cuda" if torch.cuda.is_available() else "cpu")
    if world() > 1:
        dist.all_reduce(found)
    return found.tolist()


def rows_of(which: int, rows: int) -> int:
    """How many rows of a batch of so many a rank has: those numbered rank, rank + ranks, rank + 2 ranks..."""
    return len(range(which, rows, world()))


def share(count: float, whole: float) -> float:
    """What to multiply a mean over `count` things by, so that the mean over ranks is that over the whole of them."""
    return world() * count / whole


class _Gather(torch.autograd.Function):
    """The gradient of the own rows is multiplied by the ranks, over which it is averaged later."""

    @staticmethod
    def forward(ctx, vectors: torch.Tensor, rows: int) -> torch.Tensor:
        counts = [rows_of(which, rows) for which in range(world())]
        start, count = sum(counts[:rank()]), counts[rank()]
        ctx.own, ctx.shape = slice(start, start + count), vectors.shape
        padded = vectors.new_zeros((counts[0], vectors.shape[1]))
        padded[:count] = vectors[:count]
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        found, own = gradient.new_zeros(ctx.shape), gradient[ctx.own]
        found[:len(own)] = own * world()
        return found, None


def gathered(vectors: torch.Tensor, rows: int) -> torch.Tensor:
    """[this rank's rows or one, dim] -> [rows, dim] of the whole batch, the same on every rank.

    Each rank computes the whole loss from them, so the gradient of its own rows is complete without the others'.
    """
    return _Gather.apply(vectors, rows)


def average(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replaces each gradient by its mean over the ranks."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= world()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


class Shard:
    """Batches -> this rank's rows of each, and in `rows` how many the whole one has that was given last.

    Where a batch has fewer rows than there are ranks, one without gets the first, which counts for nothing there.
    """

    def __init__(self, batches):
        self.batch_sampler = batches        # the name by which the library reaches it to set the epoch
        self.rows = 0

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batch_sampler:
            self.rows = len(batch)
            yield batch[rank()::world()] or batch[:1]


def sharded(loader: torch.utils.data.DataLoader, batches) -> torch.utils.data.DataLoader:
    """The loader with this rank's rows of each batch, and in what it gives `rows`, how many the whole one has."""
    shard, collate = Shard(batches), loader.collate_fn
    return torch.utils.data.DataLoader(
        loader.dataset, batch_sampler=shard, collate_fn=lambda rows: {**collate(rows), "rows": shard.rows},
        pin_memory=loader.pin_memory)


class Objective(torch.nn.Module):
    """All that is trained, with its loss as output: what DistributedDataParallel averages the gradients of."""

    def __init__(self, trained: torch.nn.Module, loss):
        super().__init__()
        self.trained, self.loss = trained, loss

    def forward(self, inputs: dict) -> torch.Tensor:
        return self.loss(inputs)


def wrapped(trained: torch.nn.Module, loss) -> torch.nn.parallel.DistributedDataParallel:
    """loss(inputs) of what is trained, with gradients that are means over the ranks.

    Looking for unused parameters keeps the buckets as they are, so that a training that continues adds up alike.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else None
    return torch.nn.parallel.DistributedDataParallel(
        Objective(trained, loss), device_ids=devices, forward_sync_buffers=False, find_unused_parameters=True)
