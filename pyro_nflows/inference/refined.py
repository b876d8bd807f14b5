"""What Markov chains have left: draws, whether they have mixed, a table, and what ArviZ can use."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ..arviz import Options
from ..checks import check_flags, check_sizes
from ..diagnostics.mixing import ess_bulk, ess_tail, r_hat, worst_of
from ..diagnostics.summary import Summary
from ..diagnostics.verdict import Sentences, Verdict
from ..guides import AutoFlow
from ..layers.base import Layer
from ..numerics import LogDensity
from ..system.exclusive import exclusive, seeded
from ..system.memory import enough
from .chains import Advanced, Chains
from .exported import warn_of
from .shown import coloured

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: R-hat below which chains count as mixed, and the least effective sample size of a parameter.
MIXED, ENOUGH = 1.01, 400


class Mixing(Sentences):
    """What chains say of themselves. The value is the sentence, its numbers to be filled in."""

    MIXED = "Trust these draws: R-hat is {r_hat:.3f} and the least effective sample size {ess:.0f}."
    APART = (
        "Do not trust these draws yet: R-hat is {r_hat:.3f} and the least effective sample size {ess:.0f} (they should "
        "be below {mixed} and above {enough}); draw more with refined.more(), or train the guide further."
    )
    PROPOSALS = (
        "Do not trust these draws: their proposals are the guide's own, and k-hat of its weights is {k:.2f}, which "
        "is too much. Where the guide has hardly any draws the chains seldom go, which R-hat ({r_hat:.3f}) does not "
        "see; take method='nuts', or train the guide further."
    )


class Source(Protocol):
    """What chains were made from: a :class:`~pyro_nflows.inference.posterior.Posterior`."""

    @property
    def guide(self) -> AutoFlow:
        """What the latents are."""

    def sites_at(self, z: Tensor) -> dict[str, Tensor]:
        """Each site's value in its own space at flat unconstrained draws."""

    def own_parameters(self) -> AbstractContextManager[None]:
        """Within it, the model's own parameters are as they were fitted."""

    def log_joint(self) -> LogDensity:
        """The model's log density."""

    def described(self, z: Tensor, stats: dict[str, Tensor], facts: dict[str, Any], seed: int, **options: Any) -> Any:
        """Draws ``(num_chains, num_samples, D)`` as ArviZ data."""


