r"""What has to be followed from run to run of a model: supports that move, and latents that are masked.

**Supports.** A support moves where it depends on other latents (``Uniform(0, 1 - a)``), on parameters, or on the
model's arguments. Then values are found from unconstrained latents by running the model.

**Masked latents.** Where a latent is masked, the model's density is flat in it, and has no finite integral unless
another term depends on it. Where none does, as in padded sequences and the missing entries of ``obs_mask=``, the latent
counts with its prior, which is its posterior given all else. The prior integrates to one, so nothing else changes:

.. math:: \int p(x, \theta) \, p(z_{\mathrm{masked}} \mid \theta) \, dz_{\mathrm{masked}} = p(x, \theta).

Where a term does, such as a ``pyro.factor`` that stands for the prior, the flat density is meant, and kept. A mask that
depends on an enumerated site, as a spike and slab has, is filled in each of its cases.
"""

from typing import Any

import torch
from torch import Tensor

from ..system.shapes import broadcast_shapes
from . import checks, supports
from .all_rows import OtherRows
from .centering import Prior, prior_of
from .latents import is_enumerated, latent_sites
from .placed import Lifted, is_masked, mask_of


def moving_sites(joint: Any, near: Tensor, traces: list[Any]) -> frozenset[str]:
    """Sites whose support differs between two runs or from the latents' own, or has a gradient.

    :param near: two flat latents.
    :param traces: the model's, at these.
    :raises ValueError: if a support is another one in a second run at the same latents.
    """
    prototype, known = joint.latents.prototype(), joint.latents.moving & _of_other_rows(joint)
    parts = {name: part for name, part in joint.latents.unpack(near[0]).items() if name not in known}
    moved = {n for n, part in parts.items() if not _agree([prototype, *traces], n, part)}
    bounded = {n for n in parts if supports.has_bounds(traces[0].nodes[n]["fn"])}
    if moved | bounded:
        again = joint.run(near[0])
        random = [name for name in moved if not _agree([traces[0], again], name, parts[name])]
        if random:
            raise checks.random_support(joint.latents.owner, random[0])
    return frozenset(moved | _with_gradient(joint, near[0], bounded - moved))


def _of_other_rows(joint: Any) -> set[str]:
    """Sites whose support is known for other rows of a subsampled plate than a run has."""
    return {name for name, latent in joint.latents.sites.items() if isinstance(latent.site["fn"], OtherRows)}


def _agree(traces: list[Any], name: str, part: Tensor) -> bool:
    """Whether a site has one support in several runs."""
    first, *others = (supports.bijection(trace.nodes[name]["fn"])(part) for trace in traces)
    return all(torch.allclose(first, other, rtol=1e-5, atol=1e-6, equal_nan=True) for other in others)


def _with_gradient(joint: Any, z: Tensor, names: set[str]) -> set[str]:
    """Sites whose support has a gradient in the latents, the parameters or the model's arguments."""
    if not names:
        return names
    with torch.enable_grad():
        watched = z.clone().requires_grad_()
        try:
            data = [_watched(tensor) for tensor in joint.bound.tensors]
            trace = joint.on(joint.bound.with_data(data)).run(watched)
        except (RuntimeError, ValueError):  # an argument written to in place, or turned into an array
            trace = joint.run(watched)
        parts = joint.latents.unpack(z)
        return {n for n in names if supports.bijection(trace.nodes[n]["fn"])(parts[n]).requires_grad}


def _watched(data: Tensor) -> Tensor:
    if data.is_floating_point() and not data.requires_grad:
        return data.detach().requires_grad_()  # no copy: there may be no memory for it
    return data


def filled_sites(joint: Any, near: Tensor) -> dict[str, bool]:
    """Masked sites that are to count with their prior, and whether their mask depends on an enumerated site.

    :param near: flat latents at which no term depends on a latent where it is masked.
    """
    nodes = joint.at(near[0], filled=())[0].nodes
    names = [name for name in joint.latents.sites if is_masked(nodes[name])]
    masked = [name for name in names if not bool(mask_of(nodes[name]).all())]
    by_case = {name: _is_wider(nodes[name], joint) for name in masked}
    alone = {name for name in masked if by_case[name] or _is_alone(joint, name, near)}
    return {name: by_case[name] for name in masked if name in alone}


def _is_wider(site: Any, joint: Any) -> bool:
    """Whether a mask has dimensions of enumerated sites, to the left of the plates'."""
    mask = site["mask"]
    num = mask.dim() - joint.max_plate_nesting if isinstance(mask, Tensor) else 0
    return num > 0 and any(size > 1 for size in mask.shape[:num])


