"""What a fit by minibatches leaves: a posterior whose evidence is of what is outside of the plate, and of each row."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar, cast

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor

from ..arviz import Options, to_arviz
from ..arviz.labels import SAMPLE_DIMS
from ..diagnostics.findings import RowFit
from ..diagnostics.row_verdict import with_rows
from ..diagnostics.verdict import Evidence, Outcome, Verdict
from ..diagnostics.worth import NEARLY_EQUAL
from ..engine import History
from ..flows.whitened import Whitened
from ..guides import AutoFlow
from ..guides.amortized import Amortizer
from ..layers import Rescaled
from ..model.bound import BoundModel
from ..model.hierarchy import Hierarchy
from ..model.row_terms import RowTerms
from ..objectives.draws import Draws
from ..system.exclusive import exclusive, seeded
from ..system.randomness import forked
from .collapsed import MAX_CANDIDATES, Collapser, Outside, collapser_of
from .encoded import EncodedRows
from .groups_left_out import Part, row_parts
from .judged import within
from .posterior import Call, Posterior
from .tabled import TabledRows

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Weighed(NamedTuple):
    """Draws with collapsed weights, the row whose own weights are worst, and all log-weights that were judged."""

    draws: Draws
    row_fit: RowFit
    judged: Tensor


def weighed_draws(
    collapser: Collapser,
    num_samples: int,
    num_kept: int | None = None,
    found: Outside | None = None,
    most: int = MAX_CANDIDATES,
) -> Weighed:
    """Draws of what is outside of the plate with collapsed weights, the first of them with their rows.

    :param collapser: weighs them.
    :param num_samples: how many are judged.
    :param num_kept: how many have their rows drawn and are kept; by default all.
    :param found: those of what is outside, where they are weighed already.
    :param most: see :meth:`~pyro_nflows.inference.collapsed.Collapser.draws`.
    """
    terms = collapser.terms
    found = found or collapser.weigh(num_samples, int(torch.randint(2**31, ())))
    z, ess, tails = collapser.draws(found.base[:num_kept], int(torch.randint(2**31, ())), most)
    row, log_weight = int(ess.argmin()), found.log_weight[:num_kept]
    hopeless = [other for other, tail in tails.items() if tail > 1 and float(ess[other]) < NEARLY_EQUAL]
    row = row if row in hopeless or not hopeless else hopeless[0]
    tail = tails.get(row, float("nan"))
    fit = RowFit(terms.plate, terms.num_rows, row, float(ess[row]), tail, found.uneven)
    return Weighed(Draws(z, log_weight, torch.zeros_like(log_weight)), fit, found.log_weight)


#: A kind of posterior.
_P = TypeVar("_P", bound="RowPosterior")


@dataclass(frozen=True, eq=False, repr=False)
class RowPosterior(Posterior):
    """A :class:`~pyro_nflows.inference.posterior.Posterior` of a model whose rows were taken in minibatches.

    The weights of its draws are of what is outside of the plate, its rows integrated out
    (:mod:`~pyro_nflows.inference.collapsed`); ``log_p - log_q`` of a draw is that weight.

    :param row_fit: the row whose own weights are worst.
    :param amortizer: encodes the rows' numbers, where there are no tables of them.
    :param judged: the log-weights that the verdict rests on, where more draws have these than have their rows kept.
    """

    row_fit: RowFit = field(default_factory=RowFit)
    amortizer: Amortizer | None = None
    judged: Tensor = field(default_factory=lambda: torch.zeros(0))

    @classmethod
    def left(
        cls: type[_P],
        guide: AutoFlow,
        layer: Whitened,
        call: Call,
        draws: Draws,
        history: History,
        leaves: Iterable[Tensor],
        seed: int,
        **found: Any,
    ) -> _P:
        """What one fit leaves, with copies of the model's own parameters as they are now.

        :param layer: the trained flow, its parameters in their own units.
        :param leaves: the model's own parameters.
        :param found: what was found of it, by the names of fields.
        """
        own = [leaf.detach().clone() for leaf in leaves]
        return cls(guide, Rescaled(layer, Whitened.END), call, draws, [draws], history, leaves=own, seed=seed, **found)

    @property
    def numbered(self) -> tuple[str, ...]:
        """Plates whose rows are told apart by their numbers."""
        hierarchy = self.guide.hierarchy
        return (self.row_fit.plate,) if hierarchy is None else hierarchy.subsampled

    @property
    def evidence(self) -> Evidence:
        """What the verdict rests on."""
        known = super().evidence
        if len(self.starts) > 1:  # their draws are of what is outside of the plate
            z = within(self.starts[0])
            is_any, none = z.shape[1] > 0, [z.new_zeros(1)] * len(self.starts)
            known = known._replace(sd=z.std(0)) if is_any else known._replace(sd=z.new_ones(1), means=none)
        return known if len(self.judged) <= len(self.draws.z) else known._replace(log_weight=self.judged)

    def give_to(self, guide: AutoFlow) -> None:
        """Have a guide take what was trained."""
        super().give_to(guide)
        guide.amortizer = self.amortizer

    def verdict(self) -> Verdict[Outcome]:
        """What to make of the draws: an outcome and one sentence, which says what it rests on."""
        return with_rows(super().verdict(), self.row_fit, self.amortizer is not None, self.history.quick)

    def _further(self, num_samples: int) -> Draws:
        args, kwargs = self._need_call()
        own = self._own_guide()
        terms = RowTerms(BoundModel(own.bare_model, args, kwargs), own.latents)
        rows = EncodedRows(own, terms) if self.amortizer is not None else TabledRows(own, terms)
        with seeded((self.seed or 0) + len(self.draws.z)), self.own_parameters():
            return weighed_draws(collapser_of(rows.weighed, terms, own.hierarchy), num_samples).draws

    def parts_of(self, plate: str) -> Iterator[Part]:
        """The rows of the plate, minibatch after minibatch."""
        args, kwargs = self._need_call()
        own = self._own_guide()
        terms = RowTerms(BoundModel(own.bare_model, args, kwargs), own.latents)
        return row_parts(plate, terms, cast(Hierarchy, own.hierarchy))

    def own_leaves(self, call: Call) -> list[Tensor]:
        """The trainable tensors of the model's own, as they are now."""
        with forked():
            return RowTerms(BoundModel(self.guide.bare_model, *call), self.guide.latents).leaves()

    def refine(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: Markov chains would take the gradient over all rows at each step.

        :raises ValueError: always.
        """
        raise ValueError(
            "refine: this fit is by minibatches, and Markov chains take the gradient of all rows at each step; train "
            "it further, or make the model without subsample_size"
        )

    @exclusive()
    def to_arviz(
        self,
        num_samples: int = 4000,
        *,
        resample: bool | None = None,
        num_chains: int | None = None,
        untrusted: bool = False,
        **options: "Unpack[Options]",
    ) -> Any:
        """As many of the draws that are kept as asked for, with their weights.

        There is no log-likelihood: one run of the model has some rows only. See :meth:`pyro_nflows.VI.to_arviz`.
        """
        coords, dims = options.get("coords"), options.get("dims")
        for name in ("log_likelihood", "unconstrained", "predictions", "fresh"):
            asked = options.get(name)
            if asked and not (asked is True and name == "log_likelihood"):
                raise ValueError(
                    f"to_arviz: got {name}={asked!r}, but a fit by minibatches has none, since one run of "
                    "its model has some rows only; leave it out"
                )
        num_samples = min(num_samples, len(self.draws.z))
        export = self.exported([self.draws], num_samples, num_chains, resample, untrusted)
        sites, named = self.guide.latents.sites, dict(dims or {})
        for name, latent in sites.items():
            labels = {a: f"{plate}_plate" if plate in SAMPLE_DIMS else plate for plate, a in latent.axes.items()}
            shape = enumerate(latent.value_shape)
            named.setdefault(name, [labels.get(axis, f"{name}_dim_{axis}") for axis, _ in shape])

        def latents() -> None:
            for name, latent in sites.items():
                pyro.sample(name, dist.Normal(0.0, 1.0).expand(latent.value_shape).to_event(len(latent.value_shape)))

        return to_arviz(
            latents,
            export.by_chain(self.sites_at(export.draws.z)),
            sample_stats=export.by_chain({"log_weight": export.stats()["log_weight"]}),
            group_by_chain=True,
            log_likelihood=False,
            log_prior=False,
            posterior_predictive=False,
            num_prior=0,
            coords=coords,
            dims=named,
            attrs=self.facts_of(export),
            seed=self.seed or 0,
        )

    @torch.no_grad()
    def state(self) -> dict[str, Any]:
        """All but the model and its arguments, as tensors and plain values, for a file."""
        return {**super().state(), "row_fit": asdict(self.row_fit), "judged": self.judged}
