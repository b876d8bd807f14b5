r"""The log joint of a model whose latents are in several plates, of which a run of the model has some rows.

Rows of plates that cross, such as users and items, share data: an observation belongs to a row of each. So it has no
part for each row of one plate, but one for each observation and each latent,

.. math:: \log p(x, z) = \sum_k \ell_k(z),

and :mod:`~pyro_nflows.model.row_owners` finds which rows each :math:`\ell_k` reads. All of them are seen by running the
model on one chunk of rows of the subsampled plates after another.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from ..checks import first_line
from ..system.exclusive import validation
from ..system.randomness import forked
from .all_rows import on_rows
from .bound import BoundModel
from .hierarchy import Hierarchy
from .latents import Latents
from .log_joint import LogJoint
from .row_owners import SeveralRowsError
from .row_reads import RowReads
from .rows import Rows
from .subsample import Chosen, look
from .subsampled_plates import groups_of, plates_of, subsampled_frames
from .transformable import transformable
from .whole import Visit, WholeLogJoint, along


class Chunk(NamedTuple):
    """One run of the model: its visit, and the rows that it has of the plates of latents."""

    visit: Visit
    rows: Rows


class CrossedTerms:
    r"""The log joint of a model on chosen rows of its subsampled plates, and its terms over all rows.

    :param bound: the model with its arguments.
    :param latents: of all rows.
    :param whole: their hierarchy.
    :raises ValueError: if rows of a plate are given by the model's arguments, or are a loop; if discrete latents are
        enumerated; or if no plate is subsampled.
    """

    def __init__(self, bound: BoundModel, latents: Latents, whole: Hierarchy):
        self.owner, self.whole = latents.owner, whole
        trace = look(bound, {name: at.site for name, at in latents.sites.items()})
        self.plates = plates_of(trace)
        self._check(trace)
        #: The subsampled plates that latents are in; the others are of data alone.
        self.own = [name for name in whole.subsampled if name in self.plates]
        self._chosen = Chosen(latents.owner, {name: plate.chunk(0)[0] for name, plate in self.plates.items()})
        first = {name: self.plates[name].chunk(0)[0] for name in self.own}
        here = on_rows(latents, first) if first else latents
        self.joint = LogJoint(BoundModel(self._chosen(bound.model), bound.args, bound.kwargs), here)
        with poutine.block(), forked():
            self.joint.look()
        if self.joint.enumerates:
            raise ValueError(f"{self.owner}: VI takes no minibatches of enumerated sites; train it by SVI")
        self.hierarchy = self.rows_of(first).hierarchy
        self._whole = WholeLogJoint(self.joint.on(bound), self.plates, groups_of(trace))
        self._reads: RowReads | SeveralRowsError | None = None

    def _check(self, trace: Any) -> None:
        for name in self.plates:
            if trace.nodes[name]["fn"].subsample_size is None:
                raise ValueError(
                    f"{self.owner}: the model gives plate '{name}' its rows by subsample=, so that VI cannot choose "
                    "them; use subsample_size= with all the data as arguments, or train it by SVI"
                )
        for frame in subsampled_frames(trace):
            if not frame.vectorized:
                raise ValueError(
                    f"{self.owner}: plate '{frame.name}' is subsampled, and a loop over its rows; write it as "
                    "`with pyro.plate`, or train it by SVI"
                )

    # ---- steps of training ------------------------------------------------------------------------------------

    def rows_of(self, chosen: dict[str, Tensor]) -> Rows:
        """Chosen rows of the plates of latents."""
        return Rows.of(self.whole, {name: chosen[name] for name in self.own})

    def choose(self, rows: Tensor) -> None:
        """Take other rows from now on: those of each subsampled plate, one after the other."""
        self._chosen.rows = self.split(rows)

    def choose_first(self) -> None:
        """Take the first rows of each."""
        self._chosen.rows = {name: plate.chunk(0)[0] for name, plate in self.plates.items()}

    def split(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows of all subsampled plates by plate."""
        return dict(zip(self.plates, rows.split([plate.taken for plate in self.plates.values()])))

    @property
    def factor(self) -> float:
        """How many minibatches all rows of the plate that needs most are."""
        return max(plate.size / plate.taken for plate in self.plates.values())

    @property
    def weights(self) -> float | list[float]:
        """How many rows each of a minibatch stands for: in each block, or in all of them if these are as many."""
        found = [self._factor(block.plates) for block in self.whole.blocks]
        return found[0] if len(set(found)) == 1 else found

    def _factor(self, plates: Sequence[str]) -> float:
        return math.prod(self.plates[name].size / self.plates[name].taken for name in plates if name in self.own)

    @property
    def num_rows(self) -> int:
        """Rows of the largest plate."""
        return max(plate.size for plate in self.plates.values())

    def leaves(self) -> list[Tensor]:
        """The model's own trainable tensors: unconstrained ``pyro.param`` values and module parameters."""
        return self.joint.leaves(self.joint.latents.init_loc())

    def log_joint(self, z: Tensor) -> Tensor:
        """Latents of the chosen rows ``(K, dim)`` to ``(K,)``, each row as often as it counts."""
        return self._mapped(self._single, z)

    def _mapped(self, single: Any, z: Tensor) -> Tensor:
        with validation(False):
            try:
                return torch.vmap(single, randomness="same")(z)
            except RuntimeError as error:
                raise ValueError(
                    f"{self.owner}: VI takes minibatches of models that torch.vmap can run, but {first_line(error)}"
                ) from error

    @transformable()
    def _single(self, z: Tensor) -> Tensor:
        trace, log_p, placed = self.joint.at(z, self.joint.latents.filled)
        for name, log_det in placed.log_dets.items():
            plates = [frame.name for frame in trace.nodes[name]["cond_indep_stack"]]
            log_p = log_p + self._factor(plates) * log_det.sum()
        return log_p.to(z.dtype)

    # ---- terms over all rows ----------------------------------------------------------------------------------

    @functools.cached_property
    def chunks(self) -> list[Chunk]:
        """Runs of the model that have each term once between them."""
        return list(self._chunks())

    def _chunks(self) -> Iterator[Chunk]:
        every = None if self.own else self.rows_of({})
        for visit in self._whole.visits():
            yield Chunk(visit, every or self.rows_of(dict(zip(self.plates, visit.rows))))

    def reads_at(self, z: Tensor) -> RowReads:
        """Which rows the terms read; found once, with random numbers aside.

        :param z: a typical point, a flat latent of all rows.
        :raises SeveralRowsError: if a term reads too many rows of a block.
        """
        if self._reads is None:
            runs = (
                (functools.partial(self._of_run, visit), z[rows.columns], rows.hierarchy, rows.numbers)
                for visit, rows in self.chunks
            )
            try:
                with forked():
                    self._reads = RowReads(runs, self.whole)
            except SeveralRowsError as error:
                self._reads = error
        if isinstance(self._reads, SeveralRowsError):
            raise self._reads
        return self._reads

    def _of_run(self, visit: Visit, z: Tensor) -> Tensor:
        return self.of_one(z, *visit.tensors)

    @property
    def num_terms(self) -> int:
        """About how many terms there are."""
        return self._whole.num_rows + self.whole.dim

    def at(self, z: Tensor, *tensors: Tensor) -> Tensor:
        """The terms that a run has, ``(K, terms)``, those that count in another run as zero: a pure function.

        :param z: latents of its rows, ``(K, dim)``.
        :param tensors: of its visit.
        """
        return self._mapped(lambda row: self.of_one(row, *tensors), z)

    @transformable()
    def of_one(self, z: Tensor, *tensors: Tensor) -> Tensor:
        """The same of one flat latent, ``(dim,)`` to ``(terms,)``."""
        num = len(self.plates)
        visit = Visit(tensors[:num], tensors[num:-1], tensors[-1])
        fresh = dict(zip(self.plates, visit.fresh))
        joint = self._whole.on(visit.rows)
        with validation(False):
            trace, _, placed = joint.at(z, self.joint.latents.filled)
        found = list[Tensor]()
        for name, site in trace.nodes.items():
            if site["type"] != "sample":
                continue
            axes = {frame.name: frame.dim for frame in site["cond_indep_stack"] if frame.name in self.plates}
            value = site["log_prob"]
            self._check_axes(name, value, axes)
            value = value / math.prod(self.plates[plate].size / self.plates[plate].taken for plate in axes)
            if name in placed.log_dets:
                value = value + _in_batch(placed.log_dets[name], len(site["fn"].batch_shape))
            for plate, axis in axes.items():
                value = value.where(along(fresh[plate], axis), 0.0)
            found.append(value.where(visit.counted[self._whole.groups.index(frozenset(axes))], 0.0).reshape(-1))
        return torch.cat([value.to(z.dtype) for value in found])

    def _check_axes(self, name: str, value: Tensor, axes: dict[str, int]) -> None:
        for plate, axis in axes.items():
            if value.dim() < -axis or value.shape[axis] != self.plates[plate].taken:
                raise ValueError(
                    f"{self.owner}: site '{name}' has no log density of its own for each row of plate '{plate}', so "
                    "that it cannot be summed over all rows; make its parameters those of each row"
                )


def _in_batch(log_det: Tensor, num: int) -> Tensor:
    """Log-determinants in the shape of a site's batch."""
    return log_det.reshape(*log_det.shape[:num], -1).sum(-1) if log_det.dim() > num else log_det
