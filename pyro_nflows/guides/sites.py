"""A guide's sites one by one: values without their constraint, and marginal quantiles."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import biject_to

from ..layer import Chain, Layer
from ..layers import LocScale, TriangularAffine
from ..numerics import quasi_normal


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
    transform = biject_to(site["fn"].support)
    if transform.domain.event_dim == 0:
        return cast(Tensor, transform(unconstrained).quantile(levels, 0))
    return cast(Tensor, transform(unconstrained.quantile(levels, 0)))


def unconstrained_value(site: dict[str, Any], value: Tensor, num_dims: int) -> tuple[Tensor, Tensor]:
    """A site's value in unconstrained space, its last ``num_dims`` dimensions made one, and the log-determinant."""
    transform = biject_to(site["fn"].support)
    unconstrained = transform.inv(value)
    batch = unconstrained.shape[: unconstrained.dim() - num_dims]
    log_det = transform.log_abs_det_jacobian(unconstrained, value)
    return unconstrained.reshape(*batch, -1), log_det.reshape(*batch, -1).sum(-1)
