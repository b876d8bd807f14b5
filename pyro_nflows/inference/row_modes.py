"""Modes of rows that a guide which follows plates has missed, found along lines through the guide's middle."""

import math
from typing import Any

import torch
from torch import Tensor

from ..diagnostics.findings import MissedMass
from ..engine import OutOfTime, Trainer
from ..engine.density_gradient import DensityGradient
from ..flows.whitened import Whitened
from ..guides import AutoFlow
from ..layers import PlateAffine
from ..modes.row_lines import NUM_DRAWS, MissedRow, line_points, missed_along, missed_row, num_lines
from ..objectives.draws import base_noise
from ..system.randomness import forked
from ..system.shapes import unravel_index
from .collapsed import Collapser

#: A share of a row's mass that is too much to miss.
MISSED_OF_ROW = 0.1


def missed_of_rows(trainer: Trainer, layer: Whitened) -> MissedRow | None:
    """The row of which most is missed by a flow over all rows, if that is too much.

    :param trainer: has the model, with its gradient.
    :param layer: the flow.
    :raises OutOfTime: in a piece of work that has no time for it.
    """
    if not isinstance(layer.end, PlateAffine) or layer.noise_dim:
        return None

    def density(x: Tensor) -> Tensor:
        z, log_weight = layer(x)
        return trainer.density.log_joint(z) + log_weight

    gradient = DensityGradient(density).within(trainer.budget)
    base = base_noise(layer, NUM_DRAWS)
    try:
        found = missed_row(gradient, lambda x: gradient.values_and_grads(x)[1], layer.end.hierarchy, base)
    except (ValueError, RuntimeError):  # far out, a model may refuse to be evaluated
        return None
    if found is None or found.share < MISSED_OF_ROW:
        return None
    with torch.no_grad():
        return found._replace(point=layer(found.point[None])[0][0])


@torch.no_grad()
def missed_by_minibatches(collapser: Collapser, until: float = math.inf) -> MissedRow | None:
    """The same of a fit by minibatches.

    :param collapser: has the layer, and the model on chosen rows.
    :param until: when to make do with what was found, by ``time.perf_counter``.
    :raises OutOfTime: where nothing was found by then, and not all rows were looked at.
    """
    given = collapser.base(NUM_DRAWS, int(torch.randint(2**31, ())))
    numbers = [numbers for numbers, _ in collapser.minibatches()]
    seeds = torch.randint(2**62, (len(numbers),)).tolist()
    collapser.team.tell(collapser.layer)
    best = MissedRow(MISSED_OF_ROW, given, -1)
    pieces = [(given, *piece) for piece in zip(numbers, seeds)]
    num_looked = 0
    for at, found in zip(numbers, collapser.team.over("collapser", missed_in, collapser, pieces, until)):
        num_looked += 1
        if found.share > best.share:
            z, columns = given.new_zeros(collapser.layer.input_dim), collapser.rows(at).columns
            z[columns] = found.point
            best = found._replace(point=z, column=int(columns[found.column]))
    if best.column < 0 and num_looked < len(numbers):
        raise OutOfTime
    return best if best.column >= 0 else None


@torch.no_grad()
def missed_in(collapser: Collapser, given: Tensor, numbers: Tensor, seed: int) -> MissedRow:
    """The row of one minibatch of which most is missed, with the minibatch's place and column.

    :param given: base points of what is outside of the plate.
    :param numbers: of the rows.
    :param seed: of the lines.
    """
    owner, hierarchy, t = collapser.owner, collapser.terms.hierarchy, line_points(given)
    row_of, best = owner[hierarchy.order[len(hierarchy.top) :]], MissedRow(0.0, given, -1)
    with forked(seed):
        for _ in range(num_lines(int(row_of.bincount().max()))):
            u = _directions(row_of, len(numbers)).to(given)
            lines = [collapser.ratios(numbers, point.expand(len(t), -1), t[:, None] * u) for point in given]
            curves = [missed_along(t, line.rows - 0.5 * t.square()[:, None]) for line in lines]
            share = torch.stack([line.share for line in curves]).mean(0)
            row = int(share.argmax())
            if float(share[row]) > best.share:
                z = lines[0].z[int(curves[0].place[row])]
                best = MissedRow(float(share[row]), z, int((owner == row).nonzero()[0, 0]))
    return best


def _directions(row_of: Tensor, num_rows: int) -> Tensor:
    """A random direction for each row, side by side."""
    u = torch.randn(len(row_of))
    return u / u.new_zeros(num_rows).index_add(0, row_of, u.square()).sqrt()[row_of]


def described(guide: AutoFlow, found: MissedRow | None, call: tuple[Any, Any] = ((), {})) -> MissedMass:
    """In words: the row's site, and its value there."""
    if found is None:
        return MissedMass()
    values = guide.constrain(found.point[None], *call[0], **call[1])
    for name, latent in guide.latents.sites.items():
        if latent.columns.start <= found.column < latent.columns.stop:
            place = unravel_index(torch.tensor(found.column - latent.columns.start), latent.shape)
            index = tuple(int(i) for i in place)[: values[name].dim() - 1]
            label = f"{name}[{', '.join(map(str, index))}]" if index else name
            value = values[name][0]
            return MissedMass(found.share, label, float(value[index]) if value[index].numel() == 1 else float("nan"))
    return MissedMass(found.share)
