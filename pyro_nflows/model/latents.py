"""A model's latents: values of the sites with and without their constraints, one by one or as one flat vector."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils._pytree import tree_map

from ..system.exclusive import validation
from . import checks, supports
from .placed import Lifted

#: Rows that go through the model at once where supports are to be followed: it computes all its data's densities too.
ROWS_AT_ONCE = 500


def unconstrained_value(site: dict[str, Any], value: Tensor, num_dims: int) -> tuple[Tensor, Tensor]:
    """A site's value in unconstrained space, its last ``num_dims`` dimensions made one, and the log-determinant."""
    transform = supports.bijection(site["fn"])
    unconstrained = transform.inv(value)
    return _flat(unconstrained, transform.log_abs_det_jacobian(unconstrained, value), num_dims)


def _flat(part: Tensor, log_det: Tensor, num_dims: int) -> tuple[Tensor, Tensor]:
    batch = part.shape[: part.dim() - num_dims]
    return part.reshape(*batch, -1), log_det.reshape(*batch, -1).sum(-1)


def unconstrained_shape(name: str, site: dict[str, Any]) -> torch.Size:
    """The shape of a site's value in unconstrained space."""
    try:
        return supports.bijection(site["fn"]).inv(site["value"]).shape
    except AssertionError as error:  # torch's transforms of pieces that change the number of dimensions
        raise checks.no_bijection(name, site) from error


def constrained(joint: Any, z: Tensor, args: Any, kwargs: Any) -> dict[str, Tensor]:
    """Flat latents ``(num, latent_dim)`` as values of the sites, each on the support that it has beside the others."""

    def values_of(row: Tensor) -> dict[str, Tensor]:
        placed = joint.placed(row)
        joint.visit(placed, args, kwargs)
        return placed.values

    return cast(dict[str, Tensor], _mapped(values_of, z))


def unconstrained(joint: Any, values: Mapping[str, Tensor], args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    """The other way: values with leading dimensions to flat latents, and the log-determinants."""

    def parts_of(row: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        lifted = Lifted(row)
        joint.visit(lifted, args, kwargs)
        parts = [_flat(lifted.parts[name], lifted.log_dets[name], len(shape)) for name, shape in shapes.items()]
        return torch.cat([part for part, _ in parts]), torch.stack([log_det for _, log_det in parts]).sum()

    shapes, nodes = joint.guide._unconstrained_shapes, joint.guide.prototype_trace.nodes
    nums = {name: values[name].dim() - nodes[name]["value"].dim() for name in shapes}
    batch = torch.broadcast_shapes(*(values[name].shape[:num] for name, num in nums.items()))
    rows = {
        n: values[n].expand(batch + values[n].shape[num:]).reshape(-1, *values[n].shape[num:])
        for n, num in nums.items()
    }
    z, log_det = _mapped(parts_of, rows)
    return z.reshape(*batch, -1), log_det.reshape(batch)


def _mapped(one: Callable[[Any], Any], rows: Any) -> Any:
    """A function of each row, by vmap where that runs and repeats the first row's answer."""
    length = len(rows if isinstance(rows, Tensor) else next(iter(rows.values())))
    with validation(False), poutine.block():
        first = one(tree_map(lambda value: value[0], rows))
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


def latent_sites(trace: Any) -> Iterator[dict[str, Any]]:
    """Sample sites that are neither observed, conditioned nor subsampled indices."""
    for site in trace.nodes.values():
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site):
            yield site


def is_enumerated(site: dict[str, Any]) -> bool:
    """Whether a site is to be summed out."""
    return bool(site["infer"].get("enumerate") == "parallel")
