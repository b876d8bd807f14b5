r"""``VI``: shaped like ``MCMC``, one changed line."""

import functools
import time
from collections.abc import Sequence
from typing import Any, cast

import pyro
import torch
from torch import Tensor

from .arguments import check_arguments
from .arviz import to_arviz
from .checkpoint import Path, load_fit, save_fit
from .engine import Engine, History, Trainer, sample
from .fit import Fit, Recipe, evidence_of, fit_all, fit_modes
from .guides import AutoFlow
from .layer import Chain
from .log_joint import LogJoint, tensors_of
from .nets import check_sizes
from .objectives import ELBO
from .refine import Refined, refine
from .search import round_trip, search
from .start import check_start, dispersed_start, first_bad_site, prior_points
from .table import print_summary
from .verdict import Evidence, Verdict, choose, effective, is_hopeless, judge, starts_disagree, tail_index
from .weights import Draws, LogDensity, concatenate


class VI:
    r"""Variational inference with a flow guide, from start to verdict.

    ``VI(AutoFlow(model)).run(data)`` stands where ``MCMC(NUTS(model), ...).run(data)`` stood: it trains the guide,
    stops by itself, judges the result with fresh importance-weighted draws, and keeps those draws. The model's own
    ``pyro.param`` s are trained too (maximum likelihood); nothing else in the param store is touched, nor is the
    global random state when ``seed`` is given.

    :param guide: a flow guide such as ``AutoFlow(model)``. A trained one is trained further.
    :param objective: ``ELBO(...)`` or ``IWAE(...)``; its ``num_particles`` is used if more than one. By default the
        ELBO by path gradients, with the recipe's numbers of particles.
    :param num_steps: steps of the flow; by default the recipe runs rounds until the ESS is good.
    :param num_starts: independent fits; the best is kept, and their agreement enters the verdict.
    :param seed: makes the run reproducible, but for rounding where the engine is not named.
    :param engine: ``"eager"``, ``"traced"`` or ``"compiled"``; by default the fastest that can run the model:
        training starts traced, and goes on compiled where that pays.
    :param annealing: share of the steps, from 0 to 1, in which ``log p`` is flattened: for several modes.
    :param progress_bar: whether to show ELBO, steps, rate and time left.
    :raises TypeError, ValueError: if ``guide`` is not a flow guide, or an argument is of the wrong type or range.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        ...
        >>> vi = VI(AutoFlow(model), seed=0, progress_bar=False).run(torch.tensor(0.5))
        >>> vi.get_samples(10)["z"].shape
        torch.Size([10])
        >>> vi.diagnostics()["outcome"].name
        'TRUST'
    """

    def __init__(
        self,
        guide: AutoFlow,
        *,
        objective: ELBO | None = None,
        num_steps: int | None = None,
        num_starts: int = 1,
        seed: int | None = None,
        engine: Engine | str | None = None,
        annealing: float = 0.0,
        progress_bar: bool = True,
    ):
        check_arguments(guide, objective, engine, annealing, seed)
        check_sizes("VI", num_starts=num_starts, **({} if num_steps is None else {"num_steps": num_steps}))
        self.guide, self.objective, self.num_starts = guide, objective or ELBO(), num_starts
        self._gradient = self.objective.gradient or self.objective.best_gradient
        self.num_steps, self.seed, self.annealing = num_steps, seed, annealing
        self.engine = None if engine is None else Engine(engine)
        self.progress_bar = progress_bar
        self.history = History()
        self._fits: list[Fit] = []
        self._draws: Draws | None = None
        self._call: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._bad_site: str | None = None
        self._trainer: Trainer | None = None
        self._joint: LogJoint | None = None
        self._form: Any = None

    def run(self, *args: Any, **kwargs: Any) -> "VI":
        """Fit the guide to the model at these arguments.

        ``Ctrl-C`` stops training and keeps what has been reached. Called again, it trains further.

        :return: this object.
        :raises ValueError: if the model cannot be started (the site is named), or is not one this guide can fit.
        """
        seed, began = int(torch.randint(2**31, ())) if self.seed is None else self.seed, time.perf_counter()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._run(args, kwargs)
        self.history.seconds = time.perf_counter() - began
        return self

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        guide = self.guide
        if guide.prototype_trace is None:
            with pyro.validation_enabled(False):  # an infeasible start is dealt with below
                guide._setup_prototype(*args, **kwargs)
        joint = LogJoint(guide.bare_model, guide)
        loc = check_start(joint, args, kwargs)
        joint.prepare(*args, **kwargs)
        guide.attend(args, kwargs, loc)
        self._call, self._bad_site = (args, kwargs), None
        trainer = self._train_on(joint, joint.leaves(loc, *args, **kwargs))
        self.history = trainer.history
        self._fits = self._fit(trainer, joint, loc)
        best = max(self._fits, key=lambda f: float(f.elbo.value))
        guide.adopt(best.layer)
        self._draws = best.draws
        if not (trainer.stopped or is_hopeless(best.draws.log_weight)):
            try:
                best = self._search(trainer, best)
            except KeyboardInterrupt:
                self.history.interrupted = True
            finally:
                trainer.close()
        if trainer.history.failed or best.undefined.any() or is_hopeless(best.draws.log_weight):
            self._bad_site = first_bad_site(joint, best.suspects, args, kwargs)

    def _train_on(self, joint: LogJoint, leaves: list[Tensor]) -> Trainer:
        """A trainer; that of an earlier run where only the data have changed."""
        data, form = tensors_of(self._call)
        old = self._trainer
        if old is not None and (form, list(map(id, leaves))) == (self._form, list(map(id, old.leaves))):
            old.rebind(data)
            return old
        self._joint, self._form = joint, form
        self._trainer = Trainer(self._log_joint, leaves, self.engine, self.progress_bar, data)
        return self._trainer

    def _log_joint(self, z: Tensor) -> Tensor:
        args, kwargs = self._call or ((), {})
        return cast(LogJoint, self._joint)(z, *args, **kwargs)

    def _fit(self, trainer: Trainer, joint: LogJoint, loc: Tensor) -> list[Fit]:
        args, kwargs = self._call or ((), {})
        locs = [loc, *(dispersed_start(joint, loc, args, kwargs) for _ in range(self.num_starts - 1))]
        self.objective.check_layer(self.guide.layer)  # type: ignore[arg-type]
        try:
            return fit_all(trainer, self.guide, self.objective, self._gradient, self._recipe(), locs)
        finally:
            trainer.close()

    def _search(self, trainer: Trainer, best: Fit) -> Fit:
        """Is anything missing? If so, and the recipe is ours to choose, a second fit."""
        refit = functools.partial(fit_modes, trainer, self.guide, self.objective, self._gradient)
        ours = self._recipe().is_default and not trainer.leaves and not self.guide.needs_model
        prior = functools.partial(prior_points, self.guide, self._call)
        disagree, h = starts_disagree(self._evidence()), self.history
        found = search(trainer, self.guide, best, disagree, refit if ours else None, prior)
        h.missed, h.where, h.round_trip = found.missed, found.where, round_trip(found.fit)
        if found.modes is not None:
            self.guide.modes = found.modes.sizes
            self.guide.adopt(found.fit.layer)
            self._fits, self._draws = [found.fit], found.fit.draws
        return found.fit

    def _recipe(self) -> Recipe:
        return Recipe.of(self.num_steps, self.objective.num_particles, self.annealing)

    def _need_run(self) -> Draws:
        if self._draws is None:
            raise RuntimeError("VI has no draws yet; call run(*args) with the model's arguments first")
        return self._draws

    @property
    def log_weight(self) -> Tensor:
        """Log-weights ``log p - log q`` of the draws that the verdict judges, ``(S,)``."""
        return self._need_run().log_weight

    @torch.no_grad()
    def get_samples(self, num_samples: int = 1000, *, resample: bool | None = None) -> dict[str, Tensor]:
        """Posterior draws, as ``MCMC.get_samples`` gives them.

        :param num_samples: how many.
        :param resample: whether to resample by Pareto-smoothed importance weights; by default where the verdict's
            k-hat allows it.
        :return: a dict from site to a tensor ``(num_samples, *site shape)``.
        :raises RuntimeError: before ``run``.
        """
        check_sizes("get_samples", num_samples=num_samples)
        return self.guide.constrain(self._chosen(num_samples, resample).z)

    def _chosen(self, num_samples: int, resample: bool | None) -> Draws:
        """Draws with their weights, resampled or as they come."""
        draws = self._need_run()
        if num_samples > len(draws.z):
            draws = self._draws = self._more(draws, num_samples)
        return choose(draws, num_samples, resample)

    def _more(self, draws: Draws, num: int) -> Draws:
        return concatenate([draws, sample(self._model(draws), cast(Chain, self.guide.layer), num - len(draws.z))])

    def _model(self, draws: Draws) -> LogDensity:
        """The log joint at the data of the last run."""
        if self._call is None:
            raise ValueError(
                f"this VI was loaded without its data, so it has only its {len(draws.z)} saved draws; "
                "ask for no more, or run again"
            )
        (args, kwargs), joint = self._call, LogJoint(self.guide.bare_model, self.guide)
        joint.start = draws.z[draws.log_p.argmax()]
        return lambda z: joint(z, *args, **kwargs)

    def refine(
        self, num_samples: int = 1000, warmup_steps: int = 300, num_chains: int = 4, method: str = "nuts"
    ) -> Refined:
        """Markov chains that use the trained guide, for when the verdict is no; see :mod:`pyro_nflows.refine`.

        :param num_samples: draws a chain; ``warmup_steps`` come before them, for NUTS.
        :param num_chains: they begin at importance-resampled draws.
        :param method: ``"nuts"`` or, faster, ``"hmc"``, in the flow's coordinates; or ``"independence"``.
        """
        draws, sizes = self._need_run(), (num_samples, warmup_steps, num_chains)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed or 0)
            return refine(self._model(draws), self.guide, draws, method, *sizes, progress_bar=self.progress_bar)

    def verdict(self) -> Verdict:
        """What to make of the draws: an outcome and one sentence."""
        return judge(self._evidence(), self.history.num_steps, self.history.skipped)

    def _evidence(self) -> Evidence:
        draws, h = self._need_run(), self.history
        means, bounds = [fit.draws.z.mean(0) for fit in self._fits], [f.log_evidence for f in self._fits]
        found = self._bad_site, h.drift, h.missed, h.where, h.round_trip
        return Evidence(draws.log_weight, bounds, means, draws.z.std(0), *found)

    def diagnostics(self) -> dict[str, Any]:
        """The evidence, from fresh draws of the trained guide.

        :return: ``elbo``, ``elbo_se``, ``iwae`` (the importance estimate of the log evidence), ``iwae_se``,
            ``pareto_k``, ``ess`` (as a fraction of the draws), ``num_steps``, ``num_skipped``, ``interrupted``,
            ``seconds`` (of the whole run) and ``outcome``.
        """
        log_weight, history = self.log_weight, self.history
        return {
            **evidence_of(log_weight),
            "pareto_k": tail_index(log_weight),
            "ess": effective(log_weight),
            "num_steps": history.num_steps,
            "num_skipped": history.skipped,
            "interrupted": history.interrupted,
            "seconds": history.seconds,
            "outcome": self.verdict().outcome,
        }

    def summary(self, prob: float = 0.9) -> None:
        """Print each parameter's mean, sd, median and interval, the evidence, and the verdict.

        :param prob: mass of the central interval.
        """
        samples = self.get_samples(len(self._need_run().z))
        print_summary(samples, self.diagnostics(), self.verdict().sentence, prob)

    def to_arviz(
        self,
        num_samples: int = 4000,
        *,
        coords: dict[str, Sequence[Any]] | None = None,
        dims: dict[str, Sequence[str]] | None = None,
    ) -> Any:
        """The draws and all that ArviZ can use: ``InferenceData`` (ArviZ < 1) or ``DataTree`` (ArviZ >= 1).

        :param num_samples: posterior draws. Those of several starts are chains of equal length, so that ``az.rhat``
            says whether they agree.
        :param coords: labels along a dimension, such as ``{"school": ["A", "B"]}``.
        :param dims: names of a site's dimensions, where plates do not name them.
        """
        num = max(1, len(self._fits))
        parts = [choose(fit.draws, num_samples // num) for fit in self._fits] if num > 1 else []
        draws = concatenate(parts) if parts else self._chosen(num_samples, None)
        if self._call is None:
            raise ValueError("this VI was loaded without its data; call to_arviz before saving, or run again")
        args, kwargs = self._call
        stats = {"lp": draws.log_p, "log_q": draws.log_q, "log_weight": draws.log_weight}
        return to_arviz(
            self.guide.bare_model,
            {name: value.unflatten(0, (num, -1)) for name, value in self.guide.constrain(draws.z).items()},
            args,
            kwargs,
            sample_stats={name: value.view(num, -1) for name, value in stats.items()},
            group_by_chain=True,
            coords=coords,
            dims=dims,
            seed=self.seed or 0,
        )

    def save(self, path: Path) -> None:
        """Write the trained guide, the draws and the history to a file; the model itself is not saved."""
        save_fit(path, self.guide, self._need_run(), self.history, self._bad_site)

    @staticmethod
    def load(path: Path, guide: AutoFlow, *args: Any, **kwargs: Any) -> "VI":
        """Read what ``save`` wrote into a fresh guide of the same model.

        :param path: the file.
        :param guide: ``AutoFlow(model)``, or whichever guide was saved.
        :param args: the model's arguments, with ``kwargs``: the same data.
        :raises ValueError: if the file is of another kind of guide, or of another model.
        """
        vi = VI(guide)
        vi._draws, vi.history, vi._bad_site = load_fit(path, guide)
        if guide.prototype_trace is None:
            guide._setup_prototype(*args, **kwargs)
        vi._call = (args, kwargs)
        return vi
