r"""Where a fit was before its flow: a Gaussian, mostly, and never to be lost.

Training by a bound that is only estimated can end below where it began. A mark remembers the beginning, and compares.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..diagnostics.outliers import trimmed_elbo
from ..diagnostics.worth import effective, is_hopeless
from ..engine import Trainer
from ..engine.sampler import DRAWS, LOOK
from ..layers.base import Layer
from ..objectives.base import Objective
from ..objectives.draws import Draws
from ..system.randomness import forked
from .fitted import bound_of, sound

#: Draws of a flow with at least this ESS are not worse than a Gaussian's by anything that matters.
FINE = 0.5
#: Draws of what was before, to compare with.
NUM_DRAWS = 1000
#: Draws by which two states of a fit are compared.
NUM_COMPARED = 500
#: How many standard errors are no noise.
CLEAR = 5.0


class Mark:
    """A layer's parameters, and a model's own, as they are now.

    :param trainer: has the model.
    :param layer: is changed by training.
    :param objective: what is maximised from here on.
    :param num_particles: its draws a step.
    """

    def __init__(self, trainer: Trainer, layer: Layer, objective: Objective, num_particles: int):
        self.trainer, self.layer, self.objective, self.num_particles = trainer, layer, objective, num_particles
        self._here = self._now()

    def _now(self) -> tuple[dict[str, Tensor], list[Tensor]]:
        state = {name: value.detach().clone() for name, value in self.layer.state_dict().items()}
        return state, [leaf.detach().clone() for leaf in self.trainer.leaves]

    def _put(self, state: dict[str, Tensor], leaves: Sequence[Tensor]) -> None:
        self.layer.load_state_dict(state)
        with torch.no_grad():
            put(self.trainer.leaves, leaves)

    def was_better(self, draws: Draws) -> bool:
        """Whether the bound was clearly higher here than it is where these draws are from, and the ESS no lower.

        The random numbers to come do not depend on whether this is asked.
        """
        now = sound(draws).log_weight
        return effective(now) < FINE and self._is_clearly_better(sound(self.draws(NUM_DRAWS, LOOK)).log_weight, now)

    def draws(self, num_samples: int, share: float = DRAWS) -> Draws:
        """Draws of the layer as it was here; it stays as it is.

        The random numbers to come do not depend on whether these are asked for.

        :param share: see :meth:`~pyro_nflows.engine.Sampler.sample`.
        """
        there = self._now()
        try:
            self._put(*self._here)
            with forked():
                return self.trainer.sampler.sample(self.layer, num_samples, share)
        finally:
            self._put(*there)

    def _is_clearly_better(self, then: Tensor, now: Tensor) -> bool:
        if is_hopeless(then) or is_hopeless(now):
            return is_hopeless(now) and not is_hopeless(then)
        lost = [float((part == -torch.inf).double().mean()) for part in (then, now)]
        parts = [part[part > -torch.inf] for part in (then, now)]
        a, b = (trimmed_elbo(self._bounds(part, min(map(len, parts)) // 10)) for part in parts)
        higher = float(a.value - b.value) > CLEAR * float((a.se.square() + b.se.square()).sqrt())
        return lost[0] <= lost[1] and higher and effective(then) >= effective(now)

    def _bounds(self, log_weight: Tensor, most: int) -> Tensor:
        """The bound that is maximised, of as many draws as a step has, or as ``most``; time and again."""
        if type(self.objective).bound is Objective.bound:  # a mean of means is a mean
            return log_weight
        size = max(1, min(self.num_particles, most))
        groups = log_weight[: len(log_weight) // size * size].view(-1, size)
        return torch.stack([self.objective.bound(group) for group in groups])

    def put_back(self) -> None:
        """Put the parameters back."""
        self._put(*self._here)

    def go_back(self) -> None:
        """Put the parameters back, and count that as a training that diverged."""
        self.put_back()
        self.trainer.history.restarts += 1


def put(leaves: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Set tensors to values."""
    for leaf, value in zip(leaves, values):
        leaf.copy_(value)


def trimmed(trainer: Trainer, layer: Layer) -> float:
    """A layer's ELBO without its outliers."""
    log_weight = sound(trainer.sampler.sample(layer, NUM_COMPARED, LOOK)).log_weight
    return float(bound_of(log_weight, trimmed_elbo).value)
