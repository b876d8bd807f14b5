"""A guide's sites one by one: values without their constraint, and marginal quantiles."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import biject_to

from ..layer import Layer
from ..numerics import quasi_normal


def symmetric_normal(layer: Layer, log2_num: int = 12) -> tuple[Tensor, Tensor | None]:
    """Quasi-random normal points with their mirror images and the origin: their medians are exactly zero."""
    like = next(layer.parameters())
    half = quasi_normal(2**log2_num, layer.input_dim + layer.noise_dim, seed=0).to(like)
    points = torch.cat([half, torch.zeros_like(half[:1]), -half])
    return points[:, : layer.input_dim], points[:, layer.input_dim :]


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
