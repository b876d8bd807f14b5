r"""``Posterior``: what a run of :class:`~pyro_nflows.VI` leaves behind, and all that can be asked of it."""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..arviz import Options, to_arviz
from ..checks import check_sizes, counted, row_numbers
from ..diagnostics.findings import Faults, MissedMass, Subsampled
from ..diagnostics.moves import Redrawn, Settled
from ..diagnostics.resampling import chosen
from ..engine import AllRows, DensityGradient, History, sample
from ..flows.whitened import Whitened
from ..guides import AutoFlow
from ..layers import Rescaled
from ..model.bound import BoundModel
from ..model.log_joint import LogJoint
from ..numerics import LogDensity
from ..objectives.draws import Draws, concatenate
from ..system.exclusive import exclusive, seeded
from ..system.memory import enough
from ..system.randomness import forked
from .all_rows import over_all_rows
from .fitted import sound
from .mark import put
from .predicted import predicted
from .redrawn import redrawn
from .refine import refine
from .refined import Refined
from .stationary import further
from .written import Written

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: A model's arguments.
Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, eq=False, repr=False)
class Posterior(Written):
    r"""Weighted draws of a trained guide, the evidence about them, and the verdict; nothing of it changes.

    ``VI(guide).run(data).posterior`` is one. A later run of the same ``VI``, or of the guide, leaves it as it is.

    :param guide: what the latents are, and the model.
    :param layer: the trained flow.
    :param call: the model's arguments; None where they are not at hand.
    :param draws: of the flow, flat and unconstrained, with :math:`\log p` and :math:`\log q`; or those of Markov chains
        that have moved them, all of which count the same, :math:`\log q = \log p`; or such of which the flow has some
        latents only, :math:`\log q` being the density that they were drawn from.
    :param starts: the draws of each start's fit.
    :param history: what training has seen.
    :param missed: mass that the guide misses.
    :param faults: what keeps the fit from being good.
    :param subsampled: the model's subsampled plates, and whether :math:`\log p` is over all of their rows.
    :param modes: components and block size of the mixture at the flow's base, if it has one.
    :param leaves: values of the model's own parameters.
    :param values: the draws of each site in its own space, where they cannot be computed from ``draws``.
    :param seed: of the run, if it had one, and of the random numbers of :meth:`refine` and :meth:`to_arviz`.
    :param absent: why there are no arguments, where there are none.
    :param own: the flow's own draws, where chains have moved them, or most latents were drawn anew.
    :param settled: how chains have settled.
    :param redrawn: what was drawn anew.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro_nflows import VI, AutoFlow
        >>> def model(y):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        ...
        >>> vi = VI(AutoFlow(model), num_steps=50, seed=0, progress_bar=False)
        >>> first, second = (vi.run(torch.tensor(y)).posterior for y in (0.0, 4.0))
        >>> [round(posterior.get_samples(4000)["z"].mean().item()) for posterior in (first, second)]
        [0, 2]
    """

    guide: AutoFlow
    layer: Rescaled
    call: Call | None
    draws: Draws
    starts: Sequence[Draws] = ()
    history: History = field(default_factory=History)
    missed: MissedMass = field(default_factory=MissedMass)
    faults: Faults = field(default_factory=Faults)
    subsampled: Subsampled = field(default_factory=Subsampled)
    modes: tuple[int, int] | None = None
    leaves: Sequence[Tensor] = ()
    values: dict[str, Tensor] | None = None
    seed: int | None = None
    absent: str = "was loaded without its data"
    own: Draws | None = None
    settled: Settled | None = None
    redrawn: Redrawn | None = None

    # ---- draws ----------------------------------------------------------------------------------------------

    @exclusive()
    @torch.no_grad()
    def get_samples(self, num_samples: int = 1000, *, resample: bool | None = None) -> dict[str, Tensor]:
        """Posterior draws, as ``MCMC.get_samples`` gives them; see :meth:`pyro_nflows.VI.get_samples`."""
        source = (self if resample is not False else self.unmoved()).with_draws(num_samples)
        with self.room("get_samples", num_samples):
            return source.constrained(chosen(source.draws.log_weight, num_samples, resample))

    @exclusive()
    @torch.no_grad()
    def with_draws(self, num_samples: int, who: str = "get_samples") -> "Posterior":
        """This posterior, with so many draws at least: further ones come from the flow, or chains go on.

        :param who: is asked; messages begin with it.
        :raises ValueError: if there are fewer, and the model's arguments are not at hand.
        :raises MemoryError: if there is not enough memory for them.
        """
        check_sizes(who, num_samples=num_samples)
        missing = num_samples - len(self.draws.z)
        if missing <= 0:
            return self
        with self.room(who, num_samples):
            if self.settled is not None:
                more = self._moved_on(self.settled, missing)
            else:
                more = self._further(missing) if self.redrawn is None else self._redrawn(missing)
            return replace(self, draws=concatenate([self.draws, more]), values=None)

    def room(self, who: str, num_samples: int) -> AbstractContextManager[None]:
        """Within it, that there is not enough memory for so many draws is said in a sentence.

        :param who: is asked; messages begin with it.
        """
        z = self.draws.z
        asked = f"{counted(num_samples, 'draw')} of {counted(z.shape[1], 'number')}"
        num_bytes = num_samples * (3 * z.shape[1] * z.dtype.itemsize + 32)  # as noise, in parts and as a whole
        return enough(who, asked, num_bytes, "ask for fewer; those that there were are kept", z.device)

    def unmoved(self) -> "Posterior":
        """The same with the flow's own draws, wherever chains have moved them or most latents were drawn anew."""
        if self.own is None:
            return self
        if self.guide.latents.moving:  # the values of these are not kept
            self._need_call()
        return replace(self, draws=self.own, own=None, settled=None, redrawn=None, values=None)

    def moved(self, draws: Draws, settled: Settled) -> "Posterior":
        """The same with draws of chains that have moved the flow's own."""
        return replace(self, draws=draws, own=self.of_guide, settled=settled, redrawn=None, values=None)

    def _moved_on(self, settled: Settled, num_samples: int) -> Draws:
        """Further draws of chains."""
        seed = (self.seed or 0) + len(self.draws.z)
        joint = self.log_joint()
        with seeded(seed), self.own_parameters():
            return further(joint, self.layer.plain(), self.draws, settled, num_samples)

    def _redrawn(self, num_samples: int) -> Draws:
        """Further draws of the flow's hubs, with all others drawn anew."""
        joint = self.log_joint()
        with seeded((self.seed or 0) + len(self.draws.z)), self.own_parameters():
            return sound(redrawn(joint, DensityGradient(joint), cast(Whitened, self.layer.plain()), num_samples))

    def _further(self, num_samples: int) -> Draws:
        """Fresh draws with their weights."""
        with self.own_parameters():
            return sound(sample(self.log_joint(), self.layer, num_samples))

    def log_joint(self) -> LogDensity:
        """The model's log density at the data of the run: of rows of the flat unconstrained latent.

        :raises ValueError: if the model's arguments are not at hand.
        """
        args, kwargs = self._need_call()
        joint = LogJoint(BoundModel(self.guide.bare_model, args, kwargs), self.guide.latents)
        joint.start = self.draws.z[self.draws.log_p.argmax()]
        self.guide.receive(args, kwargs, joint.start)
        found = self.subsampled.plates and over_all_rows(joint)[0]
        return AllRows(found) if found else joint

    def constrained(self, index: Tensor) -> dict[str, Tensor]:
        """Some of the draws, by their numbers, each site in its own space."""
        index = row_numbers("constrained", "index", index, len(self.draws.z))
        if self.values is None:
            return self.sites_at(self.draws.z[index])
        return {name: value[index] for name, value in self.values.items()}

    def sites_at(self, z: Tensor) -> dict[str, Tensor]:
        """Each site in its own space at flat unconstrained draws, on its support at this posterior's data.

        :param z: ``(num_samples, D)``; the guide may have been given other data since.
        """
        args, kwargs = self.call or ((), {})
        with self.own_parameters() if self.guide.latents.moving else contextlib.nullcontext():
            return self.guide.constrain(z, *args, **kwargs)

    @exclusive()
    @torch.no_grad()
    def predict(
        self, *args: Any, num_samples: int = 1000, fresh: Sequence[str] = (), seed: int | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Data at other arguments of the model; see :meth:`pyro_nflows.VI.predict`."""
        samples = self.with_draws(num_samples, "predict").get_samples(num_samples)
        with self.room("predict", num_samples), self.own_parameters():
            return predicted(self.guide.bare_model, samples, fresh, seed, args, kwargs, self.numbered)

    @exclusive()
    def refine(
        self,
        num_samples: int = 1000,
        warmup_steps: int = 300,
        num_chains: int = 4,
        method: str = "nuts",
        progress_bar: bool = True,
        seed: int | None = None,
    ) -> Refined:
        """Markov chains that use the trained flow; see :meth:`pyro_nflows.VI.refine`.

        :param progress_bar: whether to show one, for NUTS.
        """
        seed = self.seed if seed is None else seed
        seed = int(torch.randint(2**31, ())) if seed is None else seed
        check_sizes("refine", num_samples=num_samples, warmup_steps=warmup_steps, num_chains=num_chains)
        with self.room("refine", num_chains * num_samples), self.own_parameters():
            joint = self.log_joint()
            return refine(
                self,
                joint.in_one if isinstance(joint, AllRows) else joint,
                self.layer,
                self.of_guide if method == "independence" else self.draws,
                self._further,
                method=method,
                num_samples=num_samples,
                warmup_steps=warmup_steps,
                num_chains=num_chains,
                progress_bar=progress_bar,
                seed=seed,
            )

    @exclusive()
    def to_arviz(
        self,
        num_samples: int = 4000,
        *,
        resample: bool | None = None,
        num_chains: int | None = None,
        untrusted: bool = False,
        **options: "Unpack[Options]",
    ) -> Any:
        """The draws and all that ArviZ can use; see :meth:`pyro_nflows.VI.to_arviz`."""
        self._need_call()
        source = self if resample is not False else self.unmoved()
        several = len(self.starts) > 1 and source.settled is None
        parts = self.starts if several else [source.with_draws(num_samples, "to_arviz").draws]
        with self.room("to_arviz", num_samples):
            export = self.exported(parts, num_samples, num_chains, resample, untrusted)
            z, stats = export.by_chain({"z": export.draws.z})["z"], export.by_chain(export.stats())
            return self.described(z, stats, self.facts_of(export), self.seed or 0, **options)

    def described(self, z: Tensor, stats: dict[str, Tensor], facts: dict[str, Any], seed: int, **options: Any) -> Any:
        """Draws as ArviZ data, with all that the model says of them.

        :param z: flat and unconstrained, ``(num_chains, num_samples, D)``.
        :param stats: of each draw.
        :param facts: for the attributes.
        :param seed: of replicated data and draws of the prior.
        :param options: of :func:`pyro_nflows.arviz.to_arviz`.
        """
        args, kwargs = self._need_call()
        with self.own_parameters():
            sites = {name: value.unflatten(0, z.shape[:2]) for name, value in self.sites_at(z.flatten(0, 1)).items()}
            about: dict[str, Any] = {"sample_stats": stats, "attrs": facts, "seed": seed, "group_by_chain": True}
            return to_arviz(self.guide.bare_model, sites, args, kwargs, **about, **options)

    @contextlib.contextmanager
    def own_parameters(self) -> Iterator[None]:
        """Within it, the model's own parameters are as this run left them; a later one may have moved them."""
        if self.call is None or not self.leaves:
            yield
            return
        leaves = self.own_leaves(self.call)
        before = [leaf.detach().clone() for leaf in leaves]
        try:
            with torch.no_grad():
                put(leaves, self.leaves)
            yield
        finally:
            with torch.no_grad():
                put(leaves, before)

    def own_leaves(self, call: Call) -> list[Tensor]:
        """The trainable tensors of the model's own, as they are now, at some arguments."""
        with forked():
            return LogJoint(BoundModel(self.guide.bare_model, *call), self.guide.latents).leaves(self.draws.z[0])

    def _need_call(self) -> Call:
        if self.call is None:
            raise ValueError(
                f"this VI {self.absent}, so it has only its {len(self.draws.z)} saved draws; ask for no "
                "more and for nothing that runs the model, or load it with the model and its data, or run again"
            )
        return self.call
