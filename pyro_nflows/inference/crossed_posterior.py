"""What a fit of rows of several plates leaves: draws of all rows, and how each block is fitted given the others."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..diagnostics.crossed_verdict import with_blocks
from ..diagnostics.findings import Block, Faults
from ..diagnostics.groups import GroupsLeftOut
from ..diagnostics.outliers import trimmed_elbo
from ..diagnostics.verdict import Evidence, Outcome, Verdict
from ..engine import History
from ..flows.whitened import Whitened
from ..guides import AutoFlow
from ..model.bound import BoundModel
from ..model.crossed_terms import CrossedTerms
from ..model.hierarchy import Hierarchy
from ..model.latents import Latents
from ..model.row_owners import SeveralRowsError
from ..objectives.draws import Draws
from ..system.exclusive import exclusive, seeded
from ..system.randomness import forked
from .conditionals import FEWEST, MOST, Conditionals
from .crossed_left_out import crossed_parts
from .fitted import bound_of
from .groups_left_out import Part
from .posterior import Call
from .reused import MOST_DRAWS
from .row_posterior import RowPosterior

#: By how much the bounds of two fits of the same posterior may differ, for each latent: they are not equally close.
NOISE_A_LATENT = 1e-3
#: By how many standard deviations their means may differ, beside the noise of few draws.
SHIFT = 0.3

#: Why rows are not judged where time was over.
NO_TIME = "there was no time to draw rows again given all else"


@dataclass(frozen=True, eq=False, repr=False)
class CrossedPosterior(RowPosterior):
    """A :class:`~pyro_nflows.inference.posterior.Posterior` of a model with latents in several plates, some subsampled.

    The weights of its draws are of whole draws, over all rows. These fall off exponentially with the number of rows, so
    the verdict rests on each block of rows given the others (:mod:`~pyro_nflows.inference.conditionals`).

    :param blocks: how each is fitted.
    :param obstacle: why that is not known, where it is not.
    """

    blocks: Sequence[Block] = ()
    obstacle: str = ""

    def verdict(self) -> Verdict[Outcome]:
        """What to make of the draws: an outcome and one sentence, which says what it rests on."""
        return with_blocks(self.of_weights(), self.blocks, self.history.quick, self.obstacle)

    def of_weights(self) -> Verdict[Outcome]:
        """The verdict on the weights of whole draws alone."""
        found = super(RowPosterior, self).verdict()
        if found.outcome is Outcome.STARTS_DISAGREE:  # of them these are
            return replace(found, sentence=found.sentence.replace("log evidence", "bounds of the log evidence"))
        return found

    @property
    def evidence(self) -> Evidence:
        """What the verdict rests on; of several starts, bounds are compared: weights of whole draws are too uneven."""
        known = super().evidence
        if len(self.starts) < 2:
            return known
        bounds = [bound_of(part.log_weight, trimmed_elbo) for part in self.starts]
        noise = NOISE_A_LATENT * self.draws.z.shape[1]
        bounds = [part._replace(se=(part.se**2 + noise**2) ** 0.5) for part in bounds]
        few = 1 + 5 * (2 / len(self.starts[0].z)) ** 0.5 / SHIFT  # five standard errors of a difference of two means
        return known._replace(log_evidences=bounds, sd=few * known.sd)

    @exclusive()
    @torch.no_grad()
    def get_samples(self, num_samples: int = 1000, *, resample: bool | None = None) -> dict[str, Tensor]:
        """Posterior draws; resampled, unless it is asked for, only where weights of whole draws are good."""
        resample = self.of_weights().outcome.is_trusted and None if resample is None else resample
        return super().get_samples(num_samples, resample=resample)

    def _further(self, num_samples: int) -> Draws:
        own, call = self._own_guide(), self._need_call()
        terms = crossed_terms(own, call)
        with seeded((self.seed or 0) + len(self.draws.z)), self.own_parameters():
            return Conditionals(own.plain_layer(), terms).weighed(num_samples)

    def leave_one_group_out(self, plate: str, num_samples: int | None = None) -> GroupsLeftOut:
        """See :meth:`pyro_nflows.VI.leave_one_group_out`; by default there are 400 draws at least."""
        usual = max(MOST, min(MOST_DRAWS, len(self.draws.z)))
        return super().leave_one_group_out(plate, usual if num_samples is None else num_samples)

    def as_used(self, draws: Draws) -> Draws:
        """Draws with weights of whole draws only where these are good, and else with equal ones."""
        return draws if self.of_weights().outcome.is_trusted else replace(draws, log_p=draws.log_q)

    def parts_of(self, plate: str) -> Iterator[Part]:
        """The rows of any plate with latents."""
        own = self._own_guide()
        return crossed_parts(plate, own.plain_layer(), crossed_terms(own, self._need_call()), own.latents)

    def own_leaves(self, call: Call) -> list[Tensor]:
        """The trainable tensors of the model's own, as they are now."""
        with forked():
            return crossed_terms(self.guide, call).leaves()

    @torch.no_grad()
    def state(self) -> dict[str, Any]:
        """All but the model and its arguments, as tensors and plain values, for a file."""
        return {**super().state(), "blocks": _state_of(self.blocks), "obstacle": self.obstacle}


