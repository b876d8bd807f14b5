r"""``SBC``: is what a model and its guide say about parameters right, over data that the model itself simulates?

Parameters are drawn from the prior and data from the model at them, many times; each data set is fitted, and the
parameters' ranks among the draws of its fit are tested (:mod:`~pyro_nflows.diagnostics.ranks`). All fits share one
recording of the model and one compiled step, and go side by side.
"""

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..checks import check_sizes
from ..diagnostics.calibration import Calibration, PValues, judge_ranks
from ..diagnostics.ranks import rank, symmetry, uniformity
from ..diagnostics.resampling import chosen
from ..diagnostics.table import calibration_table, scalar_names
from ..diagnostics.verdict import Evidence, Outcome, Verdict, effective, is_hopeless, judge, tail_index
from ..engine import Engine, Progress, Round
from ..guides import AutoFlow
from ..model.arguments import ready as arguments
from ..objectives.draws import Draws
from ..plots.ranks import plot_calibration
from ..system.exclusive import exclusive, seeded
from .elbo import ELBO
from .fitted import Fit
from .plan import Plan, check_guide
from .replications import Replication, Replications
from .schedule import Schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Fewer steps and particles than :class:`~pyro_nflows.VI` takes by itself: there are many fits.
QUICK = Schedule(
    end=Round(200, 32, 5e-2),
    rounds=(Round(400, 32, 5e-3), Round(800, 32, 3e-3), Round(1600, 32, 2e-3, covering=True)),
    num_samples=1000,
    max_ends=1,
    good_ess=0.9,
    light_tails=False,
)
#: Outcomes of fits whose draws are about right; ranks need neither far tails nor many draws.
GOOD = (Outcome.TRUST, Outcome.RESAMPLED, Outcome.TAILS, Outcome.TOO_FEW)
#: The name of the log joint density among the parameters.
LOG_JOINT = "log_joint"


class Checked(NamedTuple):
    """What is kept of a fit: ranks and shares of draws below the truth, one a parameter, and how good it was.

    ``constant`` are parameters that all draws share with the truth, such as the zeros of a Cholesky factor.
    """

    ranks: Tensor
    shares: Tensor
    constant: Tensor
    ess: float
    pareto_k: float
    outcome: Outcome


