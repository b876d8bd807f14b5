"""Values of the sites for flat latents, and back, where supports move: the model is run to know them."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from pyro import poutine
from torch import Tensor
from torch.utils._pytree import tree_map

from ..system.exclusive import validation
from ..system.shapes import broadcast_shapes
from .latents import row_and_log_det
from .log_joint import LogJoint
from .placed import Lifted
from .transformable import transformable

#: Rows that go through the model at once where supports are to be followed: it computes all its data's densities too.
ROWS_AT_ONCE = 500


def constrained(joint: LogJoint, z: Tensor) -> dict[str, Tensor]:
    """Flat latents ``(num, latent_dim)`` as values of the sites, each on the support that it has beside the others.

    :param joint: the model, after :meth:`~pyro_nflows.model.log_joint.LogJoint.look`.
    """

    def values_of(row: Tensor) -> dict[str, Tensor]:
        placed = joint.placed(row)
        joint.visit(placed)
        return placed.values

    return cast(dict[str, Tensor], mapped(values_of, z))


def unconstrained(joint: LogJoint, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The other way: values with leading dimensions to flat latents, and the log-determinants."""

    def parts_of(row: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        lifted = Lifted(row, joint.latents.centers)
        joint.visit(lifted)
        parts = [row_and_log_det(lifted.parts[name], lifted.log_dets[name], len(shape)) for name, shape in shapes]
        return torch.cat([part for part, _ in parts]), torch.stack([log_det for _, log_det in parts]).sum()

    shapes = joint.latents.shapes.items()
    nums = {name: values[name].dim() - len(shape) for name, shape in joint.latents.value_shapes.items()}
    batch = broadcast_shapes(*(values[name].shape[:num] for name, num in nums.items()))
    rows = {
        n: values[n].expand(batch + values[n].shape[num:]).reshape(-1, *values[n].shape[num:])
        for n, num in nums.items()
    }
    z, log_det = mapped(parts_of, rows)
    return z.reshape(*batch, -1), log_det.reshape(batch)


def mapped(one: Callable[[Any], Any], rows: Any) -> Any:
    """A function of each row, by vmap where that runs and repeats the first row's answer."""
    length = len(rows if isinstance(rows, Tensor) else next(iter(rows.values())))
    with validation(False), poutine.block(), transformable():
        first = one(tree_map(lambda value: value[0], rows))
        if length == 1:
            return tree_map(lambda value: value[None], first)
        try:
            answers = torch.vmap(one, randomness="same", chunk_size=ROWS_AT_ONCE)(rows)
            if _starts_with(answers, first):
                return answers
        except Exception:  # whatever the model cannot do under vmap; its own mistakes come back from the loop
            pass
        alone = [one(tree_map(lambda value, i=i: value[i], rows)) for i in range(length)]
    return tree_map(lambda *values: torch.stack(values), *alone)


def _starts_with(answers: Any, first: Any) -> bool:
    same = tree_map(
        lambda many, one: torch.allclose(many[0], one, rtol=1e-4, atol=1e-4, equal_nan=True), answers, first
    )
    return all(same.values() if isinstance(same, dict) else same)
