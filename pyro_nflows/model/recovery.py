r"""The scale of a site that is written non-centered, found from the gradients of the rest of the model.

Let ``z`` have a prior of its own, and be used as ``weight = g * z``, with a scale :math:`g` that is a product of other
latents. With :math:`\ell` the log joint without these latents' own priors, each such factor :math:`s` of :math:`g`, to
the power :math:`p`, has

.. math:: \frac{\partial \ell}{\partial \log s} = p \sum_i z_i \frac{\partial \ell}{\partial z_i} ,

the sum over the entries that share it: for each feature of a horseshoe, its own scale has this with its own weight
alone, and the scale of all with all. A latent that enters anywhere else in the model does not. This is looked at in
a few random points; where it holds to rounding, the latent is a factor of the scale.

Nothing depends on being right: coordinates are those of a bijection whatever is found, and densities exact. A wrong
scale could only give coordinates that do not help.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import constraints

from .centering import prior_of
from .following import without_centering
from .handlers import total
from .latents import Latent, Latents, is_enumerated, latent_sites
from .log_joint import LogJoint
from .noncentered import ScaleSite
from .placed import Lifted
from .supports import of_one_number

#: Random points at which gradients are compared, and how far they lie from a point of finite density.
NUM_POINTS, SPREAD = 3, 0.5
#: Powers that are looked for: of scales, variances, and their reciprocals.
POWERS = (1.0, 0.5, -1.0, -0.5)
#: What is rounding: of an entry, and of the largest one, in units of the square root of the precision.
ROUNDING, FLOOR = 1.0, 0.01


def recovered_scales(joint: LogJoint, near: Tensor) -> dict[str, tuple[ScaleSite, ...]]:
    """For each site that is written non-centered, the latents before it that make its scale.

    Sites are looked at whose prior is on the real line, around zero, and depends on no other latent. Where latents are
    in subsampled plates or enumerated, none are.

    :param joint: a log joint of the model.
    :param near: a flat latent of finite density.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro_nflows import AutoFlow
        >>> from pyro_nflows.model.bound import BoundModel
        >>> def model(y):
        ...     tau = pyro.sample("tau", dist.HalfCauchy(1.0))
        ...     sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        ...     eta = pyro.sample("eta", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        ...     pyro.sample("y", dist.Normal(tau * eta, sigma).to_event(1), obs=y)
        ...
        >>> guide = AutoFlow(model, centering=None)
        >>> _ = guide(torch.ones(3))
        >>> recovered_scales(LogJoint(BoundModel(model, (torch.ones(3),)), guide.latents), guide.init_loc())
        {'eta': (ScaleSite(name='tau', power=1.0, is_log=False, num_dims=1),)}
    """
    pairs = _pairs(joint.latents)
    if not pairs or joint.latents.one_run is not None:
        return {}
    try:
        found = _found(*without_centering(joint, near), pairs)
    except (RuntimeError, TypeError, ValueError):  # a model that has no gradients, or no density
        return {}
    scales: dict[str, tuple[ScaleSite, ...]] = {}
    for (name, factor), power in found.items():
        site, other = joint.latents.sites[name], joint.latents.sites[factor]
        scale = ScaleSite(factor, power, not _is_positive(other), site.event_dim - other.event_dim)
        scales[name] = (*scales.get(name, ()), scale)
    return scales


def _found(joint: LogJoint, row: Tensor, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """Of pairs of sites, those of which the second is a factor of the scale of the first, and the power."""
    if any(is_enumerated(site) for site in latent_sites(joint.run(row))):
        return {}
    generator = torch.Generator().manual_seed(0)
    found = {pair: set(POWERS) for pair in pairs}
    for _ in range(NUM_POINTS):
        noise = torch.randn(row.shape, generator=generator, device="cpu").to(row)
        values, gradients = _gradients(joint, row + SPREAD * noise)
        for pair in list(found):
            site, other = (joint.latents.sites[name] for name in pair)
            found[pair] &= _powers(site, other, values, gradients)
            if not found[pair]:
                del found[pair]
        if not found:
            break
    return {pair: max(powers) for pair, powers in found.items()}


def is_of_entries(site: Latent, scales: Sequence[ScaleSite], latents: Latents) -> bool:
    """Whether each of a site's entries has a scale of its own, as the weights of a horseshoe have.

    :param scales: that make the site's scale.
    :param latents: of the model.
    """
    return 1 < site.shape.numel() == max(latents.value_shapes[scale.name].numel() for scale in scales)


def _pairs(latents: Latents) -> list[tuple[str, str]]:
    """Sites that may be written non-centered, each with the sites that may be factors of its scale."""
    before: list[Latent] = []
    found = []
    for name, site in latents.sites.items():
        if not site.is_masked and site.centering is None and _is_standard(site):
            found += [(name, other.name) for other in before if _is_in(other, site)]
        if _is_positive(site) or _is_real(site):
            before.append(site)
    return found


def _is_standard(site: Latent) -> bool:
    prior = prior_of(site.site["fn"])
    return prior is not None and not prior.is_matrix and _is_real(site) and not bool(prior.loc.any())


def _is_in(other: Latent, site: Latent) -> bool:
    """Whether each entry of a site has one entry of another."""
    shape = _aligned(other, site)
    if other.event_dim > site.event_dim or len(shape) > len(site.shape):
        return False
    return all(one in (1, two) for one, two in zip(reversed(shape), reversed(site.shape)))


def _aligned(other: Latent, site: Latent) -> torch.Size:
    return torch.Size(other.value_shape + (1,) * (site.event_dim - other.event_dim))


def _support(site: Latent) -> Any:
    return of_one_number(site.site["fn"].support)


def _is_real(site: Latent) -> bool:
    return _support(site) is constraints.real


def _is_positive(site: Latent) -> bool:
    bound = getattr(_support(site), "lower_bound", None)
    return site.shape == site.value_shape and bound is not None and bool((torch.as_tensor(bound) >= 0).all())


def _gradients(joint: LogJoint, row: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The latents' values at a point, and the log joint's gradients in them without their own priors' terms."""
    with torch.no_grad():
        placed = joint.placed(row)
        joint.visit(placed)
    values = {name: value.detach().clone() for name, value in placed.values.items()}
    with torch.enable_grad():
        for value in values.values():
            value.requires_grad_()
        trace = prune_subsample_sites(joint.visit(Lifted(values)))
        for name, value in values.items():  # their priors' terms are then a function of what is before them only
            trace.nodes[name]["value"] = value.detach()
        trace.compute_log_prob()
        log_p = total(trace, row.dtype)
        if not log_p.requires_grad:
            return values, {}
        gradients = torch.autograd.grad(log_p, list(values.values()), allow_unused=True)
    return values, {name: found for name, found in zip(values, gradients) if found is not None}


def _powers(site: Latent, other: Latent, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> set[float]:
    """The powers to which one site's value may be a factor of another one's scale, by the gradients at one point."""
    if not {site.name, other.name} <= gradients.keys():
        return set()
    terms = values[site.name].detach() * gradients[site.name]
    of_other = gradients[other.name] * (values[other.name].detach() if _is_positive(other) else 1.0)
    shape = _aligned(other, site)
    right, size = terms.sum_to_size(shape), terms.abs().sum_to_size(shape)
    left, unit = of_other.reshape(shape), torch.finfo(terms.dtype).eps ** 0.5
    bound = unit * (ROUNDING * size + FLOOR * size.max())
    if not bool(size.isfinite().all()) or not bool(size.max() > 0):
        return set()
    return {power for power in POWERS if bool(((left - power * right).abs() <= bound).all())}
