"""Rows of subsampled plates whose numbers come from an encoder of their data, in place of a table."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..flows.whitened import Whitened
from ..layers import Rescaled
from ..model.data_checks import is_deterministic
from ..model.hierarchy import Block, Hierarchy
from ..model.rows import Rows
from ..nets.row_encoder import RowEncoder, RowInput, RowNumbers
from ..nets.table import Table
from ..nets.views import with_parameters
from . import row_checks

#: The flat numbers of the end, and how they are called in a guide's layer.
FLAT = (f"{Whitened.END}.loc", f"{Whitened.END}.log_scale")


def typical(whole: Hierarchy) -> Rows:
    """A hierarchy with one row of each subsampled plate, from which an encoder's numbers are counted."""
    return Rows.of(whole, {plate: torch.zeros(1, dtype=torch.long) for plate in whole.subsampled})


def amortized_blocks(whole: Hierarchy) -> list[int]:
    """The numbers of the blocks that are in subsampled plates."""
    return [number for number, block in enumerate(whole.blocks) if set(block.plates) & set(whole.subsampled)]


def inputs_of(name: str, trace: Any, block: Block) -> list[RowInput]:
    """What is observed in the rows of a block, and what is computed there of data alone.

    :param trace: of the model, with gradients in its latents.
    :raises ValueError: if there is nothing.
    """
    found = []
    for site in trace.nodes.values():
        if not _is_in(site, block) or not site["is_observed"] or site["value"].requires_grad:
            continue
        rows = _rows(site, block)
        if rows.numel():
            found.append(RowInput(site["name"], rows.shape[1] > 1, rows.shape[2]))
    if not any(not is_deterministic(trace.nodes[part.name]) for part in found):
        raise row_checks.nothing_observed(name, block.plates)
    return found


def _is_in(site: Any, block: Block) -> bool:
    if site["type"] != "sample" or not isinstance(site["value"], Tensor):
        return False
    return set(block.plates) <= {frame.name for frame in site["cond_indep_stack"] if frame.vectorized}


def _rows(site: Any, block: Block) -> Tensor:
    """A site's value as ``(num_rows, num_observations, width)``."""
    dims, (value, event_dim) = {frame.name: frame.dim for frame in site["cond_indep_stack"]}, _laid_out(site)
    axes = [value.dim() - event_dim + dims[plate] for plate in block.plates]
    moved = value.movedim(axes, list(range(len(axes))))
    num_rows = moved.shape[: len(axes)].numel()
    return moved.reshape(num_rows, -1, value.shape[value.dim() - event_dim :].numel())


def _laid_out(site: Any) -> tuple[Tensor, int]:
    """A site's value with all its plates, and how many of its dimensions are of one row.

    ``pyro.deterministic`` takes all dimensions for those of one row, unless it is told; the first are those of plates.
    """
    fn, value = site["fn"], site["value"]
    num_plates = len(fn.batch_shape)
    if is_deterministic(site) and fn.event_dim == value.dim() and value.shape[:num_plates] == fn.batch_shape:
        return value, value.dim() - num_plates
    return value.expand(fn.shape()), fn.event_dim


