r"""``SBC``: is what a model and its guide say about parameters right, over data that the model itself simulates?

Parameters are drawn from the prior and data from the model at them, many times; each data set is fitted, and the
parameters' ranks among the draws of its fit are tested (:mod:`~pyro_nflows.diagnostics.ranks`). All fits share one
recording of the model and one compiled step, and go side by side.
"""

import contextlib
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any

import torch
from torch import Tensor

from ..checks import check_flags, check_sizes
from ..diagnostics.ranks import rank
from ..diagnostics.resampling import chosen
from ..diagnostics.table import scalar_names
from ..diagnostics.verdict import Evidence, judge
from ..diagnostics.worth import effective, is_hopeless, tail_index
from ..engine import Engine, Progress, Round
from ..guides import AutoFlow
from ..model.arguments import ready as arguments
from ..system.exclusive import exclusive, seeded
from ..system.ranks import Ranks, ranks_here
from .calibrated import Calibrated, Checked
from .elbo import ELBO
from .fitted import Fit
from .plan import Plan, check_guide
from .replicated import checked_by, forget
from .replications import Replication, Replications
from .schedule import Schedule
from .together import agree, followed, leading
from .workers import check_executor

#: Fewer steps and particles than :class:`~pyro_nflows.VI` takes by itself: there are many fits.
QUICK = Schedule(
    end=Round(200, 32, 5e-2),
    rounds=(Round(400, 32, 5e-3), Round(800, 32, 3e-3), Round(1600, 32, 2e-3, covering=True)),
    num_samples=1000,
    max_ends=1,
    good_ess=0.9,
    light_tails=False,
)
#: The name of the log joint density among the parameters.
LOG_JOINT = "log_joint"


