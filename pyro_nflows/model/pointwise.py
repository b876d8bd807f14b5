"""Log densities of single sites, one term an observation."""

import math
from collections.abc import Mapping

import torch
from pyro.distributions import MaskedDistribution
from torch import Tensor

from ..system.shapes import broadcast_shapes
from .data_checks import is_deterministic
from .site_kinds import Site, is_marked


def log_prob_and_mask(site: Site) -> tuple[Tensor, Tensor]:
    """Log density of a site, neither scaled nor masked, and its mask, broadcast to one shape."""
    fn, mask = site["fn"], torch.as_tensor(True if site["mask"] is None else site["mask"])
    while isinstance(fn, MaskedDistribution):
        mask, fn = mask & fn._mask, fn.base_dist
    log_prob = fn.log_prob(site["value"])
    shape = broadcast_shapes(log_prob.shape, mask.shape)
    return log_prob.expand(shape), mask.to(log_prob.device).expand(shape)


def sum_out_enumerated(sites: Mapping[str, Site], name: str, num_observed: int) -> Tensor | None:
    r"""``log p(y_i | z) = logsumexp_d [log p(d_i | z) + log p(y_i | d_i, z)]``, or None if it has no such form.

    It has where every discrete latent that ``y`` depends on is in the same plates as ``y`` and touches no other site:
    a mixture has it; a label shared between observations, or a hidden Markov model, does not.
    """
    own_dim = {n: s["infer"].get("_enumerate_dim") for n, s in sites.items() if is_marked(s)}
    if None in own_dim.values():  # enumerated sequentially
        return None
    terms = {n: _masked_log_prob(s) for n, s in sites.items() if not is_deterministic(s)}
    group = _coupled(terms, set(own_dim.values()), name)
    dims = [own_dim[n] for n in group if n in own_dim]
    if not dims:
        return terms[name]
    plates = {frozenset(sites[n]["cond_indep_stack"]) for n in group}
    in_plates = math.prod(f.size for f in next(iter(plates)) if f.vectorized) == num_observed
    if not in_plates or len(plates) > 1 or len(group) > len(dims) + 1 or len(set(dims)) < len(dims):
        return None
    return torch.stack(torch.broadcast_tensors(*(terms[n] for n in group))).sum(0).logsumexp(dims)


def _masked_log_prob(site: Site) -> Tensor:
    log_prob, mask = log_prob_and_mask(site)
    return torch.where(mask, log_prob, 0.0)


def _coupled(terms: Mapping[str, Tensor], dims: set[int], name: str) -> set[str]:
    """The sites tied to ``name`` by enumerated dimensions, directly or through each other."""
    group: set[str] = set()
    grown = {name}
    while grown != group:
        group = grown
        shared = {d for n in group for d in dims if _varies(terms[n], d)}
        grown = group | {n for n, term in terms.items() if any(_varies(term, d) for d in shared)}
    return group


def _varies(term: Tensor, dim: int) -> bool:
    return term.dim() >= -dim and term.shape[dim] > 1
