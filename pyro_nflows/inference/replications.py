"""Data sets that a model simulates, and the fit of each: side by side, on one recording of the model."""

import contextlib
import functools
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..engine import EngineWarning, Trainer
from ..guides import AutoFlow, checks
from ..layers.base import Layer
from ..model.bound import BoundModel
from ..model.feasible import check_start
from ..model.log_joint import LogJoint, Vectorization
from ..model.simulation import Values, at_data, check_simulable, simulate
from ..numerics import LogDensity
from ..system.cores import num_cores
from ..system.exclusive import seeded, validation
from .fit import drive, fit_modes, start
from .fitted import Fit
from .plan import Plan
from .rounds import Fitting
from .search import search

#: Fits under way at a time: enough for every core, and few enough for their memory.
MIN_WIDTH, MAX_WIDTH = 8, 32


class Replication:
    """One simulated data set.

    :param log_joint: the model at it, ``(K, D) -> (K,)``.
    :param tensors: its data, as :class:`~pyro_nflows.engine.Trainer` takes them.
    :param loc: a point of finite density.
    :param truth: the flat unconstrained parameters that it was simulated from.
    """

    def __init__(self, log_joint: LogDensity, tensors: list[Tensor], loc: Tensor, truth: Tensor):
        self.log_joint, self.tensors, self.loc, self.truth = log_joint, tensors, loc, truth


class Simulated(NamedTuple):
    """What the model simulated: data by site, the flat unconstrained parameters of these, and the seed of their fit."""

    data: Values
    truth: Tensor
    seed: int


class Refits:
    """Fits of a guide to one data set after another, on one recording of the model.

    :param guide: set up, and fresh; a copy of its layer is fitted to each.
    :param num: how many fits are to come.
    :param args: the model's arguments, with ``kwargs``.
    """

    def __init__(self, guide: AutoFlow, num: int, args: tuple[Any, ...], kwargs: dict[str, Any]):
        self.guide, self.num, self.args, self.kwargs = guide, num, args, kwargs
        self.bound, self.how = BoundModel(at_data(guide.bare_model)), cast(Vectorization | None, None)
        self.gathers = False
        self.failed: dict[int, str] = {}
        self.shared: Trainer | None = None
        self._told = False
        self._open: dict[Fitting, tuple[int, Replication]] = {}

    def of(self, one: Simulated) -> Replication:
        """A simulated data set with the model at it.

        :raises ValueError: if the model cannot be started there.
        """
        joint = LogJoint(self.bound.with_call((one.data, *self.args), self.kwargs), self.guide.latents)
        with seeded(one.seed):  # what it takes to find a start does not depend on the other data sets
            loc = check_start(joint)
        if self.how is None:
            self.how = joint.prepare()
            self.gathers = joint.at_once is not None
        elif self.gathers:
            joint.gather(loc)
        joint.how = self.how
        return Replication(joint, [*one.data.values()], loc, one.truth)

    def fits_of(
        self, plan: Plan, simulated: Iterable[tuple[int, Simulated]]
    ) -> Iterator[tuple[int, Replication, Trainer, Fit]]:
        """Each data set with its number and its fit, as it is done.

        Those that could not be started are noted in ``failed``.

        :param simulated: data sets with their numbers.
        """
        width = min(max(MIN_WIDTH, num_cores()), MAX_WIDTH)
        for fitting in drive(self._starts(plan, simulated), width=width):
            index, replication = self._open.pop(fitting)
            trainer, fit = fitting.trainer, cast(Fit, fitting.fit)
            if plan.search and not (trainer.history.interrupted or fit.failed):
                fit = self._searched(plan, trainer, fit)
            if not self._shared(trainer):
                trainer.close()
            yield index, replication, trainer, fit

    def _searched(self, plan: Plan, trainer: Trainer, fit: Fit) -> Fit:
        refit = functools.partial(fit_modes, trainer, self.guide, plan)
        with trainer.stream or contextlib.nullcontext():
            return search(trainer, self.guide, fit, False, refit).fit

    def close(self) -> None:
        """Wait no more for compilers that are still at work, and let go of what was recorded."""
        if self.shared is not None:
            self.shared.close()
        self.shared = None
        self._open.clear()

    def _starts(self, plan: Plan, simulated: Iterable[tuple[int, Simulated]]) -> Iterator[Fitting]:
        plan.objective.check_layer(cast(Layer, self.guide.layer))
        for index, found in simulated:
            try:
                one = self.of(found)
            except ValueError as error:
                self.failed[index] = str(error)
                continue
            if self.shared is None:
                self.shared = Trainer(one.log_joint, (), plan.engine, False, one.tensors, self.num)
            trainer = self.shared.at(one.log_joint, one.tensors, one.loc, found.seed)
            if not self._shared(trainer):
                self._tell()
            fitting = start(trainer, self.guide, plan, one.loc)
            self._open[fitting] = index, one
            yield fitting

    def _shared(self, trainer: Trainer) -> bool:
        return self.shared is not None and trainer.shares(self.shared)

    def _tell(self) -> None:
        if not self._told:
            warnings.warn(
                "a recording of the model at one data set does not reproduce it at another, so each is recorded by "
                "itself: results are right, but slower; Python branches on data, and .item(), are the usual cause",
                EngineWarning,
                stacklevel=2,
            )
        self._told = True


