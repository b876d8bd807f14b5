r"""Which draws of a fit go to ArviZ, the weights that belong to them, and what is said of them there.

Draws and weights are of one law. Raw draws come from the guide: ``log_q`` is its density, and
:math:`\log w = \log p - \log q` says how much each counts. Resampled draws come from the posterior: they all count the
same, so ``log_q`` is ``lp``, known up to a constant as that is, and ``log_weight`` is 0. Whatever weighs draws by
``lp - log_q``, as ``az.loo_approximate_posterior`` does, is right with either.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import check_flags, check_sizes
from ..diagnostics.resampling import choose, is_resampled
from ..diagnostics.verdict import Outcome, Verdict
from ..objectives.draws import Draws, concatenate
from ..system.frames import user_level

#: Facts of a fit that are attributes by the same name.
SAME = ("ess", "pareto_k", "elbo", "elbo_se", "elbo_trimmed", "elbo_trimmed_se", "num_outliers", "num_steps")


class UntrustedWarning(UserWarning):
    """What is exported is not to be trusted, as its verdict says."""


class Export(NamedTuple):
    """Draws for ArviZ.

    :param draws: those of the first chain, then those of the next.
    :param num_chains: all of one length.
    :param resampled: whether they have been importance-resampled.
    """

    draws: Draws
    num_chains: int
    resampled: bool

    def stats(self) -> dict[str, Tensor]:
        """Of each draw the log densities of the model and of the law it comes from, and the log-weight."""
        lp, guide = self.draws.log_p, self.draws.log_q
        if not self.resampled:
            return {"lp": lp, "log_q": guide, "log_weight": self.draws.log_weight}
        known = {} if torch.equal(guide, lp) else {"log_guide": guide}  # of draws that chains have left, it is not
        return {"lp": lp, "log_q": lp, "log_weight": torch.zeros_like(lp), **known}

    def by_chain(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values of all draws, with a leading dimension of chains."""
        return {name: value.unflatten(0, (self.num_chains, -1)) for name, value in values.items()}


def chosen(parts: Sequence[Draws], num_samples: int, num_chains: int | None, resample: bool | None) -> Export:
    """Draws of equal number from each of the parts, in chains.

    :param parts: draws of one fit, or those of several starts.
    :param num_samples: how many in all.
    :param num_chains: by default one for each part.
    :param resample: by default, where every part's weights allow it.
    :raises ValueError: if the draws cannot be put into so many chains.
    """
    num_parts = len(parts)
    num_chains = num_parts if num_chains is None else num_chains
    check_sizes("to_arviz", num_samples=num_samples, num_chains=num_chains)
    if num_chains % num_parts or num_samples < num_chains:
        least = f"a multiple of {num_parts}, the number of starts, and " if num_parts > 1 else ""
        raise ValueError(
            f"to_arviz: got num_chains={num_chains} and num_samples={num_samples}, expected num_chains to be {least}"
            "at most num_samples"
        )
    resample = all(is_resampled(part.log_weight) for part in parts) if resample is None else resample
    least_draws = min(len(part.z) for part in parts)
    length = min(num_samples // num_parts, least_draws) * num_parts // num_chains
    each = length * num_chains // num_parts
    return Export(concatenate([choose(part, each, resample) for part in parts]), num_chains, resample)


def facts(found: Mapping[str, Any], verdict: Verdict[Outcome], seed: int | None, resampled: bool) -> dict[str, Any]:
    """What is to be known of the draws, for the attributes of the export.

    :param found: as ``VI.diagnostics`` gives it.
    :param verdict: of the fit.
    :param seed: of the run, where it was given.
    :param resampled: whether the draws have been importance-resampled.
    """
    about = {
        "verdict": verdict.outcome.name,
        "verdict_sentence": verdict.sentence,
        "trusted": verdict.outcome.is_trusted,
        "resampled": resampled,
        "weights": "equal" if resampled else "exp(log_weight): the draws are the guide's own",
        **{name: found[name] for name in SAME},
        "log_evidence": found["iwae"],
        "log_evidence_se": found["iwae_se"],
        "sampling_time": found["seconds"],
    }
    return about if seed is None else {**about, "seed": seed}


def warn_of(verdict: Verdict[Any], is_trusted: bool, is_wanted: bool) -> None:
    """Say aloud that an export is not to be trusted.

    :param verdict: on what is exported.
    :param is_trusted: whether it is that of trusted draws.
    :param is_wanted: whether it is known to be none.
    """
    check_flags("to_arviz", untrusted=is_wanted)
    if not (is_trusted or is_wanted):
        warnings.warn(
            f"to_arviz: ArviZ's own diagnostics do not see this, but: {verdict.sentence} The attributes of the export "
            "say so too; to_arviz(untrusted=True) exports it without this warning.",
            UntrustedWarning,
            stacklevel=user_level(),
        )
