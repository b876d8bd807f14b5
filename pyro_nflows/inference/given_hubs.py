r"""A flow of hubs and of the others given them is put where curvature says, before any training.

The others given the hubs are about Gaussian, with a mode and a curvature that can be had at any values of the hubs
(:mod:`~pyro_nflows.modes.conditional_modes`). So the flow's Gaussian given the hubs need not be trained step by step
with noise: its locations, scales and correlations at some hundred points all over the posterior of the hubs are
regressed on the layers' features of these, and the features' networks are fitted to what the regression leaves. What is
left for training is how far the others are from a Gaussian; where they are none, nothing is. And where a regression
is not exact enough, draws of the hubs may be good with all others drawn anew (:mod:`~pyro_nflows.inference.redrawn`).
"""

import contextlib
import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from ..diagnostics.outliers import outliers
from ..diagnostics.worth import effective
from ..engine import OutOfTime, Trainer
from ..engine.sampler import LOOK
from ..flows.whitened import Whitened
from ..model.elimination import Group
from ..modes.conditional_modes import Conditional, ConditionalModes
from ..modes.sparse_curvature import log_widths
from ..numerics import quasi_normal
from ..objectives.draws import Draws
from ..system.randomness import forked
from ..transformers import Affine
from ..triangles import log_scale_and_lower
from .evident import aside
from .fitted import sound
from .hub_flow import fit_flows
from .hub_layers import Parts
from .hub_marginal import GAUSSIAN, Marginal, hub_marginal
from .mark import put, trimmed
from .redrawn import good_redrawn
from .regressed import regressed
from .schedule import Schedule

#: Points for the regression: of the flow of the hubs, whose base is so much wider, and of the mixture that they were
#: found by.
NUM_OF_FLOW, WIDER, NUM_OF_MIXTURE = 256, 1.6, 256
#: Draws that tell how wide the hubs are at the start.
NUM_SPREAD = 1024
#: The share of training's time that there is for it where that is limited.
SHARE = 0.7
#: Draws that are looked at, of which none may be far off.
NUM_LOOKED_AT = 2000
#: Nats below the highest log density at which a point says nothing of the posterior; of ``n`` hubs, ``n / 2`` more.
FAR = 11.0
#: Points count by their density, and by this share of the most that one counts at least.
LEAST = 1e-3
#: Of the log-scales that the layers have.
BOUND = Affine().bound


class Placed(NamedTuple):
    """A layer at the Gaussians given its hubs.

    :param redrawn: draws of its hubs, all others drawn anew, where it is these that are good.
    :param is_asked: whether it was found out if these are.
    """

    redrawn: Draws | None
    is_asked: bool


def put_given_hubs(trainer: Trainer, layer: Whitened, schedule: Schedule) -> Placed | None:
    """Put a layer at the Gaussians given its hubs; None where that could not be done, or draws are no better for it.

    :param trainer: has the model.
    :param layer: at its start; is changed in place.
    :param schedule: how good draws have to be.
    """
    if Parts.of(layer) is None or trainer.leaves or trainer.all_rows is not None:
        return None

    def go() -> tuple[Any, ...]:
        before, budget = copy.deepcopy(layer.state_dict()), trainer.budget
        is_better, is_asked, anew = False, False, list[Draws]()
        try:
            with contextlib.suppress(OutOfTime, RuntimeError, ValueError), budget.within(budget.after(SHARE)):
                bound = _bound(trainer, layer)
                if given_hubs(trainer, layer):
                    log_weight = _weights(trainer, layer)
                    strays = bool(outliers(log_weight).any())
                    is_better = not strays and _bound(trainer, layer) > bound
                    is_asked = not is_better or effective(log_weight) < schedule.evident_ess
                    if is_asked:
                        anew.extend(_anew(trainer, layer, schedule))
        finally:  # an interrupt finds it as it was, too
            if not (is_better or anew):
                layer.load_state_dict(before)
        if not (is_better or anew):
            return ()
        found = [parameter.detach().clone() for parameter in layer.parameters()]
        return found, [(draws.z, draws.log_p, draws.log_q) for draws in anew], is_asked

    found = trainer.journal.step("given hubs", go)
    if not found:
        return None
    parameters, anew, is_asked = found
    with torch.no_grad():
        put(list(layer.parameters()), parameters)
    return Placed(Draws(*anew[0]) if anew else None, is_asked)


def _anew(trainer: Trainer, layer: Whitened, schedule: Schedule) -> list[Draws]:
    """Good draws of its hubs with all others drawn anew, if there are any."""
    with aside(2):
        draws = good_redrawn(trainer, layer, schedule.evident_ess)
    return [] if draws is None else [draws]


