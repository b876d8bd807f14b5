r"""Coordinates in which a latent does not depend on its prior's location and scale: partly non-centered ones [1, 2].

A latent :math:`z` whose prior has location :math:`f` and scale :math:`g` that depend on other latents is the image of a
coordinate :math:`v`, for a centering :math:`c` in :math:`[0, 1]`:

.. math:: z = f + g^{1 - c} (v - c f), \qquad \log\left|\frac{dz}{dv}\right| = (1 - c) \log g .

At :math:`c = 1` it is the latent itself; at :math:`c = 0`, the non-centered parameterisation :math:`z = f + g v`. Both
are in unconstrained space: a log-normal, half-normal, half-Cauchy or gamma prior has a location there, and some a
scale. A gamma or beta prior has more of a shape than these: they are its mode there and its curvature at it. A vector
with scale matrix :math:`L` takes :math:`(1 - c) L + c I` in place of :math:`g^{1 - c}`.

**References**

[1] M. Gorinova, D. Moore, M. Hoffman (2020). Automatic Reparameterisation of Probabilistic Programs.

[2] O. Papaspiliopoulos, G. Roberts, M. Sköld (2007). A General Framework for the Parametrization of Hierarchical
Models.
"""

from collections.abc import Callable
from copy import copy
from typing import Any, NamedTuple, cast

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import AffineTransform, ComposeTransform, ExpTransform, SigmoidTransform, Transform

from ..triangles import solve_triangular
from . import supports
from .noncentered import LOG_SCALE


class Prior(NamedTuple):
    """The location and the scale of a distribution in unconstrained space.

    ``scale`` is of each coordinate, or, where ``is_matrix``, a lower triangular matrix for the last dimension.
    """

    loc: Tensor
    scale: Tensor
    is_matrix: bool = False

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Both."""
        return self.loc, self.scale


def _log_scaled(scale: Tensor, power: float = 1.0) -> Prior:
    """Of a positive variable with a scale parameter: its logarithm is only shifted by it."""
    return Prior(power * scale.log(), torch.ones_like(scale))


def _located(fn: Any) -> Prior:
    return Prior(fn.loc, fn.scale)


def _with_matrix(fn: Any) -> Prior:
    return Prior(fn.loc, fn.scale_tril, is_matrix=True)


def _gamma(fn: Any) -> Prior:
    """The logarithm's mode, and the scale that the curvature there says."""
    return Prior(fn.concentration.log() - fn.rate.log(), fn.concentration.rsqrt())


def _inverse_gamma(fn: Any) -> Prior:
    """That of a gamma variable, turned around."""
    loc, scale, _ = _gamma(fn)
    return Prior(-loc, scale)


def _beta(fn: Any) -> Prior:
    """The log-odds' mode, and the scale that the curvature there says."""
    a, b = fn.concentration1, fn.concentration0
    return Prior(a.log() - b.log(), (a.reciprocal() + b.reciprocal()).sqrt())


def _folded(fn: Any) -> Prior | None:
    scale = getattr(_bare(fn.base_dist), "scale", None)
    return _log_scaled(scale) if isinstance(scale, Tensor) else None


def _transformed(fn: Any) -> Prior | None:
    """Of a real variable, shifted and scaled, and perhaps taken to the support by the support's own bijection."""
    prior = prior_of(fn.base_dist)
    if prior is None or prior.is_matrix or not _is_real(fn.base_dist.support):
        return None
    *steps, last = [part for t in fn.transforms for part in (t.parts if isinstance(t, ComposeTransform) else [t])]
    if not isinstance(last, ExpTransform | SigmoidTransform):
        steps.append(last)
    for step in steps:
        if not isinstance(step, AffineTransform):
            return None
        loc, scale = torch.as_tensor(step.loc), torch.as_tensor(step.scale)
        prior = Prior(loc + scale * prior.loc, scale.abs() * prior.scale)
    return prior


def _is_real(support: Any) -> bool:
    return getattr(support, "base_constraint", support) is constraints.real


#: What the prior of each kind of distribution is, found by its class; the first that fits.
KINDS: dict[type, Callable[[Any], Prior | None]] = {
    dist.Normal: _located,
    dist.StudentT: _located,
    dist.Cauchy: _located,
    dist.Laplace: _located,
    dist.SoftLaplace: _located,
    dist.AsymmetricLaplace: _located,
    dist.SoftAsymmetricLaplace: _located,
    dist.Logistic: _located,
    dist.SkewLogistic: _located,
    dist.Stable: _located,
    dist.Gumbel: _located,
    dist.LogNormal: _located,
    dist.LogisticNormal: _located,
    dist.HalfNormal: lambda fn: _log_scaled(fn.scale),
    dist.HalfCauchy: lambda fn: _log_scaled(fn.scale),
    dist.FoldedDistribution: _folded,
    dist.Exponential: lambda fn: _log_scaled(fn.rate, -1.0),
    dist.Gamma: _gamma,
    dist.InverseGamma: _inverse_gamma,
    dist.Beta: _beta,
    dist.Pareto: lambda fn: _log_scaled(fn.scale),
    dist.Weibull: lambda fn: Prior(fn.scale.log(), fn.concentration.reciprocal()),
    dist.MultivariateNormal: _with_matrix,
    dist.LowRankMultivariateNormal: _with_matrix,
    dist.MultivariateStudentT: _with_matrix,
    dist.TransformedDistribution: _transformed,
}


