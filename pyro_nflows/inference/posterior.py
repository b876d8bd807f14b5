r"""What a run leaves behind: draws with their weights, and what is known about how good they are."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..diagnostics import weights as diagnostics
from ..diagnostics.verdict import Evidence, Verdict, effective, is_hopeless, judge, tail_index
from ..engine import History
from ..flows.whitened import Whitened
from ..guides import AutoFlow
from ..objectives.draws import Draws


@dataclass
class Fit:
    """A trained layer and draws from it, without gradients; ``undefined`` are those with NaN in place of a weight.

    ``failed`` says that training met values which are not finite, however small its steps.
    """

    layer: Whitened
    draws: Draws
    undefined: Tensor
    failed: bool = False

    @property
    def elbo(self) -> diagnostics.Estimate:
        """The evidence lower bound."""
        return bound_of(self.draws.log_weight, diagnostics.elbo)

    @property
    def log_evidence(self) -> diagnostics.Estimate:
        """The importance estimate of the log evidence."""
        return bound_of(self.draws.log_weight, diagnostics.log_evidence)

    @property
    def suspects(self) -> Tensor:
        """Draws that may tell why values are not finite: those without a weight, or all."""
        return self.draws.z[self.undefined] if self.undefined.any() else self.draws.z


def bound_of(log_weight: Tensor, bound: Callable[[Tensor], diagnostics.Estimate]) -> diagnostics.Estimate:
    """A bound of the evidence; ``-inf`` where no draw has any weight."""
    if is_hopeless(log_weight):
        return diagnostics.Estimate(torch.tensor(-torch.inf), torch.tensor(torch.inf))
    return bound(log_weight)


def evidence_of(log_weight: Tensor) -> dict[str, float]:
    """The ELBO and the importance estimate of the log evidence, with their standard errors."""
    found = {"elbo": bound_of(log_weight, diagnostics.elbo), "iwae": bound_of(log_weight, diagnostics.log_evidence)}
    parts = [(name, float(e.value), float(e.se)) for name, e in found.items()]
    return {key: number for name, value, se in parts for key, number in ((name, value), (f"{name}_se", se))}


def weighed(layer: Whitened, draws: Draws, failed: bool = False) -> Fit:
    """A fit with such draws of it; those with NaN in place of a weight count for nothing."""
    undefined = ~(draws.log_weight < torch.inf)
    return Fit(layer, weightless(draws, undefined), undefined, failed)


def weightless(draws: Draws, which: Tensor) -> Draws:
    """The draws, some of which count for nothing."""
    return Draws(draws.z, torch.where(which, -torch.inf, draws.log_p), torch.where(which, 0.0, draws.log_q))


@dataclass
class Result:
    """Draws of the trained guide, and the evidence.

    :param draws: of the best fit.
    :param starts: draws of each start's fit.
    :param history: what training has seen.
    :param bad_site: the site whose log density was not finite, if one was.
    :param values: the draws of each site in its own space, where they cannot be computed from ``draws``.
    """

    draws: Draws
    starts: Sequence[Draws] = ()
    history: History = field(default_factory=History)
    bad_site: str | None = None
    values: dict[str, Tensor] | None = None

    def evidence(self) -> Evidence:
        """What the verdict rests on."""
        h, log_weights = self.history, [part.log_weight for part in self.starts]
        bounds, means = (
            [bound_of(w, diagnostics.log_evidence) for w in log_weights],
            [part.z.mean(0) for part in self.starts],
        )
        found = self.bad_site, h.drift, h.missed, h.where, h.round_trip, h.improper, h.edge, h.units
        return Evidence(self.draws.log_weight, bounds, means, self.draws.z.std(0), *found)

    def verdict(self) -> Verdict:
        """What to make of the draws."""
        h = self.history
        return judge(self.evidence(), h.num_steps, h.skipped, h.restarts)

    def diagnostics(self) -> dict[str, Any]:
        """The evidence in numbers; see :meth:`pyro_nflows.VI.diagnostics`."""
        log_weight, history = self.draws.log_weight, self.history
        return {
            **evidence_of(log_weight),
            "pareto_k": tail_index(log_weight),
            "ess": effective(log_weight),
            "num_steps": history.num_steps,
            "num_skipped": history.skipped,
            "num_restarts": history.restarts,
            "interrupted": history.interrupted,
            "seconds": history.seconds,
            "outcome": self.verdict().outcome,
        }

    def constrained(self, guide: AutoFlow, index: Tensor) -> dict[str, Tensor]:
        """Some of the draws, each site in its own space.

        :param guide: what the latents are.
        :param index: which draws.
        """
        if self.values is None:
            return guide.constrain(self.draws.z[index])
        return {name: value[index] for name, value in self.values.items()}

    def state(self, guide: AutoFlow) -> dict[str, Any]:
        """All of it as tensors and plain values, for a file."""
        return {
            "draws": _columns(self.draws),
            "starts": [_columns(draws) for draws in self.starts],
            "history": self.history.state(),
            "bad_site": self.bad_site,
            "values": self._values(guide),
        }

    @torch.no_grad()
    def _values(self, guide: AutoFlow) -> dict[str, Tensor | list[int]]:
        """Every site's values; of one that ``z`` holds as they are, only where and of what shape."""
        found, start, z = dict[str, Tensor | list[int]](), 0, self.draws.z
        for name, value in self.constrained(guide, torch.arange(len(z))).items():
            size = math.prod((guide._site_shapes or {})[name])
            held = value.numel() == len(z) * size and torch.equal(value.reshape(len(z), -1), z[:, start : start + size])
            found[name] = [start, *value.shape[1:]] if held else value
            start += size
        return found


def restored(state: dict[str, Any]) -> Result:
    """What :meth:`Result.state` was made of, with the values of all sites."""
    history, draws = History(), Draws(*state["draws"])
    history.take(state["history"])
    values = {name: _value(draws.z, value) for name, value in state["values"].items()}
    return Result(draws, [Draws(*part) for part in state["starts"]], history, state["bad_site"], values)


def _value(z: Tensor, value: Tensor | list[int]) -> Tensor:
    if isinstance(value, Tensor):
        return value
    start, *shape = value
    return z[:, start : start + math.prod(shape)].reshape(len(z), *shape)


def _columns(draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    return draws.z, draws.log_p, draws.log_q
