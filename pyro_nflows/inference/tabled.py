"""The rows of a fit by minibatches that have numbers of their own, in tables."""

import math
from typing import cast

from torch import Tensor

from ..engine.lazy import RowState
from ..flows.upweighted import Upweighted
from ..flows.whitened import Whitened
from ..guides import AutoFlow, row_checks
from ..layers import PlateAffine
from ..layers.base import Chain
from ..model.crossed_terms import CrossedTerms
from ..model.row_terms import RowTerms
from ..model.rows import Rows
from .row_starts import place_rows
from .row_team import RowTeam


class TabledRows:
    """A flow over all rows of a plate, and one over as many rows as a minibatch has, whose numbers are looked up.

    :param guide: follows the plate; its parameters are copied.
    :param terms: the model on chosen rows.
    """

    amortizer = None

    def __init__(self, guide: AutoFlow, terms: RowTerms | CrossedTerms):
        row_checks.need_exact_rows(type(guide).__name__, guide.plain_layer())
        self.layer, self.terms = guide.plain_layer(), terms
        self.small = guide.layer_over(terms.hierarchy, terms.joint.latents.init_loc())

    @property
    def end(self) -> PlateAffine:
        """The affine end."""
        return cast(PlateAffine, self.layer.end)

    @property
    def weighed(self) -> Whitened:
        """What draws are taken from; :func:`~pyro_nflows.nets.views.on_rows` is for it."""
        return self.layer

    def place(self, team: RowTeam | None = None, until: float = math.inf) -> None:
        """Start each row at its mode given what is outside of the plate.

        :param team: who goes through all rows; by default this process alone.
        :param until: see :func:`~pyro_nflows.inference.row_starts.row_starts`.
        """
        end, terms = self.end, cast(RowTerms, self.terms)
        place_rows(end, terms, lambda numbers: Rows.of(end.hierarchy, {terms.plate: numbers}), team, until)

    def steps(self, is_whole: bool, step_size: float, leaves: list[Tensor]) -> tuple[Upweighted, RowState]:
        """The layer of steps on as many rows as a minibatch has, and the state of all rows.

        :param is_whole: whether the whole flow is trained, or the affine end alone.
        :param step_size: the largest.
        :param leaves: the model's own parameters.
        """
        whole, small = (
            Upweighted(layer if is_whole else Chain(layer.end), self.terms.weights)
            for layer in (self.layer, self.small)
        )
        return small, RowState(whole, leaves)
