"""The log joint of a model with a subsampled plate, on chosen rows: what belongs to each row, and the rest."""

from typing import Any

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
from .subsample import Chosen, look
from .subsampled_plates import groups_of, plates_of, subsampled_frames
from .transformable import transformable
from .whole import Visit, WholeLogJoint, along


class RowTerms:
    r"""The log joint of a model whose latents are outside of plates, or in one subsampled plate, on chosen rows of it.

    .. math:: \log p(g) + \frac{N}{B} \sum_{i \in \mathrm{rows}} \log p(z_i, y_i | g)

    Its two parts are given apart, and without the factor, which is the model's own. Plates within rows are summed up.
    Other subsampled plates, within the rows or beside them, have no latents: they are gone through chunk after chunk,
    but for steps of training (:meth:`log_joint`), which take a minibatch of them too.

    :param bound: the model with its arguments.
    :param latents: of all rows.
    :raises ValueError: if the latents are in no subsampled plate or in several, if the model's rows are given by its
        arguments, or if discrete latents are enumerated.
    """

    def __init__(self, bound: BoundModel, latents: Latents):
        plates = {plate for latent in latents.sites.values() for plate in latent.subsampled}
        if len(plates) != 1:
            raise ValueError(
                f"{latents.owner}: VI takes minibatches of one subsampled plate whose rows have latents, but there are "
                f"latents in {sorted(plates)}; train it by SVI, or subsample one of them only"
            )
        (self.plate,) = plates
        frames = [f for at in latents.sites.values() for f in at.plates if f.name == self.plate]
        self.num_rows, self.dim, self.owner = int(frames[0].full_size), int(frames[0].dim), latents.owner
        trace = look(bound, {name: at.site for name, at in latents.sites.items()})
        site = trace.nodes[self.plate]
        if site["fn"].subsample_size is None:
            raise ValueError(
                f"{latents.owner}: the model gives plate '{self.plate}' its rows by subsample=, so that VI cannot "
                "choose them; use subsample_size= with all the data as arguments, or train it by SVI"
            )
        self.size, self._chosen = int(site["fn"].subsample_size), Chosen(latents.owner, {})
        self.others = {name: plate for name, plate in plates_of(trace).items() if self._is_drawn(trace, name)}
        self._chosen.rows = {name: plate.chunk(0)[0] for name, plate in self.others.items()}
        self.choose(torch.arange(self.size))
        first = {self.plate: torch.arange(self.size)}
        self.joint = LogJoint(BoundModel(self._chosen(bound.model), bound.args, bound.kwargs), on_rows(latents, first))
        with poutine.block(), forked():
            self.joint.look()
        if self.joint.enumerates:
            raise ValueError(f"{latents.owner}: VI takes no minibatches of enumerated sites; train it by SVI")
        self.hierarchy = Hierarchy.of(self.joint.latents)
        self._whole = WholeLogJoint(self.joint, self.others, groups_of(trace, self.others))

    def _is_drawn(self, trace: Any, name: str) -> bool:
        """Whether a plate is another one that the model draws rows of, rather than is given them.

        :raises ValueError: if it is a loop over them.
        """
        if any(frame.name == name and not frame.vectorized for frame in subsampled_frames(trace)):
            raise ValueError(
                f"{self.owner}: plate '{name}' is subsampled, and a loop over its rows; write it as `with pyro.plate`, "
                "or train it by SVI"
            )
        return name != self.plate and trace.nodes[name]["fn"].subsample_size is not None

    def choose(self, rows: Tensor) -> None:
        """Take other rows from now on: their numbers, ``(size,)``; behind them, those of other subsampled plates."""
        sizes = [self.size, *(plate.taken for plate in self.others.values())]
        own, *rest = rows.split(sizes if len(rows) > self.size else self.size)
        self._chosen.rows = {**self._chosen.rows, self.plate: own, **dict(zip(self.others, rest))}

    def choose_first(self) -> None:
        """Take the first rows."""
        self.choose(torch.arange(self.size))

    def with_others(self, rows: Tensor) -> Tensor:
        """Rows, and behind them a minibatch of each other subsampled plate: for :meth:`choose`."""
        drawn = [torch.randperm(plate.size)[: plate.taken] for plate in self.others.values()]
        return torch.cat([rows, *drawn])

    @property
    def factor(self) -> float:
        """How many rows each of a minibatch stands for."""
        return self.num_rows / self.size

    @property
    def weights(self) -> float:
        """The same, for :class:`~pyro_nflows.flows.upweighted.Upweighted`."""
        return self.factor

    @property
    def num_runs(self) -> int:
        """How many runs of the model a call takes: one, but for other subsampled plates."""
        return max(1, self._whole.num_visits)

    def leaves(self) -> list[Tensor]:
        """The model's own trainable tensors: unconstrained ``pyro.param`` values and module parameters."""
        return self.joint.leaves(self.joint.latents.init_loc())

    def log_joint(self, z: Tensor) -> Tensor:
        """Latents of the chosen rows ``(K, dim)`` to ``(K,)``, with the factor, by a minibatch of other plates."""
        outside, rows = self.here(z)
        return outside + self.factor * rows.sum(-1)

    def here(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """As a call, but by the chosen rows of other subsampled plates, as often as these count."""
        return self._mapped(z, None)

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latents ``(K, dim)`` of the chosen rows to what is outside ``(K,)`` and to the rows' own parts ``(K, size)``.

        :raises ValueError: if the model cannot be run by ``torch.vmap``.
        """
        if not self.others:
            return self.here(z)
        before, found = dict(self._chosen.rows), list[tuple[Tensor, Tensor]]()
        for visit in self._whole.visits():
            self._chosen.rows = {**before, **dict(zip(self.others, visit.rows))}
            found.append(self._mapped(z, visit))
        self._chosen.rows = before
        outside, rows = zip(*found)
        return torch.stack(outside).sum(0), torch.stack(rows).sum(0)

    def _mapped(self, z: Tensor, visit: Visit | None) -> tuple[Tensor, Tensor]:
        with validation(False):
            try:
                return torch.vmap(lambda row: self._single(row, visit), randomness="same")(z)
            except RuntimeError as error:
                raise ValueError(
                    f"{self.owner}: VI takes minibatches of models that torch.vmap can run, but {first_line(error)}"
                ) from error

    @transformable()
    def _single(self, z: Tensor, visit: Visit | None) -> tuple[Tensor, Tensor]:
        trace, _, placed = self.joint.at(z, self.joint.latents.filled)
        outside, rows = z.new_zeros(()), z.new_zeros(self.size)
        for name, site in trace.nodes.items():
            if site["type"] != "sample":
                continue
            log_prob = site["log_prob"] if visit is None else self._counted(site, visit)
            if name in placed.log_dets:
                log_det = placed.log_dets[name]
                num = log_det.dim() - len(site["fn"].batch_shape)
                log_det = log_det.reshape(*log_det.shape[: log_det.dim() - num], -1).sum(-1) if num else log_det
                frames = [frame for frame in site["cond_indep_stack"] if frame.name == self.plate]
                log_det = log_det * (self.factor if frames else 1.0)
                log_prob = log_prob + (log_det if visit is None else log_det.where(visit.counted[0], 0.0))
            if any(frame.name == self.plate for frame in site["cond_indep_stack"]):
                log_prob = log_prob.movedim(self.dim, 0) if log_prob.dim() else log_prob
                rows = rows + log_prob.reshape(self.size, -1).sum(-1) / self.factor
            else:
                outside = outside + log_prob.sum()
        return outside.to(z.dtype), rows.to(z.dtype)

    def _counted(self, site: Any, visit: Visit) -> Tensor:
        """What a visit adds: each row of other subsampled plates once, and each site in one visit of its chunks."""
        axes = {frame.name: frame.dim for frame in site["cond_indep_stack"] if frame.name in self.others}
        value, fresh = site["log_prob"], dict(zip(self.others, visit.fresh))
        for name, axis in axes.items():
            value = value.where(along(fresh[name], axis), 0.0) * (self.others[name].taken / self.others[name].size)
        return value.where(visit.counted[self._whole.groups.index(frozenset(axes))], 0.0)