def _is_alone(joint: Any, name: str, near: Tensor) -> bool:
    """Whether the density does not change with a site where it is masked."""
    return all(not bool(_gradient_where_masked(joint, name, row).any()) for row in near)


def _gradient_where_masked(joint: Any, name: str, row: Tensor) -> Tensor:
    """That of the density in a site's value; not along prior-informed coordinates, where others move with it."""
    joint, row = without_centering(joint, row)
    with torch.enable_grad():
        watched = row.clone().requires_grad_()
        trace, log_p, placed = joint.at(watched, filled=())
        value = placed.values[name]
        gradient = torch.autograd.grad(log_p, value, allow_unused=True)[0] if log_p.requires_grad else None
    if gradient is None:
        return torch.zeros(())
    mask = mask_of(trace.nodes[name])
    return torch.where(mask.reshape(mask.shape + (1,) * (gradient.dim() - mask.dim())), 0.0, gradient)


def without_centering(joint: Any, row: Tensor) -> tuple[Any, Tensor]:
    """The same log joint and flat latent, of unconstrained values in the place of coordinates."""
    if not joint.latents.centering:
        return joint, row
    plain = joint.on(joint.bound)
    plain.latents = joint.latents.centered({})
    with torch.no_grad():
        placed = joint.placed(row)
        joint.visit(placed)
        lifted = Lifted(placed.values)
        plain.visit(lifted)
        return plain, plain.latents.pack(lifted.parts)


def hierarchical_sites(joint: Any, near: Tensor) -> list[str]:
    """Sites whose prior has a location or a scale that depends on other latents, and on nothing drawn at random.

    A prior that depends on an enumerated site has several of each, and is left out; so is one that is computed from
    other latents and does not change with them, as ``LocScaleReparam(0.0)`` leaves it.

    :param joint: a log joint of the model.
    :param near: a flat latent, at which locations are finite and scales positive.
    """
    if any(is_enumerated(site) for site in latent_sites(joint.run(near))):
        joint.look()
    with torch.enable_grad():
        watched = near.clone().requires_grad_()
        priors = _priors(joint, watched)
        reached = _reached_from(watched, [tensor for prior in priors.values() for tensor in prior.tensors])
        names = [name for name, prior in priors.items() if any(tensor.grad_fn in reached for tensor in prior.tensors)]
    again, elsewhere = (_priors(joint, z) if names else {} for z in (near, near + 0.01))
    shapes = {name: joint.latents.sites[name].shape for name in names}
    usable = [name for name in names if _is_usable(shapes[name], priors[name], again.get(name))]
    return [name for name in usable if not _is_same(priors[name], elsewhere.get(name))]


def _priors(joint: Any, z: Tensor) -> dict[str, Prior]:
    nodes = joint.visit(joint.placed(z)).nodes
    found = {name: prior_of(nodes[name]["fn"]) for name in joint.latents.sites}
    return {name: prior for name, prior in found.items() if prior is not None}


def _reached_from(leaf: Tensor, ends: list[Tensor]) -> set[Any]:
    """The nodes of the graph behind some tensors that have a gradient in a leaf."""
    users: dict[Any, list[Any]] = {tensor.grad_fn: [] for tensor in ends if tensor.grad_fn is not None}
    todo = list(users)
    while todo:
        node = todo.pop()
        for source, _ in node.next_functions:
            if source is not None:
                if source not in users:
                    users[source] = []
                    todo.append(source)
                users[source].append(node)
    todo = [node for node in users if getattr(node, "variable", None) is leaf]
    reached = set(todo)
    while todo:
        new = [user for user in users[todo.pop()] if user not in reached]
        reached.update(new)
        todo += new
    return reached


def _is_usable(shape: torch.Size, prior: Prior, again: Prior | None) -> bool:
    """Whether there is one location and scale for each entry of a site, the same in each run."""
    shapes = prior.loc.shape, prior.scale.shape[:-1] if prior.is_matrix else prior.scale.shape
    if again is None or broadcast_shapes(shape, *shapes) != shape:
        return False
    loc, scale = prior.loc, prior.scale.diagonal(dim1=-2, dim2=-1) if prior.is_matrix else prior.scale
    finite = bool(loc.isfinite().all() and prior.scale.isfinite().all() and (scale > 0).all())
    return finite and _is_same(prior, again)


def _is_same(prior: Prior, other: Prior | None) -> bool:
    return other is not None and all(torch.equal(one, two) for one, two in zip(prior.tensors, other.tensors))
