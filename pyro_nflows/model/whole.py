r"""The log joint of a model whose plates are subsampled, over all rows of them.

A run of such a model has :math:`B` of the :math:`N` rows of a plate, and counts their log densities :math:`N / B`
times. That is right on average, and good enough for steps of training; but its noise, which grows with :math:`N`,
would be taken for a fault of the guide where draws are weighed. Here the model is run on one chunk :math:`c` of
:math:`B` rows after another,

.. math:: \log p(x, z) = \sum_{s \text{ outside}} \ell_s(z)
    + \sum_{c} \sum_{i \in c} \sum_{s \text{ inside}} \ell_{si}(z),

each row is counted once, and what is outside of the plates once. A plate takes no fewer than its ``subsample_size``
rows, so the last chunk is filled up with rows that count for nothing. Sites within several subsampled plates are
visited at all pairs of chunks of these.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..system.exclusive import validation
from .bound import BoundModel
from .handlers import summed_terms
from .log_joint import LogJoint, Vectorization
from .subsample import Chosen
from .subsampled_plates import Group, Plate, groups_of, plates_of, start_of, subsampled_frames, trace_of
from .transformable import transformable

#: Numbers that an operation on some draws and a chunk of rows works on at once: more would leave the processor's cache.
WIDTH = 2**18
#: How often other rows are tried before a plate's rows are taken to choose none of its data.
NUM_TRIES = 4


class IndivisibleError(ValueError):
    """Why the log joint of a model cannot be had over all rows of its subsampled plates."""


class Visit(NamedTuple):
    """What one run of the model is for.

    :param rows: the rows of each plate.
    :param fresh: which of them count.
    :param counted: which groups of sites count.
    """

    rows: tuple[Tensor, ...]
    fresh: tuple[Tensor, ...]
    counted: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        """All of it in a row."""
        return [*self.rows, *self.fresh, self.counted]


class Terms(NamedTuple):
    """Log densities with the axes that are along plates, counted from the right."""

    value: Tensor
    axes: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class WholeLogJoint:
    """The log joint of a model over all rows of its subsampled plates, at rows of a flat vector of its latents.

    It is in double precision, which sums over many rows need. See :func:`whole`.

    :param joint: the log joint of one run.
    :param plates: the subsampled plates.
    :param groups: the groups that the model has sites in.
    """

    joint: LogJoint
    plates: Mapping[str, Plate]
    groups: tuple[Group, ...]

    def __call__(self, z: Tensor) -> Tensor:
        """``z (num_particles, latent_dim)`` to ``(num_particles,)``."""
        return total(self, z, self.visit)

    @property
    def num_rows(self) -> int:
        """How many rows are looked at for one value, filled ones included."""
        return sum(
            math.prod(self.plates[name].num_chunks * self.plates[name].taken for name in group)
            for group in self._largest
        )

    @property
    def num_visits(self) -> int:
        """How many runs of the model one value takes."""
        return sum(math.prod(self.plates[name].num_chunks for name in group) for group in self._largest)

    @property
    def num_draws(self) -> int:
        """How many rows of ``z`` are best evaluated at once."""
        return max(16, min(2048, WIDTH * self.num_visits // self.num_rows))

    @property
    def _largest(self) -> list[Group]:
        """The groups that are in no other: their chunks, together, are all that is visited."""
        return [group for group in self.groups if group and not any(group < other for other in self.groups)]

    def visits(self) -> Iterator[Visit]:
        """The runs of the model whose values add up to the log joint."""
        taken = set[Group]()
        for largest in self._largest:
            mine = [group for group in self.groups if group <= largest and group not in taken]
            taken.update(mine)
            names = sorted(largest)
            for numbers in itertools.product(*(range(self.plates[name].num_chunks) for name in names)):
                at = dict(zip(names, numbers))
                chunks = [plate.chunk(at.get(name, 0)) for name, plate in self.plates.items()]
                counted = [g in mine and all(at[name] == 0 for name in largest - g) for g in self.groups]
                rows, fresh = zip(*chunks)
                yield Visit(tuple(rows), tuple(fresh), torch.tensor(counted))

    def visit(self, z: Tensor, *tensors: Tensor) -> Tensor:
        """What one visit adds to the log joint: a pure function.

        :param z: ``(num_particles, latent_dim)``.
        :param tensors: those of the visit.
        :return: ``(num_particles,)``.
        """
        num = len(self.plates)
        given = Visit(tensors[:num], tensors[num:-1], tensors[-1])

        def single(row: Tensor) -> Tensor:
            return self._counted(self.terms(row, given.rows), given)

        if self.joint.how is Vectorization.VMAP:
            with validation(False):
                return torch.vmap(single, randomness="same")(z)
        return torch.stack([single(row) for row in z])

    @transformable()
    def terms(self, z: Tensor, rows: Sequence[Tensor]) -> dict[Group, list[Terms]]:
        """Log densities of one run at one flat latent, each row's counted once, by the plates that they are in."""
        joint = self.on(rows)
        trace, _, placed = joint.at(z, joint.latents.filled)
        found: dict[Group, list[Terms]] = {group: [] for group in self.groups}
        for name, log_det in placed.log_dets.items():
            axes = self._axes(trace.nodes[name]["cond_indep_stack"])
            found[frozenset(axes)].append(Terms(log_det, axes))
        for part in _enumerated(trace, self.plates) if joint.enumerates else self._simple(trace):
            times = math.prod(self.plates[name].size / self.plates[name].taken for name in part.axes)
            found[frozenset(part.axes)].append(part._replace(value=part.value / times))
        return found

    def on(self, rows: Sequence[Tensor]) -> LogJoint:
        """The log joint of a run with given rows, one tensor a plate."""
        bound, owner = self.joint.bound, self.joint.latents.owner
        chosen = Chosen(owner, dict(zip(self.plates, rows)))
        return self.joint.on(BoundModel(chosen(bound.model), bound.args, bound.kwargs))

    def _simple(self, trace: Any) -> Iterator[Terms]:
        for site in trace.nodes.values():
            if site["type"] == "sample":
                yield Terms(site["log_prob"], self._axes(site["cond_indep_stack"]))

    def _axes(self, frames: Sequence[Any]) -> dict[str, int]:
        return {frame.name: frame.dim for frame in frames if frame.name in self.plates}

    def _counted(self, terms: Mapping[Group, Sequence[Terms]], given: Visit) -> Tensor:
        """The sum of what is counted in a visit; a row that is not may even be impossible."""
        fresh, sums = dict(zip(self.plates, given.fresh)), []
        for counted, group in zip(given.counted, self.groups):
            for value, axes in terms[group]:
                for name, axis in axes.items():
                    value = value.where(along(fresh[name], axis), 0.0)
                sums.append(value.sum().where(counted, 0.0))
        return torch.stack([part.to(torch.promote_types(part.dtype, torch.float32)) for part in sums]).sum()


