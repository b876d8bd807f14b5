"""Are the rows of plates independent given what they are within? A plate says so of the prior; data may tie them."""

import torch
from torch import Tensor

from ..numerics import LogDensity
from .hierarchy import Block, Hierarchy

#: A second derivative below this share of the largest is rounding.
ROUNDING = 1e-5


def rows_interact(log_joint: LogDensity, hierarchy: Hierarchy, near: Tensor) -> bool:
    """Whether the log density has terms of two rows of one block, such as a regression on all of them.

    By products of its Hessian with random numbers in half of a block's rows: those of the other half are zero if rows
    are independent given what they are within.

    :param log_joint: ``(K, D) -> (K,)``.
    :param hierarchy: the rows.
    :param near: a point of finite density.

    Example::

        >>> from pyro_nflows.model.hierarchy import Hierarchy, Outline
        >>> rows = Hierarchy.of_outlines({"z": Outline((3,), {"groups": 0})})
        >>> rows_interact(lambda z: -z.pow(4).sum(-1), rows, torch.ones(3))
        False
        >>> rows_interact(lambda z: -z.sum(-1).pow(2), rows, torch.ones(3))
        True
    """
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        at = near + 0.1 * torch.randn(near.shape, generator=generator, device="cpu").to(near)
        at = at.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(log_joint(at[None])[0], at, create_graph=True)
        if not gradient.requires_grad:
            return False
        return any(_interact(gradient, at, block, generator) for block in hierarchy.blocks if block.num_rows > 1)


def _interact(gradient: Tensor, at: Tensor, block: Block, generator: torch.Generator) -> bool:
    for _ in range(3):  # two rows that interact are in one half half of the time
        chosen = torch.rand(block.num_rows, generator=generator, device="cpu").argsort() < (block.num_rows + 1) // 2
        vector = torch.zeros_like(at)
        numbers = torch.randn(block.columns[chosen].shape, generator=generator, device="cpu").to(at)
        vector[block.columns[chosen].to(at.device)] = numbers
        (product,) = torch.autograd.grad((gradient * vector).sum(), at, retain_graph=True)
        others = product[block.columns[~chosen].to(at.device)].abs().max()
        if bool(others > ROUNDING * product.abs().max()):
            return True
    return False
