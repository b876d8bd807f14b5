"""A guide's sites one by one: their values with log densities, marginal quantiles, locations and widths."""

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

from ..flows.whitened import Whitened
from ..layers import LocScale, TriangularAffine
from ..layers.base import Layer
from ..model.centering import bijection
from ..model.latents import Latent, Latents
from ..model.placed import Placed, prior_where_masked
from ..numerics import quasi_normal
from ..system.exclusive import validation
from . import checks


class PointMass(dist.Delta):
    r"""A site of a guide: a point that carries its log density.

    ``TraceMeanField_ELBO`` takes :math:`\mathrm{KL}(\delta_v, p) = -\log p(v)` for Pyro's ``Delta``, and forgets the
    log density, which holds the constraint's log-determinant. Of this class it knows no KL, and takes the difference of
    log densities, as ``Trace_ELBO`` does.
    """


@kl.register_kl(PointMass, dist.Distribution)
def _no_kl(p: PointMass, q: Any) -> Tensor:
    raise NotImplementedError("a guide's site has no closed-form KL; Pyro takes the difference of log densities")


#: No more numbers than these at once: of many rows there are fewer points.
MAX_NUMBERS = 2**25


def symmetric_normal(layer: Layer, log2_num: int = 12) -> tuple[Tensor, Tensor | None]:
    """Quasi-random normal points with their mirror images and the origin: their medians are exactly zero.

    Beyond the dimensions of a Sobol sequence they are pseudo-random, from a seed of their own.
    """
    like, dim = next(layer.parameters()), layer.input_dim + layer.noise_dim
    num = max(2**6, min(2**log2_num, MAX_NUMBERS // dim))
    if dim <= torch.quasirandom.SobolEngine.MAXDIM:
        half = quasi_normal(num, dim, seed=0).to(like)
    else:
        half = torch.randn(num, dim, generator=torch.Generator().manual_seed(0), device="cpu").to(like)
    points = torch.cat([half, torch.zeros_like(half[:1]), -half])
    return points[:, : layer.input_dim], points[:, layer.input_dim :]


@torch.no_grad()
def loc_scale(layer: Whitened) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of a guide's flat unconstrained latent, ``(latent_dim,)`` each.

    By quasi-random draws that are symmetric and have unit variances: exact where the flow is still the identity and
    its affine end diagonal, as in a fresh guide. Widths are taken before the end's shift is added, which in float32
    would round a small width away.
    """
    flow, end = layer.flow, layer.end
    x, noise = symmetric_normal(layer)
    y, _ = flow(x / x.square().mean(0).sqrt(), noise)
    middle = y.mean(0)
    if isinstance(end, LocScale):
        spread = (y - middle) * end.log_scale.exp()
    else:
        spread = (y - middle) @ end.scale_tril().T if isinstance(end, TriangularAffine) else end.scaled(y - middle)
    return end(middle)[0], spread.square().mean(0).sqrt()


def quantiles(latents: Latents, draws: Tensor, levels: Tensor) -> dict[str, Tensor]:
    """Marginal quantiles of each site from flat draws, of those whose values are known without a run of the model."""
    parts = latents.unpack(draws)
    return {n: _quantiles(at, parts[n], levels) for n, at in latents.sites.items() if n not in latents.moving}


def _quantiles(latent: Latent, unconstrained: Tensor, levels: Tensor) -> Tensor:
    transform = latent.transform
    if transform.domain.event_dim == 0:
        return cast(Tensor, transform(unconstrained).quantile(levels, 0))
    return cast(Tensor, transform(unconstrained.quantile(levels, 0)))


def points(
    latents: Latents, model: Callable[..., Any] | None, latent: Tensor, args: Any, kwargs: Any
) -> dict[str, PointMass]:
    """Every site's value with its log density beside the flat latent's: that of the constraint, and of what is masked.

    Where a masked latent counts with its prior, Pyro's objectives read a model that lacks it, so the guide takes it
    off its own density: their difference is the same.

    :param latents: what the flat latent holds.
    :param model: the model, with ``args`` and ``kwargs``, which is run where values depend on it; else it may be None.
    :param latent: the flat latent, with a dimension for each plate where there are particles.
    """
    parts = latents.unpack_in_plates(latent)
    nodes: Mapping[str, Any] = {name: found.site for name, found in latents.sites.items()}
    by_case = [name for name, cases in latents.filled.items() if cases]
    if by_case and am_i_wrapped() and torch.is_grad_enabled():
        warnings.warn(checks.masked_by_case(latents.owner, by_case[0]), UserWarning, stacklevel=4)
    if model is not None and (latents.moving or latents.filled):
        placed = Placed(latents.owner, parts, centering=latents.centers)
        with poutine.block(), validation(False):
            nodes = poutine.trace(placed(model)).get_trace(*args, **kwargs).nodes
    return {name: _point(latents, name, nodes[name], part) for name, part in parts.items()}


def _point(latents: Latents, name: str, site: Mapping[str, Any], part: Tensor) -> PointMass:
    event_dim = latents.sites[name].event_dim
    transform = bijection(site["fn"], latents.sites[name].centering)
    value = transform(part)
    if poutine.get_mask() is False:
        return PointMass(value, event_dim=event_dim)
    log_det = transform.log_abs_det_jacobian(part, value)
    log_density = -sum_rightmost(log_det, log_det.dim() - value.dim() + event_dim)
    if latents.filled.get(name) is False:
        log_density = log_density - prior_where_masked(site, value)
    return PointMass(value, log_density=log_density, event_dim=event_dim)
