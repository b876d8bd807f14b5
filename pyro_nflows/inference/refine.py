r"""Draws for when the verdict is no: Markov chains that use the trained guide.

``nuts`` (NeuTra [1]): with :math:`T` the flow, Pyro's NUTS samples

.. math:: \log \pi(x) = \log p(T(x)) + \log \lvert \det T'(x) \rvert ,

on which a trained flow has left little to do: the density is near a standard normal even where the guide is not yet
good. ``hmc`` is Hamiltonian Monte Carlo there, all chains in one batch: a trajectory about a quarter of the way round a
standard normal, with a step size adapted to an acceptance of 0.8. It is faster than NUTS, whose chains go one after the
other; many chains cost little more than one. ``independence`` is Metropolis-Hastings with the guide's own draws as
proposals: no new evaluation of the model, and slow only where weights vary much.

**References**

[1] M. Hoffman, P. Sountsov, J. V. Dillon, I. Langmore, D. Tran, S. Vasudevan (2019). NeuTra-lizing Bad Geometry in
Hamiltonian Monte Carlo Using Neural Transport.
"""

import contextlib
import enum
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from ..checks import check_sizes
from ..diagnostics.table import summary_table
from ..diagnostics.verdict import Verdict
from ..diagnostics.weights import psis_resample
from ..engine import DensityGradient
from ..guides import AutoFlow
from ..layers.base import Exactness, Layer
from ..modes.hamiltonian import Points, move
from ..numerics import finite
from ..objectives.draws import Draws, LogDensity
from ..system.exclusive import validation

METHODS = ("nuts", "hmc", "independence")
#: Acceptance that HMC's step size is adapted to, and the most leapfrog steps of a trajectory.
ACCEPTANCE, MAX_LEAPFROGS = 0.8, 64
#: R-hat below which chains count as mixed, and the least effective sample size of a parameter.
MIXED, ENOUGH = 1.01, 400


class Mixing(enum.Enum):
    """What chains say of themselves. The value is the sentence, its numbers to be filled in."""

    MIXED = "Trust these draws: R-hat is {r_hat:.3f} and the least effective sample size {ess:.0f}."
    APART = (
        "Do not trust these draws yet: R-hat is {r_hat:.3f} and the least effective sample size {ess:.0f} (they should "
        "be below {mixed} and above {enough}); draw more, or train the guide further."
    )


class Refined:
    """Posterior draws from chains.

    :param guide: what the latents are.
    :param z: flat unconstrained draws, ``(num_chains, num_samples, latent_dim)``.
    :param accepted: mean share of accepted proposals.
    """

    def __init__(self, guide: AutoFlow, z: Tensor, accepted: float):
        self.guide, self.z, self.accepted = guide, z, accepted
        wide = z.double()
        self.r_hat = float(split_gelman_rubin(wide).nan_to_num(nan=torch.inf).max()) if z.shape[1] >= 4 else torch.inf
        self.ess = float(effective_sample_size(wide).nan_to_num(nan=0.0).min()) if z.shape[1] >= 4 else 0.0

    def get_samples(self, *, group_by_chain: bool = False) -> dict[str, Tensor]:
        """A dict from site to ``(num_chains * num_samples, *site shape)``, or with chains apart."""
        samples = self.guide.constrain(self.z.flatten(0, 1))
        if not group_by_chain:
            return samples
        return {name: value.unflatten(0, self.z.shape[:2]) for name, value in samples.items()}

    @property
    def mixed(self) -> bool:
        """Whether the chains agree, and are worth enough draws."""
        return self.r_hat < MIXED and self.ess >= ENOUGH

    def verdict(self) -> Verdict[Mixing]:
        """What to make of the draws: an outcome and one sentence."""
        outcome = Mixing.MIXED if self.mixed else Mixing.APART
        numbers = {"r_hat": self.r_hat, "ess": self.ess, "mixed": MIXED, "enough": ENOUGH}
        return Verdict(outcome, outcome.value.format(**numbers))

    def summary(self, prob: float = 0.9) -> None:
        """Print each parameter's mean, sd, median and interval, and what to make of them."""
        print(summary_table(self.get_samples(), prob))
        print(f"\n{self.z.shape[0]} chains of {self.z.shape[1]}, {self.accepted:.0%} accepted")
        print(self.verdict())