class Replications(Refits):
    """Simulated data sets and their fits.

    :param guide: a flow guide; a fresh one of its kind is fitted to each.
    :param num: how many.
    :param args: the model's arguments, with ``kwargs``.
    :raises ValueError: if parameters and data cannot be drawn from the model (the site is named).
    """

    def __init__(self, guide: AutoFlow, num: int, args: tuple[Any, ...], kwargs: dict[str, Any]):
        if guide.needs_model:
            checks.refuse_replication(type(guide).__name__)
        super().__init__(guide.fresh(args, kwargs), num, args, kwargs)
        if self.guide.subsamples:
            raise ValueError(
                "SBC: the model has latents in a subsampled plate, so a run of it simulates some rows only; make it "
                "for SBC with fewer rows and without subsample_size"
            )
        model, loc, latents = self.guide.bare_model, self.guide.init_loc(), self.guide.latents
        with validation(False):  # the data given need not be possible ones
            trace = LogJoint(BoundModel(model, args, kwargs), latents).run(loc)
        check_simulable(trace, latents.names)
        self.latents, self.data = simulate(model, args, kwargs, num, loc)
        self.truth = flat(self.guide, self.latents)
        self.seeds = torch.randint(2**62, (num,)).tolist()

    def simulated(self) -> Iterator[tuple[int, Simulated]]:
        """Each data set, with its number."""
        for index, seed in enumerate(self.seeds):
            data = {name: values[index] for name, values in self.data.items()}
            yield index, Simulated(data, self.truth[index], seed)

    def fits(self, plan: Plan) -> Iterator[tuple[int, Replication, Trainer, Fit]]:
        """See :meth:`fits_of`: of all of them."""
        return self.fits_of(plan, self.simulated())


def flat(guide: AutoFlow, latents: Values) -> Tensor:
    """Values of the sites ``(num, *site shape)`` as flat unconstrained rows.

    :raises ValueError: if one lies on the edge of its support.
    """
    z, _ = guide.unconstrain(latents)
    for name, part in guide.latents.unpack(z).items():
        bad = ~part.reshape(len(part), -1).isfinite().all(1)
        if bool(bad.any()):
            raise ValueError(
                f"SBC: site '{name}' was simulated on the very edge of its support in {int(bad.sum())} of {len(bad)} "
                "simulations, where no density can follow it. Use float64, or a prior with less mass at the edge"
            )
    return z