class Refined:
    """Posterior draws from chains.

    :param source: what they were made from.
    :param z: flat unconstrained draws, ``(num_chains, num_samples, latent_dim)``.
    :param accepted: mean share of accepted proposals.
    :param chains: where the chains are; None if they cannot go on.
    :param layer: from the chains' coordinates to ``z``, if they are others.
    :param seed: of the random numbers with which they go on.
    :param pareto_k: of the guide's weights, where its draws were the proposals and that is too much.
    """

    def __init__(
        self,
        source: Source,
        z: Tensor,
        accepted: float,
        chains: Chains | None = None,
        layer: Layer | None = None,
        seed: int = 0,
        pareto_k: float | None = None,
    ):
        self.source, self.z, self.accepted = source, z, accepted
        self._chains, self._layer, self._seed, self.pareto_k = chains, layer, seed, pareto_k
        self._samples = self._sites()
        self.r_hat, self.ess = worst_of(self._scalars())

    def _scalars(self) -> list[Tensor]:
        """Every scalar of every site, ``(num_chains, num_samples)`` each."""
        values = self.get_samples(group_by_chain=True).values()
        return (
            [scalar for value in values for scalar in value.reshape(*self.z.shape[:2], -1).unbind(2)]
            if self.z.numel()
            else []
        )

    @exclusive()
    @torch.no_grad()
    def _sites(self) -> dict[str, Tensor]:
        return self.source.sites_at(self.z.flatten(0, 1))

    def get_samples(self, *, group_by_chain: bool = False) -> dict[str, Tensor]:
        """A dict from site to ``(num_chains * num_samples, *site shape)``, or with chains apart."""
        check_flags("get_samples", group_by_chain=group_by_chain)
        if not group_by_chain:
            return dict(self._samples)
        return {name: value.unflatten(0, self.z.shape[:2]) for name, value in self._samples.items()}

    @exclusive()
    def more(self, num_samples: int = 1000, *, seed: int | None = None, progress_bar: bool = False) -> "Refined":
        """The same chains, longer: they go on where they are, with the step sizes that they have found.

        :param num_samples: further draws a chain.
        :param seed: of their random numbers; by default one that follows from that of the draws so far.
        :param progress_bar: whether to show one, for NUTS.
        :return: another object, with the draws of this one and the further ones.
        :raises ValueError: if the chains cannot go on, as after unpickling.
        """
        check_sizes("more", num_samples=num_samples)
        if self._chains is None:
            raise ValueError(
                "more: these draws came back without their chains, which cannot go on; call refine() again"
            )
        seed = self._seed if seed is None else seed
        num_before = self.z.shape[1]
        num, each = len(self.z) * (num_before + num_samples), self.z.shape[2] * self.z.dtype.itemsize
        with enough("more", f"{num:,} draws", 2 * num * each, "ask for fewer", self.z.device):
            new, follow = further(self.source, self._chains, num_samples, progress_bar, seed)
            accepted = (num_before * self.accepted + num_samples * new.accepted) / (num_before + num_samples)
            z = torch.cat([self.z, at(self._layer, new.x)], 1)
            return Refined(self.source, z, accepted, new.chains, self._layer, follow, self.pareto_k)

    @property
    def mixed(self) -> bool:
        """Whether the chains agree, and are worth enough draws."""
        return self.r_hat < MIXED and self.ess >= ENOUGH

    def verdict(self) -> Verdict[Mixing]:
        """What to make of the draws: an outcome and one sentence."""
        outcome = Mixing.MIXED if self.mixed else Mixing.APART
        if self.mixed and self.pareto_k is not None:
            outcome = Mixing.PROPOSALS
        numbers = {"r_hat": self.r_hat, "ess": self.ess, "mixed": MIXED, "enough": ENOUGH, "k": self.pareto_k}
        return Verdict(outcome, outcome.value.format(**numbers))

    def summary(self, var_names: Sequence[str] | str | None = None, *, kind: str = "all", prob: float = 0.9) -> Summary:
        """Print a table of the parameters, and what to make of them; see :meth:`pyro_nflows.VI.summary`.

        Its diagnostics are ``mcse``, ``ess_bulk``, ``ess_tail`` and ``r_hat``.
        """
        summary = self._summarised(var_names, kind, prob)
        print(summary)
        return summary

    def _summarised(
        self, var_names: Sequence[str] | str | None = None, kind: str = "all", prob: float = 0.9
    ) -> Summary:
        notes = [self._told(), str(self.verdict())]
        return Summary(self._samples, self._worth, var_names=var_names, kind=kind, prob=prob, notes=notes)

    def _told(self) -> str:
        return f"{self.z.shape[0]} chains of {self.z.shape[1]}, {self.accepted:.0%} accepted"

    def _worth(self, _: str, values: Tensor) -> dict[str, float]:
        chains = values.view(self.z.shape[:2])
        bulk = ess_bulk(chains)
        mcse = float(values.std()) / bulk**0.5 if bulk > 0 else torch.nan
        return {"mcse": mcse, "ess_bulk": bulk, "ess_tail": ess_tail(chains), "r_hat": r_hat(chains)}

    def __repr__(self) -> str:
        return f"Refined: {self._told()}\n{self.verdict()}"

    def _repr_html_(self) -> str:
        verdict = self.verdict()
        said = coloured(str(verdict), verdict.outcome is Mixing.MIXED)
        return f"{said}<p>{self._told()}</p>{self._summarised().to_html()}"

    @exclusive()
    def to_arviz(
        self,
        *,
        untrusted: bool = False,
        seed: int = 0,
        **options: "Unpack[Options]",
    ) -> Any:
        """The chains and all that ArviZ can use; the groups are those of :meth:`pyro_nflows.VI.to_arviz`.

        Draws of chains have no weights: ``sample_stats`` holds ``lp``. The attributes hold ``verdict``,
        ``verdict_sentence``, ``trusted``, ``r_hat``, ``ess_least`` and ``accepted``.

        :param untrusted: whether the export of chains that are not to be trusted is wanted; else there is a warning.
        :param seed: of replicated data and draws of the prior.
        :param options: ``log_likelihood``, ``unconstrained``, ``predictions``, ``fresh``, ``coords`` and ``dims``, as
            there.
        :raises ValueError: if the model's arguments are not at hand, or a name is none of the model's.
        """
        verdict = self.verdict()
        trusted = verdict.outcome is Mixing.MIXED
        warn_of(verdict, trusted, untrusted)
        about = {
            "verdict": verdict.outcome.name,
            "verdict_sentence": verdict.sentence,
            "trusted": trusted,
            "resampled": False,
            "weights": "equal",
            "r_hat": self.r_hat,
            "ess_least": self.ess,
            "accepted": self.accepted,
        }
        with torch.no_grad(), self.source.own_parameters():
            lp = self.source.log_joint()(self.z.flatten(0, 1)).unflatten(0, self.z.shape[:2])
        return self.source.described(self.z, {"lp": lp}, about, seed, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_chains": None, "_layer": None}  # densities are functions, which cannot be pickled


def further(source: Source, chains: Chains, num_samples: int, progress_bar: bool, seed: int) -> tuple[Advanced, int]:
    """Further draws, and the seed that follows."""
    with seeded(seed), source.own_parameters():
        return chains.advance(num_samples, progress_bar), next_seed()


def next_seed() -> int:
    """A seed for what comes next."""
    return int(torch.randint(2**31, ()))


@torch.no_grad()
def at(layer: Layer | None, x: Tensor) -> Tensor:
    """From the chains' coordinates to those of the latents."""
    return x if layer is None else layer(x)[0]
