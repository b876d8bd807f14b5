r"""Supports of distributions: the bijection from real vectors to each, also where torch wraps or misstates it.

torch knows a transform for a constraint by its class, so it knows none for the support of a mixture, and takes the
support of a transformed distribution to be all that its last transform can reach, as if its base were unbounded.
"""

from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import biject_to, constraints, transforms
from torch.distributions.transforms import ComposeTransform, IndependentTransform, Transform

from .matrices import CholeskyFactor, PositiveDefinite

#: Supports that torch knows no bijection to, and the one that is taken.
MATRICES: dict[type, type[Transform]] = {
    type(constraints.positive_definite): PositiveDefinite,
    type(constraints.positive_semidefinite): PositiveDefinite,
    type(constraints.lower_cholesky): CholeskyFactor,
    type(dist.constraints.softplus_lower_cholesky): CholeskyFactor,
}

#: Distributions of angles and directions. Some say that their support is the real line, along which they repeat.
PERIODIC = (
    torch.distributions.VonMises,
    dist.VonMises3D,
    dist.SineBivariateVonMises,
    dist.SineSkewed,
    dist.ProjectedNormal,
)


def bijection(fn: Any) -> Transform:
    r"""The bijection from unconstrained values to the support of a distribution.

    :param fn: a distribution; mixtures, and what is masked, expanded, reinterpreted or transformed, are unwrapped.
    :raises NotImplementedError: if no bijection is known.

    Example::

        >>> mixed = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.LogNormal(torch.zeros(2), 1.0))
        >>> bijection(mixed)(torch.zeros(3))
        tensor([1., 1., 1.])
        >>> moved = dist.TransformedDistribution(dist.Beta(2.0, 2.0), transforms.AffineTransform(5.0, 2.0))
        >>> bijection(moved)(torch.zeros(()))
        tensor(6.)
    """
    if isinstance(fn, torch.distributions.Independent) and fn.reinterpreted_batch_ndims:
        return IndependentTransform(bijection(fn.base_dist), fn.reinterpreted_batch_ndims)
    if isinstance(fn, MaskedDistribution | ExpandedDistribution):
        return bijection(fn.base_dist)
    if _is_narrower(fn):
        return ComposeTransform([bijection(fn.base_dist), *fn.transforms])
    return of_support(fn.support)


def of_support(support: Any) -> Transform:
    """The bijection from unconstrained values to a constraint, as torch's ``biject_to`` with wrappers undone.

    :raises NotImplementedError: if no bijection is known.

    Example::

        >>> inner = constraints.MixtureSameFamilyConstraint(constraints.positive)
        >>> of_support(constraints.independent(inner, 1))(torch.zeros(2))
        tensor([1., 1.])
    """
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        return of_support(_of_a_component(support.base_constraint))
    if isinstance(support, constraints.independent):
        return IndependentTransform(of_support(support.base_constraint), support.reinterpreted_batch_ndims)
    if isinstance(support, constraints.cat):
        return transforms.CatTransform([of_support(c) for c in support.cseq], support.dim, support.lengths)
    if isinstance(support, constraints.stack):
        return transforms.StackTransform([of_support(c) for c in support.cseq], support.dim)
    if type(support) in MATRICES:
        return MATRICES[type(support)]()
    return biject_to(support)


def _is_narrower(fn: Any) -> bool:
    """Whether a transformed distribution's base covers only a part of what its transforms could be applied to."""
    kind = torch.distributions.TransformedDistribution
    if not isinstance(fn, kind) or type(fn).support is not kind.support or not fn.transforms:
        return False
    return _is_real(fn.transforms[0].domain) and not _is_real(fn.base_dist.support)


def of_one_number(support: Any) -> Any:
    """The support of one number, where this is a stack of these.

    Example::

        >>> of_one_number(constraints.independent(constraints.real, 2)) is constraints.real
        True
    """
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _is_real(support: Any) -> bool:
    return of_one_number(support) is constraints.real


def _of_a_component(support: Any, event_dim: int = 0) -> Any:
    """The support that a mixture's components share, without their dimension in its bounds."""
    if isinstance(support, constraints.independent):
        num = support.reinterpreted_batch_ndims
        return constraints.independent(_of_a_component(support.base_constraint, event_dim + num), num)
    bounds = {key: value.select(-1 - event_dim, 0) for key, value in _tensors(support) if value.dim() > event_dim}
    if not bounds:
        return support
    shared = copy(support)
    vars(shared).update(bounds)
    return shared


def has_bounds(fn: Any) -> bool:
    """Whether tensors say where the support ends, which may be other ones in another run of the model.

    Example::

        >>> has_bounds(dist.Uniform(0.0, torch.ones(3)).to_event(1)), has_bounds(dist.HalfNormal(1.0))
        (True, False)
    """
    while isinstance(fn, torch.distributions.Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    return _is_narrower(fn) or _holds_tensors(fn.support)


def _holds_tensors(support: Any) -> bool:
    inner = [getattr(support, "base_constraint", None), *getattr(support, "cseq", ())]
    return any(True for _ in _tensors(support)) or any(_holds_tensors(c) for c in inner if c is not None)


def _tensors(support: Any) -> list[tuple[str, Tensor]]:
    return [(key, value) for key, value in _attributes(support).items() if isinstance(value, Tensor)]


def _attributes(support: Any) -> Mapping[str, Any]:
    return getattr(support, "__dict__", {})


def is_periodic(fn: Any) -> bool:
    """Whether a distribution is of angles or directions.

    Example::

        >>> is_periodic(dist.VonMises(torch.zeros(2), 1.0).to_event(1).mask(True)), is_periodic(dist.Normal(0.0, 1.0))
        (True, False)
    """
    while not isinstance(fn, PERIODIC):
        inner = getattr(fn, "base_dist", None) or getattr(fn, "component_distribution", None)
        if inner is None:
            return "sphere" in repr(fn.support).lower()
        fn = inner
    return True


def is_point(fn: Any) -> bool:
    """Whether all mass of a distribution is at one value.

    Example::

        >>> is_point(dist.Delta(torch.zeros(2)).to_event(1).mask(True)), is_point(dist.Normal(0.0, 1.0))
        (True, False)
    """
    while isinstance(fn, torch.distributions.Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)


def differing_components(fn: Any) -> bool:
    """Whether the components of a mixture have different bounds, so that their mixture's support is not one of them.

    Example::

        >>> parts = dist.Uniform(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
        >>> differing_components(dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts))
        True
    """
    while isinstance(fn, torch.distributions.Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    if not isinstance(fn, torch.distributions.MixtureSameFamily):
        return False
    return _differ(fn.component_distribution.support, 0)


def _differ(support: Any, event_dim: int) -> bool:
    if isinstance(support, constraints.independent):
        return _differ(support.base_constraint, event_dim + support.reinterpreted_batch_ndims)
    bounds = [value for _, value in _tensors(support) if value.dim() > event_dim]
    return any(bool((value != value.select(-1 - event_dim, 0).unsqueeze(-1 - event_dim)).any()) for value in bounds)
