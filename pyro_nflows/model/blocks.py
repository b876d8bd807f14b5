"""Rows of latents go through a model in blocks, so that memory does not grow as particles times rows of data.

A log density of :math:`10^6` rows of data takes some 50 MB for one draw, and 100 GB for two thousand at once. Here as
many draws go through the model at once as their operations give :data:`BOUND` bytes, one at least: what is held beside
the data is no more than that, or than what one draw takes. Gradients are made block by block too, where only those of
the draws are asked for.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..system.randomness import forked

#: Bytes that operations on one block may give, all of them together.
BOUND = 2**26
#: Rows that fill the processor's registers: larger blocks are of a multiple of these.
EVEN = 16

#: Values at rows of latents, ``(K, D) -> (K,)``.
Rows = Callable[[Tensor], Tensor]


def block_size(rows: Rows, few: Tensor) -> int | None:
    """How many rows go through a model at once; None for any number, where it has random numbers of its own.

    :param rows: the model's log density, ``(K, D) -> (K,)``.
    :param few: some rows to count at.

    Example::

        >>> X = torch.zeros(2**18, 3)
        >>> block_size(lambda z: (z @ X.T).square().sum(-1), torch.zeros(2, 3))  # twice a mebibyte a row
        32
    """
    with forked(), torch.no_grad(), _Footprint() as seen:
        rows(few.detach())
    if seen.is_random:  # rows are to have these together, such as a minibatch
        return None
    size = max(1, BOUND * len(few) // max(1, seen.num_bytes))
    return size if size < 0.75 * EVEN else EVEN * round(size / EVEN)


def in_blocks(rows: Rows, z: Tensor, size: int | None, has_parameters: Callable[[], bool]) -> Tensor:
    """A log density at rows, of which ``size`` go through the model at once.

    :param rows: ``(K, D) -> (K,)``, each value that of its row.
    :param z: ``(K, D)``.
    :param size: from :func:`block_size`.
    :param has_parameters: whether gradients are asked for in other tensors than ``z``: then there are no blocks.
    """
    if size is None or len(z) <= size:
        return rows(z)
    if not torch.is_grad_enabled():
        return torch.cat([rows(part) for part in _blocks(z, size)])
    if torch._C._functorch.is_functorch_wrapped_tensor(z) or has_parameters():
        return rows(z)
    if not z.requires_grad:
        return torch.cat([rows(part) for part in _blocks(z, size)])
    values: Tensor = _Blocks.apply(z, rows, size)
    return values


def _blocks(z: Tensor, size: int) -> Sequence[Tensor]:
    """Blocks of about one size."""
    return z.split(size) if size % EVEN == 0 else z.tensor_split(-(-len(z) // size))


class _Blocks(torch.autograd.Function):
    """Values with gradients that were made with them, block by block."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, rows: Rows, size: int) -> Tensor:
        values, grads = zip(*(_value_and_grad(rows, part) for part in _blocks(z.detach(), size)))
        ctx.rows = rows
        ctx.save_for_backward(z, torch.cat(grads))
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, *costs: Tensor) -> Any:
        (cost,), (z, grads) = costs, ctx.saved_tensors
        if not torch.is_grad_enabled():
            return cost[:, None] * grads, None, None
        # Somebody differentiates this gradient again, for which there has to be all of it at once.
        return torch.autograd.grad(ctx.rows(z), z, cost, create_graph=True)[0], None, None


def _value_and_grad(rows: Rows, part: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        part = part.requires_grad_()
        values = rows(part)
        if not values.requires_grad:
            return values, torch.zeros_like(part)
        (grads,) = torch.autograd.grad(values.sum(), part)
    return values.detach(), grads


class _Footprint(TorchDispatchMode):
    """Counts the bytes of what operations give; views and other changes of shape give nothing new."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes, self.is_random = 0, False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch._dynamo is imported, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.is_random |= torch.Tag.nondeterministic_seeded in func.tags
        if not func.is_view:
            self.num_bytes += sum(leaf.nbytes for leaf in tree_leaves(found) if isinstance(leaf, Tensor))
        return found
