r"""How centered the latents of a hierarchy should be, measured on a first Gaussian fit.

Given all else, an entry :math:`z_i` whose prior has precision :math:`g_i^{-2}` has precision :math:`-h_i` in the
posterior, minus the second derivative of the log joint in it. The fraction :math:`g_i^{-2} / (-h_i)` of that comes from
the prior, and the rest from the data: as far as it is from the data, the centered coordinate is the better one [1].

.. math:: c_i = 1 - E\left[\frac{g_i^{-2}}{-h_i}\right]

It is 0 where there are no data, and near 1 for an entry with many. The mean is over draws of a Gaussian that is fitted
to the non-centered model, which has no funnel.

**References**

[1] O. Papaspiliopoulos, G. Roberts, M. Sköld (2007). A General Framework for the Parametrization of Hierarchical
Models.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from ..engine import Budget, Progress, Round, Trainer
from ..engine.sampler import LOOK
from ..guides import AutoFlow
from ..layers.base import Chain
from ..model.centering import Prior, prior_of
from ..model.coordinates import Coordinates
from ..model.log_joint import LogJoint
from ..model.noncentered import ScaleSite
from ..model.recovery import is_of_entries
from ..model.values import mapped
from ..modes.gaussians import gaussian_at, gaussian_through
from ..modes.pathfinder import best_start
from ..objectives.base import Gradient, Objective
from ..objectives.covering import Within
from ..objectives.draws import LogDensity
from .plan import Plan
from .stages import reaches_beyond

#: The round in which the Gaussian is fitted.
FIRST = Round(300, 32, 5e-2, share=0.2)
#: Draws at which precisions are compared.
NUM_DRAWS = 24
#: Draws that carry the Gaussian over to the new coordinates: so many, or so many numbers, and no fewer than the last.
NUM_CARRIED, CARRIED, FEWEST = 2000, 2**25, 200
#: A site that is written non-centered stays so unless the data are so much of some entry's precision, where each entry
#: has a scale of its own, or of each entry's. In between, with a scale in common, a flow did no better for it.
MOST, NEARLY_ALL = 0.5, 0.9
#: Random signs by which second derivatives are found.
NUM_PROBES = 4
#: Sites whose second derivatives are found one after the other; with more of them, several at a time.
MAX_TURNS = 8


def measured_centering(
    joint: LogJoint,
    written: Mapping[str, Sequence[ScaleSite]],
    guide: AutoFlow,
    plan: Plan,
    budget: Budget,
    progress: Progress,
    leaves: Sequence[Tensor],
    loc: Tensor,
) -> tuple[dict[str, Tensor], Tensor]:
    """A centering for each entry of the sites that have one, and draws of the Gaussian, in unconstrained space.

    Of sites that are written non-centered, those have one that is better for it: where each entry has a scale of its
    own and the data say more than the prior about some of them, or where they say nearly all about each. If there are
    no other sites, the start of the Gaussian's fit says whether to go on.

    :param joint: the model, with all these sites non-centered.
    :param written: those of them that are written so, and what makes their scale.
    :param guide: its end is fitted; the guide itself is left alone.
    :param plan: the engine.
    :param budget: the time of the run.
    :param progress: shows it.
    :param leaves: the model's own parameters.
    :param loc: a point of finite density.
    :raises OutOfTime: in a piece of work that has no time left for it.
    """
    layer, trainer = guide.plain_layer(), Trainer(joint, leaves, plan.engine, False, joint.bound.tensors)
    names = [name for name in joint.latents.names if name in written or name in joint.latents.centering]
    plain = LogJoint(joint.bound, joint.latents.centered({}))
    plain.start = Coordinates(joint)(loc[None])[0]
    plain.prepare()
    own = {name for name, of in written.items() if is_of_entries(joint.latents.sites[name], of, joint.latents)}

    def looked(num: int) -> tuple[dict[str, Tensor], Tensor]:
        with torch.no_grad():
            z = Coordinates(joint)(trainer.sampler.sample(end, num, LOOK).z)
        trainer.density.ask(z[:NUM_DRAWS], 2 * NUM_PROBES * min(MAX_TURNS, len(names)))
        fractions = prior_fractions(plain, names, z[:NUM_DRAWS])
        found = {name: 1 - fraction.mean(0) for name, fraction in fractions.items()}
        return {name: c for name, c in found.items() if name not in written or _is_better(c, name in own)}, z

    trainer.limit(budget, None, progress)
    with contextlib.closing(trainer):
        init = gaussian_at(layer, loc, guide.init_scale)
        until = budget.after(FIRST.share)
        with budget.within(until):
            best_start(trainer.density, init, until=until).place(layer)
        end = Chain(layer.end)
        if not joint.latents.centering:
            try:
                found, z = looked(NUM_DRAWS)
            except RuntimeError:  # a model that cannot be differentiated twice
                return {}, loc[None]
            if not found:
                return found, z
        objective = Within(0.0) if reaches_beyond(trainer, end) else Objective()
        trainer.run(end, objective, Gradient.PATH, FIRST, "centering")
        if trainer.history.interrupted:
            raise KeyboardInterrupt
        return looked(max(FEWEST, min(NUM_CARRIED, CARRIED // joint.latents.dim)))


def _is_better(centering: Tensor, has_own_scales: bool) -> bool:
    """Whether a site that is written non-centered is better in other coordinates, by what they would be."""
    return bool(centering.max() >= MOST) if has_own_scales else bool(centering.min() >= NEARLY_ALL)


def carry(joint: LogJoint, guide: AutoFlow, z: Tensor) -> Tensor:
    """Start a fresh guide at the Gaussian of draws in unconstrained space; the point where it starts.

    :param joint: the model in the guide's coordinates.
    :param z: the draws, ``(num, latent_dim)``.
    """
    with torch.no_grad():
        v = Coordinates(joint).inv(z)
        layer = guide.plain_layer()
        gaussian = gaussian_through(layer, v[torch.isfinite(v).all(-1)])
    gaussian.place(layer)
    guide.adopt(layer)
    return gaussian.loc


def prior_fractions(joint: LogJoint, names: Sequence[str], z: Tensor) -> dict[str, Tensor]:
    """The part of each entry's precision that comes from its prior, between 0 and 1: ``(num, *site shape)`` of a site.

    :param joint: the log joint of the model as it is written.
    :param names: the sites.
    :param z: flat latents ``(num, latent_dim)``.
    """

    def precisions(row: Tensor) -> dict[str, Tensor]:
        nodes = joint.visit(joint.placed(row)).nodes
        found = {name: precision(cast(Prior, prior_of(nodes[name]["fn"]))) for name in names}
        return {name: value.expand(joint.latents.shapes[name]) for name, value in found.items()}

    with torch.no_grad():
        priors = mapped(precisions, z)
    posteriors = joint.latents.unpack(-second_derivatives(joint, z, [joint.latents.sites[n].columns for n in names]))
    return {name: _share(priors[name].to(z), posteriors[name]) for name in names}


def _share(prior: Tensor, posterior: Tensor) -> Tensor:
    return torch.where(posterior > 0, (prior / posterior).clamp(0, 1), 1.0).nan_to_num(nan=1.0)


def precision(prior: Prior) -> Tensor:
    """Of each coordinate, given the others."""
    if not prior.is_matrix:
        return prior.scale**-2
    return torch.cholesky_inverse(prior.scale).diagonal(dim1=-2, dim2=-1)


def second_derivatives(log_joint: LogDensity, z: Tensor, sites: Sequence[slice]) -> Tensor:
    r"""A part of the diagonal of each row's Hessian, by random signs :math:`r`: the mean of :math:`r \odot H r`.

    Sites are probed in turn, together only with those that stand :data:`MAX_TURNS` places away: so it is exact where
    the entries of a site are independent given all else, and along a chain of sites too.

    :param log_joint: ``(num, latent_dim) -> (num,)``.
    :param z: the rows.
    :param sites: their columns; the other columns of the result are zero.
    """
    found, generator = torch.zeros_like(z), torch.Generator().manual_seed(0)
    with torch.enable_grad():
        at = z.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(log_joint(at).sum(), at, create_graph=True)
        if not gradient.requires_grad:  # a density that is linear in all of them
            return found
        for turn in range(min(MAX_TURNS, len(sites))):
            columns = torch.cat([torch.arange(site.start, site.stop) for site in sites[turn::MAX_TURNS]])
            for _ in range(NUM_PROBES):
                signs = torch.zeros_like(z)
                signs[:, columns] = (
                    torch.randint(2, (len(z), len(columns)), generator=generator, device="cpu") * 2 - 1
                ).to(z)
                (product,) = torch.autograd.grad((gradient * signs).sum(), at, retain_graph=True)
                found += product * signs / NUM_PROBES
    return found
