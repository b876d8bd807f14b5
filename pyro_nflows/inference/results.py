"""What can be asked of a :class:`~pyro_nflows.VI` once it has run; its posterior answers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..checks import check_sizes
from ..diagnostics.groups import GroupsLeftOut
from ..diagnostics.summary import Summary
from ..diagnostics.verdict import Outcome, Verdict
from ..engine import History
from ..guides import AutoFlow
from ..system.exclusive import exclusive
from ..system.files import Path
from .judged import Diagnostics
from .plan import Plan
from .posterior import Posterior
from .refined import Refined
from .shown import named

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Results:
    """Hands what is asked on to the posterior of the last run.

    ``guide`` and ``plan`` are those of the runs.
    """

    guide: AutoFlow
    plan: Plan
    _posterior: Posterior | None

    @property
    def posterior(self) -> Posterior:
        """What the last run left: an object that does not change when this one is run again.

        :raises RuntimeError: before ``run``.
        """
        if self._posterior is None:
            raise RuntimeError("VI has no draws yet; call run(*args) with the model's arguments first")
        return self._posterior

    @property
    def history(self) -> History:
        """What training has seen, and why it ended."""
        return History() if self._posterior is None else self._posterior.history

    @property
    def log_weight(self) -> Tensor:
        """Log-weights ``log p - log q`` of the draws that the verdict rests on, ``(S,)``: of the guide's own, unless
        most latents were drawn anew (``REDRAWN``)."""
        return self.posterior.log_weight

    @exclusive()
    def get_samples(self, num_samples: int = 1000, *, resample: bool | None = None) -> dict[str, Tensor]:
        """Posterior draws, as ``MCMC.get_samples`` gives them.

        They are the guide's, resampled by importance weights; or those of Markov chains where these have moved the
        guide's (``MOVED``; :mod:`~pyro_nflows.inference.stationary`); or have a few latents of the guide and all others
        drawn anew given these (``REDRAWN``; :mod:`~pyro_nflows.inference.redrawn`), resampled too.

        :param num_samples: how many; where there are fewer, further ones are drawn and kept.
        :param resample: whether to resample by Pareto-smoothed importance weights; by default where the verdict's
            k-hat allows it, and elsewhere draws of zero density are left out. False gives the guide's own draws,
            wherever chains have moved them, or others were drawn anew.
        :return: a dict from site to a tensor ``(num_samples, *site shape)``.
        :raises RuntimeError: before ``run``.
        :raises MemoryError: if there is not enough memory for so many; those that there were are kept.
        """
        self._posterior = self.posterior.with_draws(num_samples)
        return self._posterior.get_samples(num_samples, resample=resample)

    def refine(
        self,
        num_samples: int = 1000,
        warmup_steps: int = 300,
        num_chains: int = 4,
        method: str = "nuts",
        *,
        seed: int | None = None,
    ) -> Refined:
        """Markov chains that use the trained guide, for when the verdict is no; see
        :mod:`pyro_nflows.inference.refine`. ``refined.more()`` goes on with them.

        :param num_samples: draws a chain; ``warmup_steps`` come before them, for NUTS and HMC.
        :param num_chains: they begin at importance-resampled draws, or at those that chains have moved already.
        :param method: ``"nuts"`` or, faster, ``"hmc"``, in the flow's coordinates; or ``"independence"``.
        :param seed: by default that of the run or, if it had none, another one each time.
        """
        progress_bar = self.plan.progress_bar
        return self.posterior.refine(num_samples, warmup_steps, num_chains, method, progress_bar, seed)

    @exclusive()
    def predict(
        self, *args: Any, num_samples: int = 1000, fresh: Sequence[str] = (), seed: int | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Data that the posterior expects at other arguments of the model, such as new covariates of another number.

        Whatever the model observed is drawn, whether its value is given or None; values of data that are given are
        not read. Draws of the latent sites are those of :meth:`get_samples`; after a fit by minibatches, of the rows
        that the model gives a plate by ``subsample=``.

        :param args: the model's arguments, with ``kwargs``.
        :param num_samples: how many data sets.
        :param fresh: latent sites to draw from their prior given the others, such as the effects of new groups.
        :param seed: makes the result reproducible, given the draws.
        :return: a dict from site to a tensor ``(num_samples, ...)``: data, deterministic sites, and those in ``fresh``.
        :raises ValueError: if a latent site has another shape at these arguments, and is not in ``fresh``; if a plate
            has no rows; or if it shows a random part of them (``subsample_size``), so that nobody knows whose data
            these are.
        :raises TypeError: if these are not the arguments that the model takes.
        :raises MemoryError: if there is not enough memory for so many, which may be known after the first one.

        Example::

            >>> import pyro, torch, pyro.distributions as dist
            >>> from pyro_nflows import VI, AutoFlow
            >>> def model(x, y=None):
            ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
            ...     with pyro.plate("row", len(x)):
            ...         pyro.sample("y", dist.Normal(slope * x, 0.1), obs=y)
            ...
            >>> x = torch.linspace(0, 1, 20)
            >>> vi = VI(AutoFlow(model), num_steps=50, seed=0, progress_bar=False).run(x, 2 * x)
            >>> vi.predict(torch.tensor([0.0, 1.0, 2.0]))["y"].mean(0).round().tolist()
            [0.0, 2.0, 4.0]
        """
        self._posterior = self.posterior.with_draws(num_samples, "predict")
        return self._posterior.predict(*args, num_samples=num_samples, fresh=fresh, seed=seed, **kwargs)

    def leave_one_group_out(self, plate: str, num_samples: int | None = None) -> GroupsLeftOut:
        r"""How well each row of a plate is predicted from the data of all others, without fitting again.

        Of each row, the log predictive density :math:`\log p(y_i \mid y_{-i})` of all its data together, its latents
        integrated out, by Pareto-smoothed weights (:mod:`~pyro_nflows.inference.groups_left_out`). Where
        leave-one-out asks for another observation of a known group, this asks for a new group. Rows of nested plates
        are left out with all that is within them.

        :param plate: the plate's name; of a fit by minibatches of one plate, that one; of several, any with latents.
        :param num_samples: draws that are used, by default 2,000 if there are so many.
        :return: a table: ``.elpd`` and ``.pareto_k`` of each row, ``.total``, ``.se``, ``.worst``, ``.to_dataframe()``.
        :raises ValueError: if there is no such plate, its rows depend on each other given what is outside, or the model
            cannot be run by ``torch.vmap``.

        Example::

            >>> import pyro, torch, pyro.distributions as dist
            >>> from pyro_nflows import VI, AutoFlow
            >>> def model(y):
            ...     mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
            ...     with pyro.plate("school", len(y)):
            ...         theta = pyro.sample("theta", dist.Normal(mu, 1.0))
            ...         pyro.sample("y", dist.Normal(theta, 1.0), obs=y)
            ...
            >>> vi = VI(AutoFlow(model), seed=0, progress_bar=False).run(torch.tensor([-1.0, 0.0, 1.0, 6.0]))
            >>> found = vi.leave_one_group_out("school")
            >>> int(found.elpd.argmin())  # the last one is far from the others
            3
        """
        return self.posterior.leave_one_group_out(plate, num_samples)

    def verdict(self) -> Verdict[Outcome]:
        """What to make of the draws: an outcome and one sentence."""
        return self.posterior.verdict()

    def diagnostics(self) -> Diagnostics:
        """The evidence, from fresh draws of the trained guide, also where chains have moved them (``MOVED``); or from
        those of which most latents were drawn anew (``REDRAWN``).

        :return: ``elbo``, ``elbo_se``; ``elbo_trimmed`` and ``elbo_trimmed_se``, the same without the
            ``num_outliers`` draws that lie so far out that they alone make the ELBO what it is
            (:mod:`~pyro_nflows.diagnostics.outliers`); ``iwae`` (the importance estimate of the log evidence) and
            ``iwae_se``, ``pareto_k``, ``ess`` (as a fraction of the draws), ``num_steps``, ``num_skipped``,
            ``num_restarts`` (times that training diverged and went back), ``interrupted``, ``seconds`` (of the whole
            run) and ``outcome``.
        """
        return self.posterior.diagnostics()

    def summary(self, var_names: Sequence[str] | str | None = None, *, kind: str = "all", prob: float = 0.9) -> Summary:
        """Print a table of the parameters, the evidence, and the verdict.

        The table has each scalar's mean, sd, median and interval, and ``mcse``, the Monte-Carlo standard error of the
        mean. Sites of many scalars are shortened, unless they are asked for by name.

        :param var_names: the sites; by default all.
        :param kind: ``"stats"``, ``"diagnostics"`` (``mcse`` alone) or ``"all"``.
        :param prob: mass of the central interval.
        :return: what was printed, with ``.frame``, a ``pandas.DataFrame`` of all scalars.
        :raises ValueError: for another kind, a name that is no site's, or if ``prob`` is not between 0 and 1.
        """
        return self.posterior.summary(var_names, kind=kind, prob=prob)

    def plot(self, var_names: Sequence[str] | str | None = None) -> "Figure":
        """One figure to look at first: the bound at each step with the rounds, the weights with k-hat, and marginals.

        :param var_names: the sites whose marginals are drawn, by default all; of many scalars, the first.
        :return: a Matplotlib figure.
        :raises ValueError: for a name that is no site's.
        """
        return self.posterior.plot(var_names)

    def __repr__(self) -> str:
        if self._posterior is None:
            return f"{type(self).__name__}({named(self.guide)}), not run yet"
        return f"{type(self).__name__}: {self._posterior!r}"

    def _repr_html_(self) -> str | None:
        return None if self._posterior is None else self._posterior._repr_html_()

    @exclusive()
    def to_arviz(
        self,
        num_samples: int = 4000,
        *,
        resample: bool | None = None,
        num_chains: int | None = None,
        untrusted: bool = False,
        log_likelihood: bool | Sequence[str] = True,
        unconstrained: bool = False,
        predictions: Sequence[Any] | Mapping[str, Any] | None = None,
        fresh: Sequence[str] = (),
        coords: Mapping[str, Sequence[Any]] | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
    ) -> Any:
        """The draws and all that ArviZ can use: ``InferenceData`` (ArviZ < 1) or ``DataTree`` (ArviZ >= 1).

        Weights belong to the draws that they lie beside: after resampling, and of draws that chains have moved, all
        are equal (``log_weight`` 0, and ``log_q`` is ``lp``, as for draws of the posterior); else ``log_weight`` is
        ``lp - log_q``, with ``log_q`` the density that they were drawn from. The attributes of the whole, of
        ``posterior`` and of ``sample_stats`` hold ``verdict``, ``verdict_sentence``, ``trusted``, ``resampled``,
        ``ess`` (a share of the draws), ``pareto_k``, ``log_evidence`` and ``elbo`` with their standard errors, ``seed``
        if there was one, and versions.

        :param num_samples: posterior draws.
        :param resample: whether to resample by Pareto-smoothed importance weights; by default where the verdict's
            k-hat allows it. False gives the guide's own draws, to be weighted.
        :param num_chains: by default one, or one for each of several starts, so that ``az.rhat`` says whether these
            agree. Chains of one fit are parts of one sample: ArviZ has them for plots and standard errors, and their
            R-hat says nothing of the fit.
        :param untrusted: whether the export of a fit that is not to be trusted is wanted; else there is a warning.
        :param log_likelihood: whether to include the log density of each observation, or of which sites; see
            :func:`pyro_nflows.arviz.to_arviz` for what becomes of factors.
        :param unconstrained: whether to include the latent sites without constraints, as the group
            ``unconstrained_posterior``.
        :param predictions: other arguments of the model, a tuple by position or a dict by name: data drawn there, as
            :meth:`predict` draws them, are the group ``predictions``.
        :param fresh: latent sites that predictions draw from their prior given the others, such as the effects of new
            groups.
        :param coords: labels along a dimension, such as ``{"school": ["A", "B"]}``.
        :param dims: names of a site's dimensions, where plates do not name them.
        :raises ValueError: if the draws cannot be put into so many chains, a name is none of the model's, or the model
            cannot predict at these arguments, as for :meth:`predict`.
        """
        check_sizes("to_arviz", num_samples=num_samples)
        if len(self.posterior.starts) < 2 and not self.guide.subsamples:
            self._posterior = self.posterior.with_draws(num_samples, "to_arviz")
        return self.posterior.to_arviz(
            num_samples,
            resample=resample,
            num_chains=num_chains,
            untrusted=untrusted,
            log_likelihood=log_likelihood,
            unconstrained=unconstrained,
            predictions=predictions,
            fresh=fresh,
            coords=coords,
            dims=dims,
        )

    def save(self, path: Path) -> None:
        """Write the trained guide, the draws, the evidence and the model's own parameters to a file.

        The model itself is not saved. A file that is there already stays as it was until the new one is complete.

        :raises OSError: if the file cannot be written.
        """
        self.posterior.save(path)