class SBC:
    r"""Simulation-based calibration of a model and a guide.

    ``SBC(AutoFlow(model)).run(data)`` stands beside ``VI(AutoFlow(model)).run(data)``, takes the same arguments, and
    uses of the data only their shapes: it draws parameters and data from the model, fits each data set, and ranks
    each parameter, and the log joint density, among the draws of its fit. With exact posteriors, ranks are uniform.
    See :mod:`pyro_nflows.diagnostics.ranks` for the tests.

    Not detecting a problem does not prove there is none: 200 simulations mostly see a bias of a third of a standard
    deviation, or a width wrong by a third, and not one of a tenth. And what is checked is the posterior on average
    over the prior, not the one given your data: that is for the verdict of ``VI``.

    :param guide: a flow guide such as ``AutoFlow(model)``; it is left alone, and fits start afresh.
    :param num_simulations: data sets.
    :param num_samples: draws :math:`L` among which a parameter is ranked; one less than a round number
        suits histograms.
    :param resample: whether ranks are among draws resampled by their importance weights; by default where the fit's
        k-hat allows it, as in ``VI.get_samples``. VSBC is always about the guide itself.
    :param objective: as for ``VI``.
    :param schedule: of each fit; ``Schedule()`` is that of ``VI``. By default :data:`QUICK`: fewer steps and particles.
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
        >>> check = SBC(AutoFlow(model), num_simulations=10, num_samples=9, seed=0, progress_bar=False)
        >>> check.run(torch.tensor(0.0)).verdict().outcome.name
        'CALIBRATED'
        >>> check.ranks["z"].shape
        torch.Size([10])
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
        if num_samples > schedule.num_samples:
            raise ValueError(
                f"SBC: num_samples must be at most the {schedule.num_samples} of the schedule, got {num_samples}"
            )
        self.guide, self.num_simulations, self.num_samples = guide, num_simulations, num_samples
        self.resample = resample
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
        seed = int(torch.randint(2**31, ())) if self.plan.seed is None else self.plan.seed
        self._checked, self.interrupted = {}, False
        with seeded(seed):
            call = arguments("SBC.run", self.guide.bare_model, args, kwargs)
            replications = Replications(self.guide, self.num_simulations, *call)
            self._names = [*_names(replications.guide), LOG_JOINT]
            self._fit(replications)
        self.failed = replications.failed
        if not self._checked:
            raise ValueError(f"SBC: none of {self.num_simulations} fits could be started: {self.failed[0]}")
        return self

    def _fit(self, replications: Replications) -> None:
        try:
            title, num = "calibration", self.num_simulations
            with Progress(self.plan.progress_bar) as progress, progress.phase(title, num, unit="fit"):
                for index, one, trainer, fit in replications.fits(self.plan):
                    if trainer.history.interrupted:
                        raise KeyboardInterrupt
                    with trainer.stream or contextlib.nullcontext():
                        self._checked[index] = self._check(replications.guide, one, fit)
                    progress.advance(1)
        except KeyboardInterrupt:
            self.interrupted = True
            if not self._checked:
                raise
        finally:
            replications.close()

    @torch.no_grad()
    def _check(self, guide: AutoFlow, one: Replication, fit: Fit) -> Checked:
        draws, truth = fit.draws, one.truth[None]
        true_values = _columns(guide, truth, one.log_joint(truth))[0]
        values = _columns(guide, draws.z, draws.log_p)
        below, equal = (values < true_values).double().mean(0), values == true_values
        verdict = judge(Evidence(draws.log_weight, [], [], torch.ones(1)))
        return Checked(
            rank(values[self._chosen(draws)], true_values),
            below + 0.5 * equal.double().mean(0),
            equal.all(0),
            effective(draws.log_weight),
            tail_index(draws.log_weight),
            verdict.outcome,
        )

    def _chosen(self, draws: Draws) -> Tensor:
        """Indices of the draws among which to rank."""
        return chosen(draws.log_weight, self.num_samples, False if is_hopeless(draws.log_weight) else self.resample)

    # ---- what was found -------------------------------------------------------------------------------------

    def _results(self) -> list[Checked]:
        """By simulation."""
        if not self._checked:
            raise RuntimeError("SBC has no ranks yet; call run(*args) with the model's arguments first")
        return [self._checked[i] for i in sorted(self._checked)]

    def _by_name(self, field: str) -> dict[str, Tensor]:
        results = self._results()
        values, fixed = (torch.stack([getattr(r, name) for r in results]) for name in (field, "constant"))
        return {n: v for n, v, same in zip(self._names, values.T, fixed.all(0)) if not same}

    @property
    def ranks(self) -> dict[str, Tensor]:
        """Ranks from 0 to ``num_samples`` of each scalar parameter and of the log joint, ``(num_fits,)`` each."""
        return self._by_name("ranks")

    @property
    def shares(self) -> dict[str, Tensor]:
        r"""The share of the guide's own draws below the truth, :math:`P_q(\theta < \theta_0)`, ``(num_fits,)`` each."""
        return self._by_name("shares")

    @property
    def ess(self) -> Tensor:
        """The importance ESS of each fit, as a fraction of its draws."""
        return torch.tensor([result.ess for result in self._results()])

    @property
    def pareto_k(self) -> Tensor:
        """The k-hat of each fit."""
        return torch.tensor([result.pareto_k for result in self._results()])

    @property
    def outcomes(self) -> list[Outcome]:
        """The verdict on each fit."""
        return [result.outcome for result in self._results()]

    def p_values(self) -> dict[str, PValues]:
        """Of each parameter: uniform ranks (SBC), and a center of the guide without bias (VSBC)."""
        pairs = zip(self.ranks.items(), self.shares.values())
        return {name: PValues(uniformity(ranks, self.num_samples), symmetry(s)) for (name, ranks), s in pairs}

    def verdict(self) -> Verdict[Calibration]:
        """What the p-values say together: an outcome and one sentence."""
        return judge_ranks(self.p_values(), self.ranks, self.num_samples, len(self._bad()) / len(self._checked))

    def _bad(self) -> list[str]:
        """Outcomes of the fits whose draws are not to be trusted."""
        return [outcome.name for outcome in self.outcomes if outcome not in GOOD]

    def summary(self) -> None:
        """Print each parameter's ranks and p-values, how good the fits were, and one sentence."""
        print(calibration_table(self.ranks, self.p_values(), self.num_samples))
        print(f"\n{self._fits()}\n{self.verdict().sentence}")

    def plot(self, *names: str, prob: float = 0.95) -> "Figure":
        """Ranks of some parameters, a row each: a histogram, and the ECDF beside its simultaneous band.

        :param names: keys of ``ranks``; by default those with the least p-values, six at most.
        :param prob: of the bands.
        :raises ValueError: if a name is not that of a parameter.
        """
        p_values, ranks = self.p_values(), self.ranks
        unknown = [name for name in names if name not in ranks]
        if unknown:
            raise ValueError(f"SBC.plot: no parameter is named {unknown[0]!r}; expected some of {list(ranks)}")
        chosen = names or sorted(ranks, key=lambda name: min(p_values[name]))[:6]
        return plot_calibration({name: ranks[name] for name in chosen}, self.num_samples, prob=prob)

    def _fits(self) -> str:
        bad = self._bad()
        kinds = ", ".join(f"{bad.count(name)} {name}" for name in sorted(set(bad)))
        parts = [f"{len(self._checked)} fits, {len(bad)} of them bad" + (f" ({kinds})" if kinds else "")]
        parts.append(f"median ESS {float(self.ess.median()):.0%}")
        parts += [f"{len(self.failed)} data sets could not be started"] if self.failed else []
        return "; ".join(parts + (["interrupted"] if self.interrupted else [])) + "."


def _names(guide: AutoFlow) -> list[str]:
    """Names of the scalars of all latent sites, constrained."""
    values = guide.constrain(guide.init_loc()[None])
    return [scalar for site, value in values.items() for scalar in scalar_names(site, value.shape[1:])]


def _columns(guide: AutoFlow, z: Tensor, log_joint: Tensor) -> Tensor:
    """Rows of all constrained scalars and the log joint."""
    parts = [value.reshape(len(z), -1).double() for value in guide.constrain(z).values()]
    return torch.cat([*parts, log_joint.double()[:, None]], 1)