def prior_of(fn: Any) -> Prior | None:
    """The location and scale of a distribution in unconstrained space; None where they are not known.

    :param fn: a distribution; what is masked, expanded or reinterpreted is unwrapped. Of variables that are shifted,
        scaled, exponentiated or made probabilities by a ``TransformedDistribution``, it is that of the variable without
        constraint.

    Example::

        >>> prior_of(dist.LogNormal(torch.tensor(1.0), torch.tensor(0.5)).expand([3]).to_event(1)).scale
        tensor([0.5000, 0.5000, 0.5000])
        >>> float(prior_of(dist.HalfNormal(1.0)).loc)
        0.0
    """
    fn = _bare(fn)
    kind = next((kind for kind in KINDS if isinstance(fn, kind)), None)
    return None if kind is None else KINDS[kind](fn)


def _bare(fn: Any) -> Any:
    while isinstance(fn, torch.distributions.Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    return fn


class Centering(Transform):
    r"""From coordinates to unconstrained values, given the prior: :math:`z = f + g^{1 - c} (v - c f)`.

    :param prior: location and scale, broadcastable to the value.
    :param centering: :math:`c`, in the shape of the value or of less.

    Example::

        >>> prior = Prior(torch.tensor(3.0), torch.tensor(0.1))
        >>> v = torch.tensor([0.0, 1.0])
        >>> Centering(prior, torch.tensor(0.0))(v), Centering(prior, torch.tensor(1.0))(v)
        (tensor([3.0000, 3.1000]), tensor([0., 1.]))
    """

    bijective = True

    def __init__(self, prior: Prior, centering: Tensor):
        super().__init__()
        self.prior, self.centering = prior, centering
        self.domain = self.codomain = constraints.real_vector if prior.is_matrix else constraints.real

    def _call(self, x: Tensor) -> Tensor:
        return (self.prior.loc + self.offset(x)).to(x.dtype)

    def offset(self, x: Tensor) -> Tensor:
        """The image less the location: exact where the scale is too small for the image to differ from that."""
        y = x - self.centering * self.prior.loc
        return (self._matrix() @ y[..., None])[..., 0] if self.prior.is_matrix else self._log_factor().exp() * y

    def _inverse(self, y: Tensor) -> Tensor:
        x = y - self.prior.loc
        if self.prior.is_matrix:
            matrix = self._matrix().expand(*x.shape[:-1], -1, -1)
            x = solve_triangular(matrix, x[..., None], upper=False)[..., 0]
        else:
            x = x * (-self._log_factor()).exp()
        return (x + self.centering * self.prior.loc).to(y.dtype)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Of each coordinate, or of the whole vector where the scale is a matrix."""
        if self.prior.is_matrix:
            return self._matrix().diagonal(dim1=-2, dim2=-1).log().sum(-1).expand(x.shape[:-1]).to(x.dtype)
        return self._log_factor().expand_as(x).to(x.dtype)

    def _log_factor(self) -> Tensor:
        return (1 - self.centering) * self.prior.scale.log()

    def _matrix(self) -> Tensor:
        """The rows of :math:`(1 - c) L + c I`."""
        scale = self.prior.scale
        rows = torch.as_tensor(self.centering)[..., None]
        return (1 - rows) * scale + rows * torch.eye(scale.shape[-1]).to(scale)


def about_location(fn: Any, centering: Tensor, x: Tensor) -> Any:
    r"""A distribution with its log density at the image of a coordinate, computed from :math:`z - f` rather than `z`.

    Where the scale is much smaller than the location, :math:`z` is rounded to :math:`f`; the density would then be the
    same for all coordinates, and have no integral over them. It is as given where the support is not all real numbers:
    logarithms of positive variables have scales of about one; and where the scale is elsewhere, since the location is
    zero then.

    :param fn: the distribution.
    :param centering: :math:`c`.
    :param x: the coordinate.
    """
    zero = None if LOG_SCALE in vars(fn) else _at_zero(fn)
    if zero is None:
        return fn
    offset, new = Centering(cast(Prior, prior_of(fn)), centering).offset(x), copy(fn)
    new.log_prob = lambda value: zero.log_prob(offset)
    return new


def _at_zero(fn: Any) -> Any:
    """A distribution on the real line, or on vectors, moved to the location zero; None for others."""
    wrapped = isinstance(fn, torch.distributions.Independent | MaskedDistribution | ExpandedDistribution)
    key, moved = ("base_dist", _at_zero(fn.base_dist)) if wrapped else ("loc", _zero(fn))
    if moved is None:
        return None
    new = copy(fn)
    vars(new)[key] = moved
    return new


def _zero(fn: Any) -> Tensor | None:
    is_moved = "loc" in vars(fn) and prior_of(fn) is not None and _is_real(fn.support)
    return torch.zeros_like(fn.loc) if is_moved else None


def bijection(fn: Any, centering: Tensor | None) -> Transform:
    """From coordinates, or without a centering from unconstrained values, to the support of a distribution.

    Example::

        >>> to_value = bijection(dist.LogNormal(torch.tensor(1.0), torch.tensor(0.5)), torch.tensor(0.0))
        >>> to_value(torch.tensor(2.0))  # exp(1 + 0.5 * 2)
        tensor(7.3891)
    """
    to_support = supports.bijection(fn)
    return to_support if centering is None else ComposeTransform([coordinates(fn, centering), to_support])


def coordinates(fn: Any, centering: Tensor) -> Centering:
    """From coordinates to unconstrained values of a site, by its prior, or by the scale that it has elsewhere.

    :param fn: the site's distribution; see :func:`~pyro_nflows.model.noncentered.scaled_elsewhere`.
    :param centering: :math:`c`.
    """
    log_scale = vars(fn).get(LOG_SCALE)
    if log_scale is None:
        return Centering(cast(Prior, prior_of(fn)), centering)
    return Centering(Prior(torch.zeros_like(log_scale), (-log_scale).exp()), 1 - centering)
