r"""Draws for when the verdict is no: Markov chains that use the trained guide.

``nuts`` (NeuTra [1]): with :math:`T` the flow, Pyro's NUTS samples

.. math:: \log \pi(x) = \log p(T(x)) + \log \lvert \det T'(x) \rvert ,

on which a trained flow has left little to do: the density is near a standard normal even where the guide is not yet
good. ``hmc`` is Hamiltonian Monte Carlo there, all chains in one batch: a trajectory about a quarter of the way round a
standard normal, with a step size adapted to an acceptance of 0.8. It is faster than NUTS, whose chains go one after the
other; many chains cost little more than one. ``independence`` is Metropolis-Hastings with the guide's own draws as
proposals: no new evaluation of the model as long as there are draws, and slow only where weights vary much.

Chains are judged by rank-normalised R-hat and effective sample sizes (:mod:`~pyro_nflows.diagnostics.mixing`) of every
scalar of every site, as ArviZ gives them, and go on with ``refined.more()``. Those of ``independence`` are not trusted
where k-hat of the guide's weights says that it has too few draws somewhere: all chains would miss the same.

**References**

[1] M. Hoffman, P. Sountsov, J. V. Dillon, I. Langmore, D. Tran, S. Vasudevan (2019). NeuTra-lizing Bad Geometry in
Hamiltonian Monte Carlo Using Neural Transport.
"""

from collections.abc import Callable

import torch

from ..checks import check_seed, check_sizes
from ..diagnostics.weights import psis_resample
from ..diagnostics.worth import effective, is_heavy, tail_index
from ..engine import DensityGradient
from ..layers.base import Exactness, Layer
from ..numerics import LogDensity
from ..objectives.draws import Draws
from ..system.exclusive import seeded
from .chains import Chains, Hamiltonian, Independence, NoUTurn
from .refined import Refined, Source, at, further, next_seed
from .stationary import in_flow

METHODS = ("nuts", "hmc", "independence")


def refine(
    source: Source,
    log_joint: LogDensity,
    layer: Layer | None,
    draws: Draws,
    more: Callable[[int], Draws],
    *,
    method: str,
    num_samples: int,
    warmup_steps: int,
    num_chains: int,
    progress_bar: bool = False,
    seed: int = 0,
) -> Refined:
    """Chains that begin at importance-resampled draws of the guide.

    :param source: the posterior that they are of.
    :param log_joint: the model, ``(K, D) -> (K,)``.
    :param layer: the trained flow.
    :param draws: of the guide, with their weights.
    :param more: gives so many fresh draws of it.
    :param method: ``"nuts"``, ``"hmc"`` or ``"independence"``.
    :param seed: of the random numbers.
    :raises ValueError: for another method, or if NUTS or HMC is asked of a flow with auxiliary variables.
    """
    check_seed("refine", seed)
    check_sizes("refine", num_samples=num_samples, warmup_steps=warmup_steps, num_chains=num_chains)
    if method not in METHODS:
        raise ValueError(f"refine: method must be one of {list(METHODS)}, got {method!r}")
    if method == "independence":
        chains: Chains = Independence.starting(draws, num_chains, more)
        layer = None
    else:
        chains, seed = _warmed(source, log_joint, layer, draws, method, warmup_steps, num_chains, seed)
    first, follow = further(source, chains, num_samples, progress_bar, seed)
    log_weight = draws.log_weight
    heavy = method == "independence" and is_heavy(log_weight, effective(log_weight))
    pareto_k = tail_index(log_weight) if heavy else None
    return Refined(source, at(layer, first.x), first.accepted, first.chains, layer, follow, pareto_k)


def _warmed(
    source: Source,
    log_joint: LogDensity,
    layer: Layer | None,
    draws: Draws,
    method: str,
    warmup_steps: int,
    num_chains: int,
    seed: int,
) -> tuple[Chains, int]:
    """Chains in the flow's coordinates, and the seed that follows."""
    if not isinstance(layer, Layer) or layer.exactness < Exactness.EXACT or layer.noise_dim or not layer.has_inverse:
        raise ValueError(
            f"refine: {method.upper()} in the flow's coordinates needs a bijective flow with an inverse, got "
            f"{type(source.guide).__name__}; use method='independence'"
        )
    density = DensityGradient(lambda x: in_flow(log_joint, layer, x))
    with seeded(seed), source.own_parameters():
        with torch.no_grad():
            starts, _ = layer.inverse(draws.z[psis_resample(draws.log_weight, num_chains)])
        if method == "hmc":
            return Hamiltonian.warmed(density, starts, warmup_steps), next_seed()
        return NoUTurn(density, starts, warmup_steps), next_seed()
