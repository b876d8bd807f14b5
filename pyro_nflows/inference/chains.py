"""Markov chains that can go on: each is a value that says where its chains are and how they move."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from ..engine import DensityGradient, OutOfTime
from ..modes.hamiltonian import Points, move
from ..numerics import finite
from ..objectives.draws import Draws, concatenate
from ..system.exclusive import validation

#: Acceptance that step sizes are adapted to, and the most leapfrog steps of a trajectory of HMC.
ACCEPTANCE, MAX_LEAPFROGS = 0.8, 64


class Advanced(NamedTuple):
    """Further draws, and the chains behind them.

    :param chains: where they are now.
    :param x: draws, ``(num_chains, num_samples, D)``.
    :param accepted: mean share of accepted proposals.
    """

    chains: "Chains"
    x: Tensor
    accepted: float


class Chains(Protocol):
    """Chains of one kind, side by side."""

    def advance(self, num_samples: int, progress_bar: bool = False) -> Advanced:
        """Draw further; these chains stay where they are.

        :param num_samples: draws a chain.
        :param progress_bar: whether to show one, for NUTS.
        """


@dataclass(frozen=True)
class Hamiltonian(Chains):
    """Hamiltonian Monte Carlo, all chains in one batch.

    :param density: log density and gradient.
    :param points: where the chains are.
    :param step_size: of a leapfrog step.
    :param widths: of the coordinates, ``(D,)``, in which steps are measured; by default one.
    """

    density: DensityGradient
    points: Points
    step_size: float
    widths: Tensor | None = None

    @classmethod
    def warmed(cls, density: DensityGradient, starts: Tensor, num_steps: int, until: float = math.inf) -> "Hamiltonian":
        """Chains that have found their step size.

        :param starts: ``(num_chains, D)``.
        :param num_steps: of the search for it.
        :param until: when they have to end, by ``time.process_time``.
        :raises OutOfTime: if they have not ended by then.
        """
        return cls.at(density, starts, starts.shape[1] ** -0.25).adapted(num_steps, until)

    @classmethod
    def at(cls, density: DensityGradient, x: Tensor, step_size: float, widths: Tensor | None = None) -> "Hamiltonian":
        """Chains that are at these points, ``(num_chains, D)``."""
        return cls(density, Points(x, *_values(density, x)), step_size, widths)

    def adapted(self, num_steps: int, until: float = math.inf) -> "Hamiltonian":
        """The chains after some trajectories that have adapted the step size; see :meth:`warmed`."""
        chains = self
        for step in range(num_steps):
            if time.process_time() > until:
                raise OutOfTime
            points, accepted = chains._moved()
            step_size = chains.step_size * math.exp((accepted - ACCEPTANCE) / (1 + step) ** 0.6)
            chains = replace(chains, points=points, step_size=step_size)
        return chains

    def advance(self, num_samples: int, progress_bar: bool = False) -> Advanced:
        """Draw further; these chains stay where they are."""
        chains, shares, kept = self, list[float](), list[Tensor]()
        for _ in range(num_samples):
            points, accepted = chains._moved()
            chains = replace(chains, points=points)
            shares.append(accepted)
            kept.append(points.x)
        return Advanced(chains, torch.stack(kept, 1), sum(shares) / num_samples)

    def after(self, num_moves: int) -> "Hamiltonian":
        """The chains after some trajectories."""
        chains = self
        for _ in range(num_moves):
            chains = replace(chains, points=chains._moved()[0])
        return chains

    def _moved(self) -> tuple[Points, float]:
        """A trajectory of about a quarter of the way round a standard normal."""
        num_leapfrogs = min(MAX_LEAPFROGS, max(1, round(0.5 * math.pi / self.step_size)))
        step = self.step_size if self.widths is None else self.step_size * self.widths
        return move(lambda x: _values(self.density, x), self.points, step, num_leapfrogs)


def _values(density: DensityGradient, x: Tensor) -> tuple[Tensor, Tensor]:
    return finite(*density.values_and_grads(x, len(x)))


class Warmth(NamedTuple):
    """What a chain of NUTS has adapted: its step size, and the inverse of its mass matrix by names of sites."""

    step_size: float
    inverse_mass: Mapping[Any, Tensor]


@dataclass(frozen=True)
class NoUTurn(Chains):
    """Pyro's NUTS, one chain after the other.

    :param density: log density and gradient.
    :param at: where the chains are, ``(num_chains, D)``.
    :param num_warmup: steps of adaptation that come before the first draws.
    :param warmth: what each chain has adapted; None before that.
    """

    density: DensityGradient
    at: Tensor
    num_warmup: int
    warmth: Sequence[Warmth] | None = None

    def advance(self, num_samples: int, progress_bar: bool = False) -> Advanced:
        """Draw further; these chains stay where they are."""
        known: Sequence[Warmth | None] = [None] * len(self.at) if self.warmth is None else self.warmth
        found = [self._one(x, warmth, num_samples, progress_bar) for x, warmth in zip(self.at, known)]
        x = torch.stack([x for x, _, _ in found])
        warmth = [warmth for _, warmth, _ in found]
        accepted = sum(share for _, _, share in found) / len(found)
        return Advanced(replace(self, at=x[:, -1], warmth=warmth), x, accepted)

    def _one(
        self, start: Tensor, warmth: Warmth | None, num_samples: int, progress_bar: bool
    ) -> tuple[Tensor, Warmth, float]:
        kernel = _Kernel(self.density, warmth)
        mcmc = MCMC(
            kernel,
            num_samples=num_samples,
            warmup_steps=self.num_warmup if warmth is None else 0,
            initial_params={"x": start.clone()},
            disable_progbar=not progress_bar,
        )
        with validation(False), _restored_logger():  # as Pyro would itself, but leaving things as they were
            mcmc.run()
        rates = mcmc.diagnostics()["acceptance rate"]
        return mcmc.get_samples()["x"], kernel.warmth, float(sum(rates.values()) / len(rates))


class _Kernel(NUTS):
    """NUTS that may begin with what an earlier one has adapted."""

    def __init__(self, density: DensityGradient, known: Warmth | None):
        self.known, self.found = known, known
        fixed = {} if known is None else {"adapt_step_size": False, "adapt_mass_matrix": False}
        super().__init__(
            potential_fn=lambda values: -_Sloped.apply(values["x"], density.value_and_grad),
            step_size=1.0 if known is None else known.step_size,
            target_accept_prob=ACCEPTANCE,
            **fixed,
        )

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        super().setup(warmup_steps, *args, **kwargs)
        if self.known is not None:
            self.mass_matrix_adapter.inverse_mass_matrix = self.known.inverse_mass

    def cleanup(self) -> None:
        self.found = Warmth(float(self.step_size), dict(self.inverse_mass_matrix))
        super().cleanup()

    @property
    def warmth(self) -> Warmth:
        """What it has adapted."""
        if self.found is None:
            raise RuntimeError("NUTS has not run yet")
        return self.found


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


@dataclass(frozen=True)
class Independence(Chains):
    """Metropolis-Hastings over draws of the guide as they come; each chain has its own.

    :param at: where the chains are, one draw each.
    :param unused: draws that no chain has been offered yet.
    :param further: fresh draws, where those run out.
    """

    at: Draws
    unused: Draws
    further: Callable[[int], Draws]

    @classmethod
    def starting(cls, draws: Draws, num_chains: int, further: Callable[[int], Draws]) -> "Independence":
        """Chains that begin at the first of the draws."""
        return cls(_rows(draws, slice(num_chains)), _rows(draws, slice(num_chains, None)), further)

    def advance(self, num_samples: int, progress_bar: bool = False) -> Advanced:
        """Draw further; these chains stay where they are."""
        num_chains, offered = len(self.at.z), self.unused
        needed = num_chains * num_samples
        if needed > len(offered.z):
            offered = concatenate([offered, self.further(needed - len(offered.z))])
        proposals = _rows(offered, torch.arange(needed).view(num_chains, num_samples))
        z, log_p, log_q = (torch.cat([a[:, None], b], 1) for a, b in zip(_parts(self.at), _parts(proposals)))
        known = Draws(z, log_p, log_q)
        index, moved = _accepted(known.log_weight)
        rows = torch.arange(num_chains)
        chains = replace(self, at=_rows(known, (rows, index[:, -1])), unused=_rows(offered, slice(needed, None)))
        return Advanced(chains, known.z[rows[:, None], index], moved / needed)


def _accepted(log_weight: Tensor) -> tuple[Tensor, int]:
    """Which of the proposals ``(num_chains, 1 + num_samples)`` each chain is at, the first being its start."""
    bar = torch.rand(log_weight.shape, dtype=log_weight.dtype).log()
    at, rows, index, moved = torch.zeros(len(bar), dtype=torch.long), torch.arange(len(bar)), list[Tensor](), 0
    for t in range(1, bar.shape[1]):
        accept = bar[:, t] < log_weight[:, t] - log_weight[rows, at]
        at = torch.where(accept, t, at)
        moved += int(accept.sum())
        index.append(at)
    return torch.stack(index, 1), moved


def _parts(draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    return draws.z, draws.log_p, draws.log_q


def _rows(draws: Draws, which: Any) -> Draws:
    return Draws(draws.z[which], draws.log_p[which], draws.log_q[which])