def _state_of(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    return [{**asdict(block), "plates": list(block.plates)} for block in blocks]


def blocks_of(state: Sequence[dict[str, Any]]) -> tuple[Block, ...]:
    """What a file has of the blocks."""
    return tuple(Block(**{**block, "plates": tuple(block["plates"])}) for block in state)


def crossed_terms(guide: AutoFlow, call: Call) -> CrossedTerms:
    """The model on chosen rows."""
    return CrossedTerms(BoundModel(guide.bare_model, *call), guide.latents, cast(Hierarchy, guide.hierarchy))


def is_crossed(latents: Latents, hierarchy: Hierarchy | None) -> bool:
    """Whether latents are in several plates, such that not all of their rows are those of one subsampled plate."""
    if hierarchy is None:
        return False
    if len(hierarchy.subsampled) == 1:
        return not all(set(hierarchy.subsampled) <= set(block.plates) for block in hierarchy.blocks)
    return bool(hierarchy.subsampled) or hierarchy.shares


class Judged(NamedTuple):
    """Draws of a flow over all rows, and how each block is fitted given the others.

    :param draws: with their log densities.
    :param blocks: none where that is not known.
    :param obstacle: why.
    """

    draws: Draws
    blocks: tuple[Block, ...] = ()
    obstacle: str = ""

    def state(self) -> dict[str, Any]:
        """As tensors and plain values."""
        draws = [self.draws.z, self.draws.log_p, self.draws.log_q]
        return {"draws": draws, "blocks": _state_of(self.blocks), "obstacle": self.obstacle}

    @staticmethod
    def of(state: dict[str, Any]) -> "Judged":
        """What :meth:`state` was made of."""
        return Judged(Draws(*state["draws"]), blocks_of(state["blocks"]), state["obstacle"])


def judged(layer: Whitened, terms: CrossedTerms, history: History, until: float = math.inf) -> Judged:
    """Draws of a flow over all rows that are judged; fewer where somebody is waiting.

    :param layer: the flow.
    :param terms: the model.
    :param history: what training has seen.
    :param until: when there are no further draws, by ``time.perf_counter``.
    """
    evidence = Conditionals(layer, terms)
    hurries = history.interrupted or history.out_of_time
    try:
        draws, blocks = evidence.judged(FEWEST if hurries else None, until)
    except SeveralRowsError as error:
        num = FEWEST if hurries else evidence.affordable(1 + len(terms.whole.blocks))
        return Judged(evidence.weighed(10 * num), (), f"{error}, so that rows cannot be judged one by one")
    return Judged(draws, tuple(blocks), "" if blocks else NO_TIME)


def crossed_posterior(
    guide: AutoFlow, layer: Whitened, found: Judged, call: Call, history: History, leaves: Any, seed: int
) -> CrossedPosterior:
    """A flow over all rows, with draws that are judged.

    :param guide: of the flow's kind.
    :param layer: the flow.
    :param found: draws of it.
    :param call: the model's arguments.
    :param history: what training has seen.
    :param leaves: the model's own parameters.
    :param seed: of the draws.
    """
    bad = not bool(torch.isfinite(found.draws.log_p).all())
    faults = Faults(not_finite=_first_latent(guide)) if bad else Faults()
    seen = {"faults": faults, "blocks": found.blocks, "obstacle": found.obstacle}
    return CrossedPosterior.left(guide, layer, call, found.draws, history, leaves, seed, **seen)


def _first_latent(guide: AutoFlow) -> str:
    return guide.latents.names[0]