def total(log_joint: WholeLogJoint, z: Tensor, visit: Any) -> Tensor:
    """The sum over all visits, for some rows of ``z`` after others.

    :param log_joint: whose visits they are.
    :param z: ``(num_particles, latent_dim)``.
    :param visit: its :meth:`~WholeLogJoint.visit`, or a recording of that.
    """
    visits, sums = [visit.tensors for visit in log_joint.visits()], []
    for rows in z.split(log_joint.num_draws):
        value = rows.new_zeros(len(rows), dtype=torch.float64)
        for tensors in visits:
            value = value + visit(rows, *(tensor.to(z.device) for tensor in tensors))
        sums.append(value)
    return torch.cat(sums)


def along(values: Tensor, axis: int) -> Tensor:
    """A vector in a shape that has it along an axis, counted from the right."""
    return values.reshape(-1, *(1,) * (-1 - axis))


def _enumerated(trace: Any, plates: Mapping[str, Plate]) -> Iterator[Terms]:
    """Of a trace whose enumerated sites are summed out."""
    symbols = {trace.plate_to_symbol[name]: name for name in plates if name in trace.plate_to_symbol}
    for ordinal, term in summed_terms(trace):
        dims, value, axes = term._pyro_dims, term, dict[str, int]()  # type: ignore[attr-defined]
        for symbol in sorted(symbols.keys() & ordinal):
            if symbol not in dims:  # of one row: Pyro has dropped its axis
                value, dims = value[None], symbol + dims
        for symbol in symbols.keys() & ordinal:
            axes[symbols[symbol]] = dims.index(symbol) - len(dims)
        yield Terms(value, axes)


@torch.no_grad()
def whole(joint: LogJoint) -> WholeLogJoint | None:
    """The log joint over all rows of a model's subsampled plates; None where none is subsampled.

    :param joint: the log joint of the model as it is.
    :raises IndivisibleError: if there is none: the rows are given to the model by its arguments, or are not what
        chooses the data, or something that is outside of a plate depends on its rows.
    """
    trace = trace_of(joint)
    plates, groups = plates_of(trace), groups_of(trace)
    if not plates:
        return None
    loops = {frame.name for frame in subsampled_frames(trace) if not frame.vectorized}
    for name in sorted(loops):
        raise IndivisibleError(f"plate '{name}' is a loop over its rows")
    if (joint.how or joint.prepare()) is Vectorization.PLATE:
        raise IndivisibleError("the model cannot be vectorised by torch.vmap")
    found = WholeLogJoint(joint, plates, groups)
    try:
        with validation(False):
            _check(found, start_of(joint))
    except IndivisibleError:
        raise
    except ValueError as error:  # of Chosen: the rows are given
        raise IndivisibleError(str(error).split(": ", 1)[-1]) from error
    return found


def _check(found: WholeLogJoint, z: Tensor) -> None:
    """Whether rows change what is within their plate, and nothing else.

    :raises IndivisibleError: if not.
    """
    base = [plate.chunk(0)[0] for plate in found.plates.values()]
    at_base = found.terms(z, base)
    for group, parts in at_base.items():
        for value, axes in parts:
            if any(value.dim() < -axis or value.shape[axis] != found.plates[n].taken for n, axis in axes.items()):
                raise IndivisibleError(f"a site in plate {_listed(group)} has no log density of its own for each row")
    for index, (name, plate) in enumerate(found.plates.items()):
        changed = False
        for _ in range(NUM_TRIES):
            rows = list(base)
            rows[index] = torch.randint(plate.size, (plate.taken,))
            for group, parts in found.terms(z, rows).items():
                same = all(torch.equal(a.value, b.value) for a, b in zip(parts, at_base[group]))
                changed |= name in group and not same
                if name not in group and not _near(parts, at_base[group]):
                    raise IndivisibleError(f"a site outside of plate '{name}' depends on the rows that it has")
        if not changed:
            raise IndivisibleError(
                f"the rows of plate '{name}' do not choose its data; index the data of all rows by them"
            )


def _near(parts: Sequence[Terms], others: Sequence[Terms]) -> bool:
    return all(torch.allclose(a.value, b.value, 1e-4, 1e-4, equal_nan=True) for a, b in zip(parts, others))


def _listed(group: Group) -> str:
    return " and ".join(f"'{name}'" for name in sorted(group))
