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
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..engine import Round, Trainer
from ..guides import AutoFlow
from ..layers.base import Chain
from ..model.centering import Prior, prior_of
from ..model.log_joint import LogJoint
from ..model.values import constrained
from ..modes.gaussians import gaussian_at
from ..modes.pathfinder import best_start
from ..objectives.base import Gradient, Objective
from .plan import Plan

#: The round in which the Gaussian is fitted.
FIRST = Round(800, 64, 2e-2)
#: Draws at which precisions are compared.
NUM_DRAWS = 24
#: Random signs by which second derivatives are found: exactly, where entries are independent given all else.
NUM_PROBES = 4


def measured_centering(
    joint: LogJoint, guide: AutoFlow, plan: Plan, leaves: Sequence[Tensor], loc: Tensor
) -> dict[str, Tensor]:
    """A centering for each entry of the sites that have one.

    :param joint: the model, with those sites non-centered.
    :param guide: its end is fitted; the guide itself is left alone.
    :param plan: the engine.
    :param leaves: the model's own parameters.
    :param loc: a point of finite density.
    """
    names, layer = list(joint.latents.centering), guide.plain_layer()
    trainer = Trainer(joint, leaves, plan.engine, plan.progress_bar, joint.bound.tensors)
    with contextlib.closing(trainer):
        best_start(trainer.density, gaussian_at(layer, loc, guide.init_scale)).place(layer)
        end = Chain(layer.end)
        trainer.run(end, Objective(), Gradient.PATH, FIRST, "centering")
        if trainer.history.interrupted:
            raise KeyboardInterrupt
        draws = trainer.sampler.sample(end, NUM_DRAWS).z
    plain = LogJoint(joint.bound, joint.latents.centered({}))
    plain.look()
    rows = plain.latents.unconstrain(constrained(joint, draws))[0]
    fractions = [prior_fractions(plain, names, row) for row in rows]
    return {name: 1 - torch.stack([fraction[name] for fraction in fractions]).mean(0) for name in names}


def prior_fractions(joint: LogJoint, names: Sequence[str], z: Tensor) -> dict[str, Tensor]:
    """The part of each entry's precision that comes from its prior, between 0 and 1, in the shape of its site.

    :param joint: the log joint of the model as it is written.
    :param names: the sites.
    :param z: the flat latent.
    """
    with torch.no_grad():
        nodes, found = joint.run(z).nodes, {}
    for name in names:
        latent, prior = joint.latents.sites[name], cast(Prior, prior_of(nodes[name]["fn"]))
        posterior = -second_derivatives(joint, z, latent.columns).reshape(latent.shape)
        fraction = precision(prior).to(posterior) / posterior
        found[name] = torch.where(posterior > 0, fraction.clamp(0, 1), 1.0).nan_to_num(nan=1.0)
    return found


def precision(prior: Prior) -> Tensor:
    """Of each coordinate, given the others."""
    if not prior.is_matrix:
        return prior.scale**-2
    return torch.cholesky_inverse(prior.scale).diagonal(dim1=-2, dim2=-1)


def second_derivatives(joint: Any, z: Tensor, columns: slice) -> Tensor:
    r"""A part of the diagonal of the Hessian, by random signs :math:`r`: the mean of :math:`r \odot H r`."""
    signs = torch.zeros(NUM_PROBES, len(z)).to(z)
    like = signs[:, columns]
    generator = torch.Generator().manual_seed(0)
    signs[:, columns] = (torch.randint(2, like.shape, generator=generator) * 2 - 1).to(z)
    with torch.enable_grad():
        at = z.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(joint.single(at), at, create_graph=True)
        if not gradient.requires_grad:  # a density that is linear in all of them
            return torch.zeros_like(z[columns])
        rows = [torch.autograd.grad(gradient @ sign, at, retain_graph=True)[0] * sign for sign in signs]
    return torch.stack(rows).mean(0)[columns]