def refine(
    log_joint: LogDensity,
    guide: AutoFlow,
    layer: Layer | None,
    draws: Draws,
    method: str,
    num_samples: int,
    warmup_steps: int,
    num_chains: int,
    progress_bar: bool = False,
) -> Refined:
    """Chains that begin at importance-resampled draws of the guide.

    :param log_joint: the model, ``(K, D) -> (K,)``.
    :param guide: what the latents are.
    :param layer: the trained flow.
    :param draws: of the guide, with their weights.
    :param method: ``"nuts"``, ``"hmc"`` or ``"independence"``.
    :raises ValueError: for another method, or if NUTS or HMC is asked of a flow with auxiliary variables.
    """
    check_sizes("refine", num_samples=num_samples, warmup_steps=warmup_steps, num_chains=num_chains)
    if method not in METHODS:
        raise ValueError(f"refine: method must be one of {list(METHODS)}, got {method!r}")
    if method == "independence":
        return _independence(guide, draws, num_samples, num_chains)
    if not isinstance(layer, Layer) or layer.exactness < Exactness.EXACT or layer.noise_dim or not layer.has_inverse:
        raise ValueError(
            f"refine: {method.upper()} in the flow's coordinates needs a bijective flow with an inverse, got "
            f"{type(guide).__name__}; use method='independence'"
        )
    with torch.no_grad():
        starts, _ = layer.inverse(draws.z[psis_resample(draws.log_weight, num_chains)])
    density = DensityGradient(lambda x: _log_density(log_joint, layer, x))
    if method == "hmc":
        x, accepted = _hmc(density, starts, num_samples, warmup_steps)
    else:
        chains = [_nuts(density, x, num_samples, warmup_steps, progress_bar) for x in starts]
        x, accepted = torch.stack([x for x, _ in chains]), sum(share for _, share in chains) / num_chains
    with torch.no_grad():
        return Refined(guide, layer(x)[0], accepted)


def _log_density(log_joint: LogDensity, layer: Layer, x: Tensor) -> Tensor:
    """In the flow's coordinates. The base density is not part of it: x is a point, not a draw."""
    z, log_weight = layer(x)
    return log_joint(z) + log_weight


def _hmc(density: DensityGradient, starts: Tensor, num_samples: int, warmup_steps: int) -> tuple[Tensor, float]:
    """Chains ``(num_chains, num_samples, D)`` side by side, and their mean acceptance."""

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        return finite(*density.values_and_grads(x, len(x)))

    points, step_size, shares, kept = Points(starts, *evaluate(starts)), starts.shape[1] ** -0.25, [], []
    for step in range(warmup_steps + num_samples):
        num_leapfrogs = min(MAX_LEAPFROGS, max(1, round(0.5 * math.pi / step_size)))
        points, accepted = move(evaluate, points, step_size, num_leapfrogs)
        if step < warmup_steps:
            step_size *= math.exp((accepted - ACCEPTANCE) / (1 + step) ** 0.6)
        else:
            shares.append(accepted)
            kept.append(points.x)
    return torch.stack(kept, 1), sum(shares) / num_samples


def _nuts(
    density: DensityGradient, start: Tensor, num_samples: int, warmup_steps: int, progress_bar: bool
) -> tuple[Tensor, float]:
    """One chain in the flow's coordinates, and its mean acceptance."""
    kernel = NUTS(
        potential_fn=lambda values: -_Sloped.apply(values["x"], density.value_and_grad), target_accept_prob=0.8
    )
    mcmc = MCMC(
        kernel,
        num_samples=num_samples,
        warmup_steps=warmup_steps,
        initial_params={"x": start.clone()},
        disable_progbar=not progress_bar,
    )
    with validation(False), _restored_logger():  # as Pyro would itself, but leaving things as they were
        mcmc.run()
    rates = mcmc.diagnostics()["acceptance rate"]
    return mcmc.get_samples()["x"], float(sum(rates.values()) / len(rates))


@contextlib.contextmanager
def _restored_logger() -> Iterator[None]:
    """Pyro gives its logger a handler for each run."""
    logger = logging.getLogger("pyro.infer.mcmc")
    before = logger.handlers, logger.propagate
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before


class _Sloped(torch.autograd.Function):
    """A value whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        value, grad = value_and_grad(x)
        ctx.save_for_backward(grad)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = ctx.saved_tensors
        return grads[0] * grad, None


def _independence(guide: AutoFlow, draws: Draws, num_samples: int, num_chains: int) -> Refined:
    """Metropolis-Hastings over the draws as they come; each chain has its own."""
    needed = num_chains * (num_samples + 1)
    if needed > len(draws.z):
        raise ValueError(
            f"refine: {num_chains} independence chains of {num_samples} need {needed} draws of the guide, "
            f"got {len(draws.z)}; ask for fewer"
        )
    log_weight = draws.log_weight[:needed].view(num_chains, num_samples + 1)
    bar = torch.rand(log_weight.shape, dtype=log_weight.dtype).log()
    at = torch.zeros(num_chains, dtype=torch.long)
    rows, index, moved = torch.arange(num_chains), [], 0
    for t in range(1, num_samples + 1):
        accept = bar[:, t] < log_weight[:, t] - log_weight[rows, at]
        at = torch.where(accept, t, at)
        moved += int(accept.sum())
        index.append(at)
    z = draws.z[:needed].view(num_chains, num_samples + 1, -1)
    return Refined(guide, z[rows[:, None], torch.stack(index, 1)], moved / (num_chains * num_samples))
