"""The rows of a fit by minibatches whose numbers an encoder of their data gives, in place of a table."""

import copy
import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from ..engine.lazy import RowState, dependence_factor
from ..flows.upweighted import Upweighted
from ..flows.whitened import Whitened
from ..guides import AutoFlow, row_checks
from ..guides.amortized import Amortizer, Slot, row_data, slots, typical
from ..layers import PlateAffine, Rescaled
from ..layers.base import Chain, Layer, Scored
from ..model.hierarchy import Hierarchy
from ..model.row_terms import RowTerms
from ..model.rows import Rows
from ..model.subsample import look
from ..nets.row_encoder import HEAD_STEP
from ..nets.steps import step_factor
from ..nets.table import Table
from ..nets.views import on_rows
from .row_starts import row_starts
from .row_team import RowTeam

#: What the regression by which an encoder starts is held back by, as a share of the features' mean square.
RIDGE = 1e-4
#: The largest step of an encoder's networks.
NETWORK_STEP = 3e-3


class EncodedRows(nn.Module):
    """A flow over all rows of a plate, which has numbers for the rows that the model is at alone, from their data.

    :param guide: with an encoder; its parameters are copied.
    :param terms: the model, at some rows.
    """

    def __init__(self, guide: AutoFlow, terms: RowTerms):
        whole = cast(Hierarchy, guide.hierarchy)
        super().__init__()
        row_checks.need_exact_rows(type(guide).__name__, guide.plain_layer())
        self.input_dim = whole.dim
        stored = cast(Rescaled, guide.layer)
        self.layer, self.factors = guide.plain_layer(), stored.factors
        self.amortizer = copy.deepcopy(cast(Amortizer, guide.amortizer))
        self.exactness, self.noise_dim = self.layer.exactness, self.layer.noise_dim
        self.terms, self.hierarchy = terms, whole
        self._typical, self._name = typical(whole).hierarchy, type(guide).__name__
        self._sites = {name: latent.site for name, latent in guide.latents.sites.items()}
        self._check_inputs()

    def _check_inputs(self) -> None:
        """Refuse rows of whose observations a run of the model has some only."""
        trace = look(self.terms.joint.bound, self._sites)
        for name in {part.name for _, row in self.amortizer.parts() for part in row.inputs}:
            for frame in trace.nodes[name]["cond_indep_stack"]:
                if frame.name in self.terms.others:
                    raise ValueError(
                        f"{self._name}: rows are encoded by site '{name}', of which a run of the model has some "
                        f"observations only, because plate '{frame.name}' is subsampled; take all of them "
                        "(no subsample_size there), or leave amortize out"
                    )

    @property
    def weighed(self) -> "EncodedRows":
        """What draws are taken from; :func:`~pyro_nflows.nets.views.on_rows` is for it."""
        return self

    @property
    def end(self) -> PlateAffine:
        """Of a typical row."""
        return cast(PlateAffine, self.layer.end)

    def view(self) -> Whitened:
        """The flow over the rows that the model is at."""
        alike = {self.terms.plate: torch.zeros(self.terms.size, dtype=torch.long)}
        rows = Rows.of(self._typical, alike)
        trace = look(self.terms.joint.bound, self._sites)
        return self.amortizer.view(self._name, on_rows(self.layer, rows), self.factors, rows, trace)

    def on_rows(self, rows: Rows) -> Whitened:
        """See :func:`~pyro_nflows.nets.views.on_rows`; the model has to be at these rows."""
        return self.view()

    # ---- the start --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def place(self, team: RowTeam | None = None, until: float = math.inf) -> None:
        """Start at the linear functions of the features that are nearest to where each row would start by itself.

        :param team: who goes through all rows; by default this process alone.
        :param until: see :func:`~pyro_nflows.inference.row_starts.row_starts`.
        """
        end, terms = self.end, self.terms
        columns = Rows.of(self._typical, {terms.plate: torch.zeros(terms.size, dtype=torch.long)}).columns
        sums: dict[int, tuple[Tensor, Tensor]] = {}
        for _, found in row_starts(terms, end.top_scale_tril(), lambda _: end.loc[columns], team, until):
            trace = look(terms.joint.bound, self._sites)
            for number, part in self.amortizer.parts():
                features = part.features(*row_data(self._name, trace, terms.hierarchy.blocks[number], part.inputs))
                features = torch.cat([features, torch.ones_like(features[:, :1])], -1).double()
                wanted = torch.cat([self._wanted(number, slot, found) for slot in self._slots(number)], -1)
                old = sums.get(number, (0.0, 0.0))
                sums[number] = old[0] + features.T @ features, old[1] + features.T @ wanted.double()
        for number, part in self.amortizer.parts():
            square, product = sums[number]
            square = square + RIDGE * square.diagonal().mean() * torch.eye(len(square)).to(square)
            solution = torch.linalg.solve(square, product).T.to(part.head.weight)
            part.put(solution[:, :-1], solution[:, -1])

    def _slots(self, number: int) -> list[Slot]:
        return slots(self.layer, self.factors, number, self._typical.blocks[number].row_dim)

    def _wanted(self, number: int, slot: Slot, found: PlateAffine) -> Tensor:
        """What an encoder would have to give for a row to start where it should, ``(rows, size)``."""
        prefix, block = f"{Whitened.END}.", found.hierarchy.blocks[number]
        if not slot.name.startswith(prefix):
            return found.loc.new_zeros(block.num_rows, slot.size)
        name = slot.name.removeprefix(prefix)
        wanted, now = dict(found.named_parameters())[name], dict(self.end.named_parameters())[name]
        if name in ("loc", "log_scale"):
            return wanted[block.columns] - now[self._typical.blocks[number].columns]
        return (wanted - now).reshape(block.num_rows, -1) / slot.factor

    # ---- steps ------------------------------------------------------------------------------------------------

    def steps(self, is_whole: bool, step_size: float, leaves: list[Tensor]) -> tuple["EncodedSteps", RowState]:
        """The layer of steps on the rows that the model is at, and the state of its parameters.

        :param is_whole: whether the whole flow is trained, or the affine end alone.
        :param step_size: the largest; networks take smaller ones.
        :param leaves: the model's own parameters.
        """
        layer = EncodedSteps(self, is_whole)
        return layer, RowState(layer, leaves, self._step_factors(min(1.0, NETWORK_STEP / step_size)))

    @torch.no_grad()
    def _step_factors(self, network: float) -> Mapping[str, Tensor]:
        """By which each parameter's steps are multiplied."""
        known = dict[str, Tensor]()
        for prefix, module in self.named_modules(prefix="rows"):
            for name, parameter in module.named_parameters(recurse=False):
                factor = step_factor(module, name) * (network if prefix.startswith("rows.amortizer") else 1.0)
                if isinstance(module, Table) and module.reads_above:
                    factor *= dependence_factor(self.terms.num_rows)
                known[f"{prefix}.{name}"] = parameter.new_tensor(factor)
        known[f"rows.layer.{Whitened.END}.loc"] = self.end.log_scale.exp()
        for number, part in self.amortizer.parts():
            speed = torch.cat([self._speed(number, slot) for slot in self._slots(number)]) / HEAD_STEP
            known[f"rows.amortizer.blocks.{number}.head.weight"] = speed[:, None] / part.head.in_features
            known[f"rows.amortizer.blocks.{number}.head.bias"] = speed
        return known

    def _speed(self, number: int, slot: Slot) -> Tensor:
        """How fast each number is to move, beside those that a row would have of its own, over its factor."""
        block = self._typical.blocks[number]
        if slot.name.endswith(f"{Whitened.END}.loc"):
            return self.end.log_scale[block.columns[0]].exp()
        one = self.end.loc.new_ones(slot.size) / slot.factor
        reads_above = ".coefficients." in slot.name or ".above." in slot.name
        return dependence_factor(self.terms.num_rows) * one if reads_above else one


class EncodedSteps(Layer):
    """The flow over the rows that the model is at, each of which counts several times, made anew at each call.

    :param rows: has the parameters.
    :param is_whole: whether it is the whole flow, or its affine end alone.
    """

    def __init__(self, rows: EncodedRows, is_whole: bool):
        super().__init__(rows.terms.hierarchy.dim)
        self.rows, self.is_whole = rows, is_whole
        self.exactness, self.noise_dim = rows.exactness, rows.noise_dim if is_whole else 0

    def _now(self) -> Upweighted:
        view = self.rows.view()
        return Upweighted(view if self.is_whole else Chain(view.end), self.rows.terms.factor)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_weight = self._now()(x, noise)
        return y, log_weight

    def scored(self, x: Tensor, noise: Tensor | None, score: Tensor, reverse: Tensor) -> Scored:
        return self._now().scored(x, noise, score, reverse)
