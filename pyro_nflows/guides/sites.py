"""A guide's sites one by one: values with and without their constraint, and marginal quantiles."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions.util import sum_rightmost
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor
from torch.distributions import kl
from torch.utils._pytree import tree_map

from .. import supports
from ..exclusive import validation
from ..layer import Chain, Layer
from ..layers import LocScale, TriangularAffine
from ..numerics import quasi_normal
from . import checks
from .placed import Lifted, Placed, prior_where_masked

#: Rows that go through the model at once where supports are to be followed: it computes all its data's densities too.
ROWS_AT_ONCE = 500


class PointMass(dist.Delta):
    r"""A site of a guide: a point that carries its log density.

    ``TraceMeanField_ELBO`` takes :math:`\mathrm{KL}(\delta_v, p) = -\log p(v)` for Pyro's ``Delta``, and forgets the
    log density, which holds the constraint's log-determinant. Of this class it knows no KL, and takes the difference of
    log densities, as ``Trace_ELBO`` does.
    """


@kl.register_kl(PointMass, dist.Distribution)
def _no_kl(p: PointMass, q: Any) -> Tensor:
    raise NotImplementedError("a guide's site has no closed-form KL; Pyro takes the difference of log densities")


def symmetric_normal(layer: Layer, log2_num: int = 12) -> tuple[Tensor, Tensor | None]:
    """Quasi-random normal points with their mirror images and the origin: their medians are exactly zero."""
    like = next(layer.parameters())
    half = quasi_normal(2**log2_num, layer.input_dim + layer.noise_dim, seed=0).to(like)
    points = torch.cat([half, torch.zeros_like(half[:1]), -half])
    return points[:, : layer.input_dim], points[:, layer.input_dim :]


@torch.no_grad()
def loc_scale(layer: Chain) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of a guide's flat unconstrained latent, ``(latent_dim,)`` each.

    By quasi-random draws that are symmetric and have unit variances: exact where the flow is still the identity and
    its affine end diagonal, as in a fresh guide. Widths are taken before the end's shift is added, which in float32
    would round a small width away.
    """
    flow, end = layer[0], layer[1]
    x, noise = symmetric_normal(layer)
    y, _ = flow(x / x.square().mean(0).sqrt(), noise)
    middle = y.mean(0)
    linear = end.scale_tril() if isinstance(end, TriangularAffine) else cast(LocScale, end).log_scale.exp().diag()
    return end(middle)[0], ((y - middle) @ linear.T).square().mean(0).sqrt()


def site_quantiles(site: dict[str, Any], unconstrained: Tensor, levels: Tensor) -> Tensor:
    """Marginal quantiles of a site from its unconstrained draws."""
    transform = supports.bijection(site["fn"])
    if transform.domain.event_dim == 0:
        return cast(Tensor, transform(unconstrained).quantile(levels, 0))
    return cast(Tensor, transform(unconstrained.quantile(levels, 0)))


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


def points(guide: Any, latent: Tensor, args: Any, kwargs: Any) -> dict[str, PointMass]:
    """Every site's value with its log density beside the flat latent's: that of the constraint, and of what is masked.

    Where a masked latent counts with its prior, Pyro's objectives read a model that lacks it, so the guide takes it
    off its own density: their difference is the same.
    """
    parts = {site["name"]: part for site, part in guide._unpack_latent(latent)}
    nodes = guide.prototype_trace.nodes
    by_case = [name for name, cases in guide.filled.items() if cases]
    if by_case and am_i_wrapped() and torch.is_grad_enabled():
        warnings.warn(checks.masked_by_case(type(guide).__name__, by_case[0]), UserWarning, stacklevel=4)
    if guide.moving or guide.filled:
        placed = Placed(type(guide).__name__, parts)
        with poutine.block(), validation(False):
            nodes = poutine.trace(placed(guide.bare_model)).get_trace(*args, **kwargs).nodes
    return {name: _point(guide, nodes[name], part) for name, part in parts.items()}


def _point(guide: Any, site: dict[str, Any], part: Tensor) -> PointMass:
    event_dim = guide.prototype_trace.nodes[site["name"]]["fn"].event_dim
    transform = supports.bijection(site["fn"])
    value = transform(part)
    if poutine.get_mask() is False:
        return PointMass(value, event_dim=event_dim)
    log_det = transform.log_abs_det_jacobian(part, value)
    log_density = -sum_rightmost(log_det, log_det.dim() - value.dim() + event_dim)
    if guide.filled.get(site["name"]) is False:
        log_density = log_density - prior_where_masked(site, value)
    return PointMass(value, log_density=log_density, event_dim=event_dim)


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
