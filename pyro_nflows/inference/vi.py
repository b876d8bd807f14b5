r"""``VI``: shaped like ``MCMC``, one changed line."""

import contextlib
import copy
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any, Literal, cast

from ..diagnostics.findings import LESS_MEMORY
from ..engine import Callback, Engine, Optim
from ..guides import AutoFlow
from ..model.arguments import ready as arguments
from ..system.exclusive import exclusive, seeded
from ..system.files import Path
from ..system.memory import OutOfMemory, explained, is_out_of_memory
from ..system.ranks import ranks_here
from ..system.signals import uninterrupted
from .apart import fit_apart, is_apart
from .as_it_is import judged_as_it_is
from .checkpoint import load_fit, take_fit
from .elbo import ELBO
from .fit import fit_all
from .loader import of_minibatches, refuse_loader
from .minibatch_run import run_minibatches
from .plan import Plan, check_guide
from .portable import is_packed, packed, unpacked
from .posterior import Call, Posterior
from .results import Results
from .resume import Checkpoint, check_file, described
from .row_posterior import RowPosterior
from .running import Fitter, RowsAreSubsampled
from .started import source_of
from .together import agree, followed, leading, share, share_rows
from .workers import check_executor


class VI(Results):
    r"""Variational inference with a flow guide, from start to verdict.

    ``VI(AutoFlow(model)).run(data)`` stands where ``MCMC(NUTS(model), ...).run(data)`` stood: it trains the guide,
    stops by itself, judges the result with fresh importance-weighted draws, and keeps those draws. Where the Gaussian
    that a fit starts from is shown by its draws to be the posterior already, nothing is trained. Where weights are bad,
    short Markov chains begin at the draws, and where these settle, theirs are the draws of the fit (``MOVED``; not with
    ``num_steps``). The model's own ``pyro.param`` s are trained too (maximum likelihood); nothing else in the param
    store is touched, nor is the global random state when ``seed`` is given.

    :param guide: a flow guide such as ``AutoFlow(model)``. A trained one is trained further.
    :param objective: ``ELBO(...)`` or ``IWAE(...)``; its ``num_particles`` is used if more than one. By default the
        ELBO by path gradients, with the schedule's numbers of particles.
    :param num_steps: steps of the flow, which are all taken; the Gaussian that it starts from takes up to half as many
        before that, and 800 at most. By default the schedule runs rounds until the ESS is good.
    :param start: another fit, run or loaded, of a model with the same latent sites: the first run begins where that one
        ended, with its trained flow if the guide's has the same layers, else with its Gaussian. The data may differ.
    :param num_starts: independent fits, by default one (three with ``effort="thorough"``); the best is kept, and their
        agreement enters the verdict.
    :param effort: ``"quick"`` fits a Gaussian and judges it, without a flow: about a second for a small model, and some
        more where chains move its draws. ``"thorough"`` has three starts, more rounds, and four times as many draws for
        the verdict.
    :param max_seconds: that a run may take, its judging included; what has been reached by then is judged. A run of the
        model is never cut short, and it is run 15 to 30 times before training: if one takes more than about a fiftieth
        of the time, the fit may take longer.
    :param callback: a function of a :class:`~pyro_nflows.engine.Look` (round, step, ELBO, seconds), called about every
        fifty steps: to log to anything, or to end training by returning ``True``. What has been reached is then judged.
        An error that it raises is told in a warning, and the fit goes on. Where a fit takes no steps of training (one
        with ``effort="quick"``, or whose start is right already), neither this nor ``optim`` is used.
    :param optim: takes the steps in the place of Adam: a class such as ``torch.optim.AdamW``, a function that makes an
        optimiser of parameters, or one of ``pyro.optim`` (:mod:`~pyro_nflows.engine.optimised`).
    :param executor: fits the starts, where there are several, in other processes: a ``ProcessPoolExecutor``, or another
        library's that has its interface (:ref:`several-processes`).
    :param seed: makes the run reproducible, but for rounding where the engine is not named.
    :param engine: ``"eager"``, ``"traced"`` or ``"compiled"``; by default the fastest that can run the model:
        training starts traced, and goes on compiled where that pays.
    :param annealing: share of the steps, from 0 to 1, in which ``log p`` is flattened: for several modes.
    :param progress_bar: whether to show how the run goes on: one bar in a terminal or a notebook, and a line for each
        phase in a pipe or a file (:mod:`~pyro_nflows.engine.progress`).
    :param checkpoint: a file that keeps the state of the run: should the process be killed, the same line run again
        goes on where it was; once the run is complete, it loads the fit. Remove the file to start anew.
    :param checkpoint_seconds: time between the moments at which it is written; it is written at SIGTERM, too.
    :raises TypeError, ValueError: if ``guide`` is not a flow guide, or an argument is of the wrong type or range.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
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
        start: "VI | Posterior | None" = None,
        num_starts: int | None = None,
        effort: Literal["quick", "default", "thorough"] = "default",
        max_seconds: float | None = None,
        callback: Callback | None = None,
        optim: Optim | None = None,
        executor: Executor | None = None,
        seed: int | None = None,
        engine: Engine | str | None = None,
        annealing: float = 0.0,
        progress_bar: bool = True,
        checkpoint: Path | None = None,
        checkpoint_seconds: float = 60.0,
    ):
        check_guide(guide, "VI")
        check_file(checkpoint, checkpoint_seconds)
        check_executor("VI", executor)
        if executor is not None and callback is not None:
            raise ValueError(
                "VI: with executor= training is elsewhere, where no callback is called; leave out one of them"
            )
        self._source, self.executor = source_of(start), executor
        self.guide, self.checkpoint, self.checkpoint_seconds = guide, checkpoint, checkpoint_seconds
        self.plan = Plan.asked(
            "VI",
            objective=objective,
            engine=engine,
            annealing=annealing,
            seed=seed,
            num_steps=num_steps,
            num_starts=num_starts,
            effort=effort,
            max_seconds=max_seconds,
            callback=callback,
            optim=optim,
            progress_bar=progress_bar,
        )
        self._posterior = None
        self._fitter: Fitter | None = None

    @exclusive()
    def run(self, *args: Any, minibatches: Iterable[Any] | None = None, **kwargs: Any) -> "VI":
        """Fit the guide to the model at these arguments.

        ``Ctrl-C`` stops training and keeps what has been reached; the second one stops that too. Called again, it
        trains further, also where no training was needed. If the run fails, guide and draws stay as they were.

        With ``run(minibatches=loader)`` the model is one of a minibatch, and takes what the loader gives: a tuple by
        position, a dict by name. How many rows there are in all is said by its plate, as in
        ``pyro.plate("data", N, subsample_size=len(x))``; where each row has latents, a minibatch has the rows'
        numbers too, for ``subsample=index``. One pass over the loader is made; where its rows are more than 256 MB,
        they are kept in a temporary file, so that they need not fit into memory.

        :param args: the model's arguments, with ``kwargs``. NumPy arrays, columns of data frames and lists of numbers
            become tensors of torch's default dtype (:mod:`pyro_nflows.model.arrays`).
        :param minibatches: a ``torch.utils.data.DataLoader``, or another iterable of batches, in the place of
            arguments by position.
        :return: this object.
        :raises ValueError: if the model cannot be started (the site is named), or is not one this guide can fit; or if
            the checkpoint is damaged, or of other data or settings.
        :raises TypeError: if the model cannot use an argument that is a data frame, or an array of no numbers.
        :raises MemoryError: if there is not enough memory even for a start. Where training has begun, it ends, and what
            has been reached is judged.
        """
        with self._explaining_memory("VI.run"):
            refuse_loader(args, kwargs)
            guide, call = self.guide, arguments("VI.run", self.guide.bare_model, args, kwargs)
            if minibatches is not None:
                with seeded(self.plan.seed or 0):
                    guide, call = of_minibatches("VI.run", guide, minibatches, args, kwargs)
            ranks = ranks_here()
            agree("VI.run", ranks, guide, call, self.plan)
            if ranks.follows:
                self._keep(self._finished(followed(ranks, guide, call), guide, call))
                return self
            with leading(ranks, guide, call, lambda: cast(Posterior, self._posterior).state()):
                checkpoint = self._checkpoint(call)
                if checkpoint is not None and checkpoint.fit is not None:
                    self._keep(self._finished(checkpoint.fit, guide, call))
                    return self
                if self._fitter is None or self._fitter.guide is not guide:
                    self._fitter = Fitter(guide)
                workers = self.executor or (ranks if ranks.has_peers else None)
                try:
                    source = self._source if self._posterior is None else None
                    plan = replace(self.plan, goes_on=self._goes_on(call), is_warm=source is not None, workers=workers)
                    with self._fitter.ready(plan, call, self._keep, checkpoint, source=source) as ready:
                        share(ranks, ready.trainer, guide, ready.joint, plan)
                        fit = fit_apart if is_apart(plan, ready.trainer, guide) else fit_all
                        self._fitter.judge(plan, ready, fit(ready.trainer, guide, plan, ready.locs))
                except RowsAreSubsampled:
                    if self._source is not None:
                        raise ValueError(
                            "VI: a fit by minibatches has no start= from another fit; leave it out"
                        ) from None
                    plan = replace(self.plan, goes_on=self._goes_on(call), workers=workers)
                    share_rows(plan.ranks, guide, call, plan.engine)
                    run_minibatches(guide, plan, call, self._keep, checkpoint)
        return self

    @contextlib.contextmanager
    def _explaining_memory(self, who: str) -> Iterator[None]:
        """Say what to do where there is not enough memory; a fit that is there already is kept."""
        before = self._posterior
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error) or (isinstance(error, OutOfMemory) and self._posterior is before):
                raise
            if self._posterior is before:
                raise explained(error, f"{who}: there is not enough memory for this fit", LESS_MEMORY) from error
            text = f"{who}: there was not enough memory to judge this fit further; its draws and their weights are kept"
            warnings.warn(f"{text}. To have all of it, {LESS_MEMORY}", stacklevel=4)

    @exclusive()
    def judge(self, *args: Any, **kwargs: Any) -> "VI":
        """Judge the guide as it is, at these arguments of the model, without training it.

        For a guide that ``SVI`` has trained, that was loaded, or whose data have changed: draws, evidence and the
        verdict are then as after :meth:`run`, except that nothing is fitted again where something is found to be
        missing. The guide itself is left as it is, and so are its draws. Its rows in subsampled plates may have an
        encoder (``amortize=``).

        :return: this object.
        :raises ValueError: if the model cannot be evaluated (the site is named), or is not one this guide can be of.

        Example::

            >>> import pyro, torch, pyro.distributions as dist
            >>> def model(y):
            ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
            ...     pyro.sample("y", dist.Normal(z, 1.0), obs=y)
            ...
            >>> guide = AutoFlow(model, init_scale=5.0)
            >>> VI(guide, seed=0, progress_bar=False).judge(torch.tensor(0.5)).verdict().outcome.name
            'RESAMPLED'
        """
        with self._explaining_memory("VI.judge"):
            call = arguments("VI.judge", self.guide.bare_model, args, kwargs)
            self._posterior = judged_as_it_is(self.guide, self.plan, call)
        return self

    def _goes_on(self, call: Call) -> bool:
        """Whether a run found at these very arguments that its start was right: who runs again wants it trained."""
        last = self._posterior
        if last is None or last.call is None or not last.history.was_right:
            return False
        return described(last.call) == described(call)

    def _finished(self, fit: dict[str, Any], guide: AutoFlow, call: Call) -> Posterior:
        """The fit of a checkpoint's run that is complete."""
        with seeded(0):  # the model is run for its structure
            found = take_fit(fit, guide, call)
        return found if isinstance(found, RowPosterior) else replace(found, seed=self.plan.seed)

    def _checkpoint(self, call: Call) -> Checkpoint | None:
        if self.checkpoint is None:
            return None
        guide = f"{type(self.guide).__name__}(init_scale={self.guide.init_scale})"
        begins = {"guide": guide, "start": "the guide's own" if self._source is None else "another fit"}
        return Checkpoint(self.checkpoint, self.checkpoint_seconds, {**begins, **self.plan.described()}, call)

    def _keep(self, posterior: Posterior) -> None:
        with uninterrupted():
            if posterior.guide is not self.guide:  # it is of the model of all rows, this one's of a minibatch
                self.guide.restore(posterior.guide.coordinates)
                posterior.give_to(posterior.guide)
            if self.guide.layer is not posterior.layer:
                posterior.give_to(self.guide)
            self._posterior = posterior

    @staticmethod
    def load(path: Path, guide: AutoFlow, *args: Any, minibatches: Iterable[Any] | None = None, **kwargs: Any) -> "VI":
        """Read what ``save`` wrote into a fresh guide of the same model.

        Without the model's arguments, there are the saved draws and the verdict, but nothing that runs the model.

        :param path: the file. Nothing in it is run: it holds tensors and plain values only.
        :param guide: ``AutoFlow(model)``, or whichever guide was saved.
        :param args: the model's arguments, with ``kwargs``: the same data, on whose device the fit will be.
        :param minibatches: as for :meth:`run`, with the same data.
        :raises OSError: if there is no such file.
        :raises ValueError: if the file is empty, cut, damaged, no file of this package or of another version of it; or
            of another kind of guide, another model, or other data.
        """
        vi = VI(guide)
        with exclusive(), seeded(0):  # the model is run for its structure
            inner, call = guide, arguments("VI.load", guide.bare_model, args, kwargs)
            if minibatches is not None:
                inner, call = of_minibatches("VI.load", guide, minibatches, args, kwargs)
            vi._keep(load_fit(path, inner, call))
        return vi

    def __getstate__(self) -> dict[str, Any]:
        shared = self._posterior is not None and self._posterior.guide is self.guide
        guide = {} if shared else packed(self.guide, None)
        source = self._source if self._posterior is None else None  # it has been used
        return {**self.__dict__, "_fitter": None, "executor": None, "_source": source, "guide": None, **guide}

    def __setstate__(self, state: dict[str, Any]) -> None:
        guide = unpacked(state)[0] if is_packed(state) else state["_posterior"].guide
        self.__dict__.update({**state, "guide": guide})

    def __deepcopy__(self, memo: dict[int, Any]) -> "VI":
        new = VI.__new__(VI)
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy({**self.__dict__, "_fitter": None, "executor": None}, memo))
        new.executor = self.executor
        return new