def row_data(
    name: str, trace: Any, block: Block, inputs: list[RowInput]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The data of each row, as sets of observations and as they are.

    :raises ValueError: if a site is not observed in this run.
    """
    sets, raw = dict[str, Tensor](), dict[str, Tensor]()
    for part in inputs:
        site = trace.nodes.get(part.name)
        if site is None or not site["is_observed"]:
            raise row_checks.not_observed(name, part.name)
        sets[part.name] = _rows(site, block)
        dims = {frame.name: frame.dim for frame in site["cond_indep_stack"]}
        value, event_dim = _laid_out(site)
        axes = [value.dim() - event_dim + dims[plate] for plate in block.plates]
        moved = value.movedim(axes, list(range(len(axes))))
        raw[part.name] = moved.reshape(moved.shape[: len(axes)].numel(), *moved.shape[len(axes) :])
    return sets, raw


class Amortizer(nn.Module):
    """The encoders of a guide, one for each block in subsampled plates.

    :param known: for each block, by its number: its inputs, the number of its features and of its rows' numbers.
    :param encoder: of the only block, in the place of the default one.
    """

    def __init__(self, known: Mapping[str, Any], encoder: nn.Module | None = None):
        super().__init__()
        self.known = {number: list(parts) for number, parts in known.items()}
        self.blocks = nn.ModuleDict(
            {n: RowNumbers(inputs, width, size, encoder) for n, (inputs, width, size) in self.known.items()}
        )

    @staticmethod
    def of(name: str, trace: Any, whole: Hierarchy, layer: Rescaled, encoder: nn.Module | None) -> "Amortizer":
        """For the data that are first seen.

        :param name: of the guide's class, for errors.
        :param trace: of a run of the model.
        :param whole: the hierarchy of all rows.
        :param layer: of the typical rows.
        :param encoder: the user's, or None.
        """
        numbers, known, seen = amortized_blocks(whole), dict[str, Any](), {}
        if encoder is not None and len(numbers) > 1:
            raise row_checks.several_encoders(name, len(numbers))
        like = next(layer.parameters())
        for number in numbers:
            inputs = inputs_of(name, trace, whole.blocks[number])
            seen[number] = row_data(name, trace, whole.blocks[number], inputs)
            num_features = RowEncoder(inputs).output_dim if encoder is None else _width(name, encoder, seen[number][1])
            size = sum(slot.size for slot in slots(layer.layer, layer.factors, number, whole.blocks[number].row_dim))
            known[str(number)] = [[list(part) for part in inputs], num_features, size]
        new = Amortizer(known, encoder).to(like)
        for number in numbers:
            cast(RowNumbers, new.blocks[str(number)]).start(seen[number][0])
        return new

    def view(self, name: str, layer: Whitened, factors: Mapping[str, float], rows: Rows, trace: Any) -> Whitened:
        """The layer for the rows of a call, with their numbers.

        :param name: of the guide's class, for errors.
        :param layer: of the typical rows, looked up for as many rows, its parameters in their own units.
        :param factors: how far a step moves each of its parameters (:attr:`~pyro_nflows.layers.Rescaled.factors`).
        :param rows: as many rows like these.
        :param trace: of a run of the model with the rows of the call.
        """
        given: dict[str, Tensor] = dict(layer.named_parameters())
        for number, part in self.parts():
            block = rows.hierarchy.blocks[number]
            numbers = part(*row_data(name, trace, block, part.inputs))
            if len(numbers) != block.num_rows:
                raise row_checks.encoded_rows(name, tuple(numbers.shape), block.num_rows)
            places = slots(layer, factors, number, block.row_dim)
            for slot, own in zip(places, numbers.split([slot.size for slot in places], -1)):
                if slot.name in FLAT:
                    at = block.columns.reshape(-1).to(own.device)
                    given[slot.name] = given[slot.name].index_add(0, at, own.reshape(-1))
                else:
                    own = own.reshape(len(own), *given[slot.name].shape[1:])
                    given[slot.name] = given[slot.name] + slot.factor * own
        return with_parameters(layer, given)

    def parts(self) -> Iterator[tuple[int, RowNumbers]]:
        """The number of each block with its encoder."""
        return ((int(number), cast(RowNumbers, part)) for number, part in self.blocks.items())


class Slot(NamedTuple):
    """Some of the numbers that an encoder gives for a row.

    :param name: of the layer's parameter that they are added to.
    :param size: how many there are.
    :param factor: by which they are multiplied.
    """

    name: str
    size: int
    factor: float


def slots(layer: nn.Module, factors: Mapping[str, float], number: int, row_dim: int) -> list[Slot]:
    """What the numbers of a block's rows are, in the order in which an encoder gives them.

    :param layer: a flow that follows plates.
    :param factors: of its parameters; see :meth:`Amortizer.view`.
    """
    flat = [Slot(name, row_dim, 1.0) for name in FLAT]
    return [*flat, *(Slot(n, torch.Size(at[1:]).numel(), factors[n]) for n, at in tables(layer, number).items())]


def tables(layer: nn.Module, number: int) -> dict[str, torch.Size]:
    """The tables of a block's rows, and their shapes."""
    found = {}
    for prefix, part in layer.named_modules():
        if isinstance(part, Table) and str(number) in part:
            found[f"{prefix}.{number}"] = part[str(number)].shape
    return found


def _width(name: str, encoder: nn.Module, raw: Mapping[str, Tensor]) -> int:
    try:
        with torch.no_grad():
            features = encoder(raw if len(raw) > 1 else next(iter(raw.values())))
    except Exception as error:
        raise row_checks.encoder_fails(name, error, raw) from error
    num_rows = len(next(iter(raw.values())))
    if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != num_rows:
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise row_checks.encoded_rows(name, got, num_rows)
    return features.shape[1]
