"""What a fit of rows of several plates leaves: draws of all rows, and how each block is fitted given the others."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ..diagnostics.crossed_verdict import with_blocks
from ..diagnostics.findings import Block, Faults, MissedMass
from ..diagnostics.verdict import Outcome, Verdict
from ..engine import History
from ..flows.whitened import Whitened
from ..guides import AutoFlow
from ..layers import Rescaled
from ..model.bound import BoundModel
from ..model.crossed_terms import CrossedTerms
from ..model.hierarchy import Hierarchy
from ..model.latents import Latents
from ..model.row_owners import SeveralRowsError
from ..objectives.draws import Draws
from ..system.exclusive import exclusive, seeded
from .conditionals import FEWEST, Conditionals
from .groups_left_out import Part
from .posterior import Call
from .row_posterior import RowPosterior


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
        return super(RowPosterior, self).verdict()

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

    def parts_of(self, plate: str) -> Iterator[Part]:
        """Refused: an observation belongs to rows of several plates.

        :raises ValueError: always.
        """
        raise ValueError(
            f"leave_one_group_out: this model has latents in several plates, so that data of a row of plate {plate!r} "
            "depend on rows of others too, and no row can be left out by itself"
        )

    def own_leaves(self, call: Call) -> list[Tensor]:
        """The trainable tensors of the model's own, as they are now."""
        with torch.random.fork_rng(devices=[]):
            return crossed_terms(self.guide, call).leaves()

    @torch.no_grad()
    def state(self) -> dict[str, Any]:
        """All but the model and its arguments, as tensors and plain values, for a file."""
        blocks = [{**asdict(block), "plates": list(block.plates)} for block in self.blocks]
        return {**super().state(), "blocks": blocks, "obstacle": self.obstacle}


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
    return bool(hierarchy.subsampled) or hierarchy.crosses


def crossed_posterior(
    guide: AutoFlow, layer: Whitened, terms: CrossedTerms, call: Call, history: History, leaves: Any, seed: int
) -> CrossedPosterior:
    """A flow over all rows, with draws that are judged.

    :param guide: of the flow's kind.
    :param layer: the flow.
    :param terms: the model.
    :param call: its arguments.
    :param history: what training has seen.
    :param leaves: the model's own parameters.
    :param seed: of the draws.
    """
    evidence, obstacle, blocks = Conditionals(layer, terms), "", list[Block]()
    num = FEWEST if history.interrupted or history.out_of_time else evidence.num_samples
    try:
        draws, blocks = evidence.judged(num)
    except SeveralRowsError as error:
        draws, obstacle = evidence.weighed(10 * num), f"{error}, so that rows cannot be judged one by one"
    bad = not bool(torch.isfinite(draws.log_p).all())
    faults = Faults(not_finite=_first_latent(guide)) if bad else Faults()
    return CrossedPosterior(
        guide,
        Rescaled(layer, Whitened.END),
        call,
        draws,
        [draws],
        history,
        MissedMass(),
        faults,
        leaves=[leaf.detach().clone() for leaf in leaves],
        seed=seed,
        blocks=tuple(blocks),
        obstacle=obstacle,
    )


def _first_latent(guide: AutoFlow) -> str:
    return guide.latents.names[0]