def drawn_anew(trainer: Trainer, layer: Whitened, schedule: Schedule) -> Draws | None:
    """Good draws of a placed layer's hubs with all others drawn anew, where its own seemed good and are not.

    Of a few thousand draws none may be far off, and of ten times as many one.

    :param trainer: has the model.
    :param layer: at the Gaussians given its hubs.
    :param schedule: how good draws have to be.
    """

    def go() -> tuple[Any, ...]:
        anew, budget = list[Draws](), trainer.budget
        with contextlib.suppress(OutOfTime, RuntimeError, ValueError), budget.within(budget.after(SHARE)):
            anew.extend(_anew(trainer, layer, schedule))
        return tuple((draws.z, draws.log_p, draws.log_q) for draws in anew)

    found = trainer.journal.step("drawn anew", go)
    return Draws(*found[0]) if found else None


def _bound(trainer: Trainer, layer: Whitened) -> float:
    """The ELBO without outliers; the random numbers to come do not depend on whether it is asked for."""
    with forked(0):
        return trimmed(trainer, layer)


def _weights(trainer: Trainer, layer: Whitened) -> Tensor:
    """Log-weights of some draws.

    Single ones may be far off, as where a width of the others falls to nothing in the tail of a hub: what is regressed
    on the hubs is then not exact enough there, and training, which begins near there from a Gaussian of all latents,
    gets closer than from a function that is wrong by orders of magnitude.
    """
    with forked(0):
        return sound(trainer.sampler.sample(layer, NUM_LOOKED_AT, LOOK)).log_weight


@torch.no_grad()
def given_hubs(trainer: Trainer, layer: Whitened) -> bool:
    """Put a layer at the Gaussians given its hubs; whether that could be done.

    :param trainer: has the model.
    :param layer: at its start; is changed in place.
    """
    parts = Parts.of(layer)
    if parts is None:
        return False
    end, pattern = copy.deepcopy(parts.end), parts.end.elimination.pattern
    columns = pattern.hubs

    def near(hubs: Tensor) -> Tensor:
        """The others' mean given the hubs, of the Gaussian at the start."""
        z = end.loc.detach().expand(len(hubs), -1).clone()
        z[:, columns] = hubs.to(z)
        x = end.inverse(z)[0]
        x[:, pattern.others] = 0.0
        there = end(x)[0]
        there[:, columns] = hubs.to(z)
        return there

    modes = ConditionalModes(trainer.density, pattern, parts.among, near)
    noise = quasi_normal(NUM_SPREAD, layer.input_dim, 0).to(end.loc)
    some = end(noise)[0][:, columns].double().cpu()
    root, failed = torch.linalg.cholesky_ex(some.T.cov().reshape(len(columns), len(columns)))
    found = None if failed else hub_marginal(modes, end.loc[columns].double().cpu(), root)
    if found is None:
        return False
    _place_end(parts, modes, found)
    if found.ess < GAUSSIAN:
        fit_flows(found.points, parts.hubs, parts.coordinates(), trainer.budget.need)
    given = _all_over(parts, modes, found)
    given = modes.at_means(given, quasi_normal(len(given.loc), given.loc.shape[1], 2).to(given.loc), _weight(given))
    _regress(parts, given, trainer.budget.need)
    return all(bool(parameter.isfinite().all()) for parameter in layer.parameters())


def _place_end(parts: Parts, modes: ConditionalModes, found: Marginal) -> None:
    """The hubs' Gaussian into the end, and the others' means and scales; it has no other correlations."""
    end, elimination = parts.end, parts.end.elimination
    given, weight = found.given, found.log_weight.softmax(0)
    draws = modes.draws(given, quasi_normal(len(given.loc), given.loc.shape[1], 0))
    known = weight > 0
    mean = weight[known] @ given.loc[known]
    width = (weight[known] @ (draws[known] - mean).square()).sqrt()
    hubs, place = elimination.pattern.hubs, {hub: at for at, hub in enumerate(elimination.pattern.hubs.tolist())}
    end.loc[hubs], end.loc[modes.rest.to(hubs)] = found.loc.to(end.loc), mean.to(end.loc)
    end.log_scale[modes.rest.to(hubs)] = width.log().to(end.log_scale)
    for parameter in (*end.within.values(), *end.above.values()):
        parameter.zero_()
    covariance = found.root @ found.root.T
    for number, group in enumerate(elimination.groups):
        for node, columns in enumerate(group.columns.tolist()):
            at = torch.tensor([j for j, column in enumerate(columns) if column in place], device="cpu")
            if not len(at):
                continue
            its = torch.tensor([place[columns[j]] for j in at], device="cpu")
            log_scale, lower = log_scale_and_lower(torch.linalg.cholesky(covariance[its[:, None], its]))
            end.log_scale[hubs[its.to(hubs)]] = log_scale.to(end.log_scale)
            if str(number) in end.within:
                end.within[str(number)][node, at[:, None], at] = lower.to(end.log_scale)