class SBC(Calibrated):
    r"""Simulation-based calibration of a model and a guide.

    ``SBC(AutoFlow(model)).run(data)`` stands beside ``VI(AutoFlow(model)).run(data)``, takes the same arguments, and
    uses of the data only their shapes: it draws parameters and data from the model, fits each data set, and ranks
    each parameter, and the log joint density, among the draws of its fit. With exact posteriors, ranks are uniform.
    See :mod:`pyro_nflows.diagnostics.ranks` for the tests.

    Not detecting a problem does not prove there is none: 200 simulations mostly see a bias of a third of a standard
    deviation, or a width wrong by a third, and not one of a tenth. And what is checked is the posterior on average
    over the prior, not the one given your data: that is for the verdict of ``VI``.

    :param guide: a flow guide such as ``AutoFlow(model)``; it is left alone, and fits start afresh.
    :param num_simulations: data sets; fewer than 20 can show nothing but gross faults, and the verdict says so.
    :param num_samples: draws :math:`L` among which a parameter is ranked; one less than a round number
        suits histograms.
    :param resample: whether ranks are among draws resampled by their importance weights; by default where the fit's
        k-hat allows it, as in ``VI.get_samples``. VSBC is always about the guide itself.
    :param objective: as for ``VI``.
    :param schedule: of each fit; ``Schedule()`` is that of ``VI``. By default
        :data:`~pyro_nflows.inference.sbc.QUICK`: fewer steps and particles.
    :param executor: fits the data sets in other processes: a ``ProcessPoolExecutor``, or another library's that has its
        interface (:ref:`several-processes`). Each worker computes on one core. By default all is done in this process.
    :param search: whether to look for modes that a fit misses, and to fit again where there are, as ``VI`` does: it
        takes seconds a fit.
    :param seed: makes the run reproducible.
    :param engine: as for ``VI``.
    :param progress_bar: whether to show how many fits are done.
    :raises TypeError: if ``guide`` is not a flow guide, or an argument has the wrong type.
    :raises ValueError: if an argument has a value out of range.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        ...
        >>> check = SBC(AutoFlow(model), num_simulations=20, num_samples=9, seed=0, progress_bar=False)
        >>> check.run(torch.tensor(0.0)).verdict().outcome.name
        'CALIBRATED'
        >>> check.ranks["z"].shape
        torch.Size([20])
    """

    def __init__(
        self,
        guide: AutoFlow,
        *,
        num_simulations: int = 200,
        num_samples: int = 99,
        resample: bool | None = None,
        objective: ELBO | None = None,
        schedule: Schedule | None = None,
        search: bool = False,
        executor: Executor | None = None,
        seed: int | None = None,
        engine: Engine | str | None = None,
        progress_bar: bool = True,
    ):
        check_guide(guide, "SBC")
        schedule = QUICK if schedule is None else schedule
        if not isinstance(schedule, Schedule):
            raise TypeError(
                f"SBC: schedule must be a pyro_nflows.inference.schedule.Schedule, got {type(schedule).__name__}"
            )
        self.plan = Plan.asked(
            "SBC",
            objective=objective,
            engine=engine,
            seed=seed,
            schedule=schedule,
            search=search,
            progress_bar=progress_bar,
        )
        check_sizes("SBC", num_simulations=num_simulations, num_samples=num_samples)
        check_flags("SBC", resample=resample)
        if num_samples > schedule.num_samples:
            raise ValueError(
                f"SBC: num_samples must be at most the {schedule.num_samples} of the schedule, got {num_samples}"
            )
        self.guide, self.num_simulations, self.num_samples = guide, num_simulations, num_samples
        check_executor("SBC", executor)
        self.resample, self.executor = resample, executor
        self.interrupted = False
        self.failed: dict[int, str] = {}
        self._names: list[str] = []
        self._checked: dict[int, Checked] = {}

    @exclusive()
    def run(self, *args: Any, **kwargs: Any) -> "SBC":
        """Simulate, fit and rank.

        ``Ctrl-C`` keeps the fits that are done.

        :param args: the model's arguments, with ``kwargs``, as for ``VI.run``.
        :return: this object.
        :raises ValueError: if parameters and data cannot be drawn from the model (the site is named), or no fit could
            be started.
        """
        call, ranks = arguments("SBC.run", self.guide.bare_model, args, kwargs), ranks_here()
        agree("SBC.run", ranks, self.guide, call, self.plan)
        if ranks.follows:
            self._names, self._checked, self.failed, self.interrupted = followed(ranks, self.guide, call)
            forget()
            return self
        seed = int(torch.randint(2**31, ())) if self.plan.seed is None else self.plan.seed
        self._checked, self.interrupted = {}, False

        def result() -> tuple[Any, ...]:
            return self._names, self._checked, self.failed, self.interrupted

        with leading(ranks, self.guide, call, result), seeded(seed):
            replications = Replications(self.guide, self.num_simulations, *call)
            self._names = [*_names(replications.guide), LOG_JOINT]
            self._fit(replications, self.executor or (ranks if ranks.has_peers else None))
            self.failed = replications.failed
            if not self._checked:
                raise ValueError(f"SBC: none of {self.num_simulations} fits could be started: {self.failed[0]}")
        return self

    def _fit(self, replications: Replications, executor: Executor | Ranks | None) -> None:
        try:
            title, num = "calibration", self.num_simulations
            with Progress(self.plan.progress_bar) as progress, progress.phase(title, num, unit="fit"):
                for index, checked in self._all(replications, executor):
                    self._checked[index] = checked
                    progress.advance(1)
        except KeyboardInterrupt:
            self.interrupted = True
            if not self._checked:
                raise
        finally:
            replications.close()

    def _all(self, replications: Replications, executor: Executor | Ranks | None) -> Iterator[tuple[int, Checked]]:
        """What is kept of each fit, with its number, as it is done."""
        options = self.num_samples, self.resample
        if executor is not None:
            yield from checked_by(executor, replications, self.plan, checked_fit, options)
            return
        for index, one, trainer, fit in replications.fits(self.plan):
            if trainer.history.interrupted:
                raise KeyboardInterrupt
            with trainer.stream or contextlib.nullcontext():
                checked = checked_fit(replications.guide, one, fit, *options)
            yield index, checked

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "executor": None}  # of this process


@torch.no_grad()
def checked_fit(guide: AutoFlow, one: Replication, fit: Fit, num_samples: int, resample: bool | None) -> Checked:
    """What is kept of a fit.

    :param guide: for the sites.
    :param one: the data set, and the parameters that it was simulated from.
    :param fit: of it.
    :param num_samples: draws among which parameters are ranked.
    :param resample: whether these are resampled; by default where the fit's k-hat allows it.
    """
    draws, truth = fit.draws, one.truth[None]
    true_values = _columns(guide, truth, one.log_joint(truth))[0]
    values = _columns(guide, draws.z, draws.log_p)
    below, equal = (values < true_values).double().mean(0), values == true_values
    verdict = judge(Evidence(draws.log_weight, [], [], torch.ones(1)))
    ranked = chosen(draws.log_weight, num_samples, False if is_hopeless(draws.log_weight) else resample)
    return Checked(
        rank(values[ranked], true_values),
        below + 0.5 * equal.double().mean(0),
        equal.all(0),
        effective(draws.log_weight),
        tail_index(draws.log_weight),
        verdict.outcome,
    )


def _names(guide: AutoFlow) -> list[str]:
    """Names of the scalars of all latent sites, constrained."""
    values = guide.constrain(guide.init_loc()[None])
    return [scalar for site, value in values.items() for scalar in scalar_names(site, value.shape[1:])]


def _columns(guide: AutoFlow, z: Tensor, log_joint: Tensor) -> Tensor:
    """Rows of all constrained scalars and the log joint."""
    parts = [value.reshape(len(z), -1).double() for value in guide.constrain(z).values()]
    return torch.cat([*parts, log_joint.double()[:, None]], 1)
