r"""A fit's Gaussian, or mixture of Gaussians, by a Wasserstein gradient flow (:mod:`~pyro_nflows.modes.wasserstein`).

By default it takes the place of hundreds of steps of Adam: with a full-rank end of not too many dimensions, and a log
density that is the same each time it is asked. With steps that a user asks for, only guides that are such a Gaussian or
mixture go this way. What it reaches is taken only where fresh draws do not have a lower bound.
"""

import copy
import math

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from ..engine import OutOfTime, Trainer
from ..engine.sampler import LOOK
from ..flows.whitened import Whitened
from ..layers import TriangularAffine
from ..modes.gaussians import Gaussian
from ..modes.mixture_em import Clusters
from ..modes.mixtures import place_mixture
from ..modes.wasserstein import LEVEL, NUM_STEPS, Descent, descend, even_points
from ..numerics import quasi_normal
from ..system.randomness import forked

#: More dimensions than that would need too many points for a covariance.
MAX_DIM = 2048
#: Points of each component, and at least so many a dimension.
NUM_POINTS, POINTS_A_DIM = 512, 16
#: Of more dimensions than these, fewer points a dimension, and steps: even points are exact for what is Gaussian.
FEW, POINTS_OF_MANY, STEPS_OF_MANY = 64, 4, 20
#: Fresh draws by which the end is compared with the start.
NUM_FRESH = 1000
#: What time there is for it where that is limited, as a share of training's, and how much of that for the steps alone.
SHARE, STEPS = 0.3, 0.2


def can_descend(trainer: Trainer, layer: Whitened) -> bool:
    """Whether the flow of Gaussians applies: see the module's page."""
    if trainer.leaves or trainer.all_rows is not None or layer.input_dim > MAX_DIM:
        return False
    if not isinstance(layer.end, TriangularAffine) or (layer.base is not None and len(layer.base.loc) > 1):
        return False
    points = layer.end.loc.detach()[None].expand(2, -1)
    try:
        first, again = (trainer.density.values_and_grads(points)[0] for _ in range(2))
    except (ValueError, RuntimeError):  # the model cannot be evaluated there
        return False
    return bool(torch.isfinite(first).all()) and torch.equal(first, again)


def descended(trainer: Trainer, layer: Whitened, num_steps: int = NUM_STEPS) -> Descent | None:
    """Move a layer's Gaussian or mixture to the best one near to it; its flow has to be the identity behind that.

    :param trainer: has the model.
    :param layer: is moved.
    :param num_steps: at most.
    :raises OutOfTime: in a piece of work that has no time left for it; the layer is then as it was.
    :return: the way. Where fresh draws do not have a higher bound, the layer is as it was; then None, unless it was at
        the end of the way already.
    """
    dim = layer.input_dim
    num_points = max(NUM_POINTS, POINTS_A_DIM * min(dim, FEW), POINTS_OF_MANY * dim)
    if dim > FEW and not layer.is_gaussian:
        num_steps = min(num_steps, STEPS_OF_MANY)
    noise = even_points(num_points, dim, layer.end.loc.detach())
    until = trainer.budget.after(STEPS)
    try:
        path = descend(trainer.density, clusters_of(layer), noise, num_steps, until=until)
    except (ValueError, RuntimeError):  # a distribution refused a point on the way
        return None
    before, seed = copy.deepcopy(layer.state_dict()), int(torch.randint(2**62, ()))
    try:
        bound = _bound(trainer, layer, seed)
        place(layer, path.end)
        is_better = bool(path.step_sizes) and _bound(trainer, layer, seed) > bound - LEVEL
    except OutOfTime:
        layer.load_state_dict(before)
        raise
    if not is_better:
        layer.load_state_dict(before)
        return path if path.arrived and path.elbos[-1] < path.elbos[0] + LEVEL else None
    return path


def _bound(trainer: Trainer, layer: Whitened, seed: int) -> float:
    """The same random numbers give the same points of the base: what differs is the layer."""
    with forked(seed):
        log_weight = trainer.sampler.sample(layer, NUM_FRESH, LOOK).log_weight
    return float(log_weight.nan_to_num(-math.inf).mean())


@torch.no_grad()
def clusters_of(layer: Whitened) -> Clusters:
    """The mixture that a layer is; of one that is fresh, components apart from one another."""
    end, base = layer.end, layer.base
    loc, scale = end.loc.detach().clone(), _factor(end)
    if base is None:
        return Clusters(torch.ones_like(loc[:1]), loc[None], scale[None])
    locs, scales = base.loc[0], base.scale_tril()[0]
    if bool((locs == locs[:1]).all()):
        locs = quasi_normal(len(locs), loc.shape[0], seed=0).to(loc)
    return Clusters(base.logits[0].softmax(-1), loc + locs @ scale.T, scale @ scales)


@torch.no_grad()
def place(layer: Whitened, clusters: Clusters) -> None:
    """Put a layer at a mixture: one Gaussian into its affine end, several into its base."""
    if layer.base is None:
        Gaussian(clusters.locs[0], clusters.scale_trils[0]).place(layer)
        return
    loc, scale = layer.end.loc, _factor(layer.end)
    locs = solve_triangular(scale, (clusters.locs - loc).T, upper=False).T
    scales = solve_triangular(scale, clusters.scale_trils, upper=False)
    place_mixture(layer.base, Clusters(clusters.weights[None], locs[None], scales[None]))


def _factor(end: torch.nn.Module) -> Tensor:
    if not isinstance(end, TriangularAffine):
        raise TypeError(f"descended: expected a full-rank end, got {type(end).__name__}")
    return end.scale_tril().detach().clone()