def _all_over(parts: Parts, modes: ConditionalModes, found: Marginal) -> Conditional:
    """The others at points all over the posterior of the hubs, and some way beyond."""
    half = torch.arange(NUM_OF_MIXTURE // 2, device="cpu")
    of_mixture = found.given.of(torch.cat([half, len(found.log_weight) // 2 + half]))
    given = modes.at(_points(parts, NUM_OF_FLOW, WIDER, 1)).and_of(of_mixture)
    return given.of(given.log_marginal > given.log_marginal.max() - FAR - 0.5 * len(found.loc))


def _points(parts: Parts, num: int, width: float, seed: int) -> Tensor:
    """Hubs that their flow makes of even points of a base so many times as wide."""
    like = parts.end.loc
    base = width * quasi_normal(num, len(parts.end.elimination.pattern.hubs), seed).to(like)
    return parts.coordinates().hubs(parts.hubs(base)[0])


def _regress(parts: Parts, given: Conditional, check: Callable[[], None]) -> None:
    """Put locations, scales and correlations of the others given the hubs into the layers."""
    among, end, rest = parts.among, parts.end, parts.end.elimination.pattern.others
    x, weight = parts.coordinates().seen(given.hubs), _weight(given)
    width = end.log_scale[rest].double().cpu().exp()
    loc = _padded((given.loc - end.loc[rest].double().cpu()) / width, 0.0)
    log_scale = log_widths(among, given.nodes) - width.log()
    unit, width, shift = _padded((-log_scale.mean(0)).exp(), 1.0), _padded(width, 1.0), loc.clone()
    found, units = list[Tensor](), list[Tensor]()
    for group, (root, slope) in zip(among.groups, given.nodes):
        within, above = _of_group(group, root, slope, width)
        own = loc[:, group.columns] - (above @ loc[:, group.above][..., None])[..., 0]
        noise = solve_triangular(within, own[..., None], upper=False, unitriangular=True)
        shift[:, group.columns.flatten()] = noise.flatten(1)
        i, j = torch.tril_indices(within.shape[-1], within.shape[-1], -1, device="cpu")
        found.append(torch.cat([within[..., i, j], above.flatten(-2)], -1))
        its = unit[group.columns]
        units.append(torch.cat([its[:, i], its[..., None].expand(above.shape[1:]).flatten(1)], -1))
    sizes, in_units = [part.numel() for part in units], torch.cat([part.flatten() for part in units])
    coefficients = regressed(
        parts.shear.features, x, torch.cat([part.flatten(1) for part in found], 1) * in_units, weight, check
    )
    for number, (part, its) in enumerate(zip((coefficients / in_units).split(sizes, 1), units)):
        if part.numel():
            _put(parts.shear.bias[str(number)], parts.shear.coefficients[str(number)], part.unflatten(1, its.shape))
    stored = BOUND * torch.atanh((log_scale / BOUND).clamp(-0.99, 0.99))
    made = torch.stack([shift[:, :-1] * (-log_scale).exp(), stored], -1)
    part = regressed(parts.affine.features, x, made.flatten(1), weight, check).unflatten(1, made.shape[1:])
    _put(parts.affine.bias["0"], parts.affine.coefficients["0"], part[:, :, None])


def _weight(given: Conditional) -> Tensor:
    """How much each point matters."""
    return (given.log_marginal - given.log_marginal.max()).exp().clamp(min=LEAST)


def _padded(x: Tensor, pad: float) -> Tensor:
    return torch.cat([x, x.new_full((*x.shape[:-1], 1), pad)], -1)


def _put(bias: Tensor, coefficients: Tensor, found: Tensor) -> None:
    """What a regression gave, the constant first, into a layer's tables."""
    bias.copy_(found[0])
    coefficients.copy_(found[1:].movedim(0, -1))


def _of_group(group: Group, root: Tensor, slope: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Of nodes in units of latents' widths: unit lower triangular matrices, and how they depend on what is above."""
    columns, above = group.columns, group.above
    none, none_above = columns == len(width) - 1, above == len(width) - 1
    root = root / width[columns][..., None]
    slope = slope * width[above][:, None] / width[columns][..., None]
    within = root / root.diagonal(dim1=-2, dim2=-1)[..., None, :]
    within = within.masked_fill(none[..., None] | none[:, None], 0.0) + torch.diag_embed(none.to(root))
    return within, slope.masked_fill(none[..., None] | none_above[:, None], 0.0)
