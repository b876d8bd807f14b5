r"""Models beside each other: what the data say of each, as evidence and as predictions of rows that were left out.

With :math:`\log Z_m` the log evidence of model :math:`m` and :math:`\pi_m` its weight before the data, its weight given
them is

.. math:: w_m = \frac{\pi_m Z_m}{\sum_k \pi_k Z_k} .

The evidence depends on priors, and leave-one-out cross-validation (LOO) hardly does: they answer different questions,
which model the data came from, and which one predicts the next row.
"""

import html
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arviz.pointwise import Elpd, elpd_of, observed
from ..system.frames import user_level
from .posterior import Posterior
from .results import Results

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped]


class DifferentDataWarning(UserWarning):
    """Models that are compared were fitted to different data."""


@dataclass(frozen=True)
class Compared:
    """One model among others.

    :param log_evidence: with its standard error ``log_evidence_se``.
    :param log_bayes_factor: the log evidence less that of the best model, with its standard error.
    :param weight: given the data.
    :param elpd_loo: the expected log predictive density of a row that was left out, summed over rows; NaN where the
        model has no rows of data. With its standard error ``elpd_loo_se``.
    """

    log_evidence: float
    log_evidence_se: float
    log_bayes_factor: float
    log_bayes_factor_se: float
    weight: float
    elpd_loo: float
    elpd_loo_se: float


@dataclass(frozen=True, repr=False)
class Comparison:
    """What :func:`~pyro_nflows.compare` found; the best model by evidence and weight is first.

    :param models: by name.
    :param sentence: what to make of it.
    """

    models: Mapping[str, Compared]
    sentence: str

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each model given the data."""
        return {name: model.weight for name, model in self.models.items()}

    @property
    def frame(self) -> "DataFrame":
        """A row for each model."""
        import pandas

        rows = [asdict(model) for model in self.models.values()]
        return pandas.DataFrame(rows, index=pandas.Index(list(self.models), name="model"))

    def __repr__(self) -> str:
        width = max(len(name) for name in (*self.models, "model"))
        heads = ("log evidence", "log Bayes factor", "weight", "LOO")
        lines = [f"{'model':<{width}}" + "".join(f"{head:>20}" for head in heads)]
        for name, m in self.models.items():
            parts = (
                f"{m.log_evidence:.2f} ± {m.log_evidence_se:.2f}",
                f"{m.log_bayes_factor:.2f} ± {m.log_bayes_factor_se:.2f}",
                f"{m.weight:.3f}",
                f"{m.elpd_loo:.1f} ± {m.elpd_loo_se:.1f}" if math.isfinite(m.elpd_loo) else "-",
            )
            lines.append(f"{name:<{width}}" + "".join(f"{part:>20}" for part in parts))
        return "\n".join([*lines, self.sentence])

    def _repr_html_(self) -> str:
        return f"<p><b>{html.escape(self.sentence)}</b></p>{self.frame.to_html(float_format='{:.3f}'.format)}"


def compare(
    fits: Mapping[str, Results | Posterior],
    *,
    prior_weights: Mapping[str, float] | None = None,
    loo: bool = True,
    untrusted: bool = False,
) -> Comparison:
    """Compare models that were fitted to the same data.

    :param fits: a run :class:`~pyro_nflows.VI`, or its posterior, for each model by its name.
    :param prior_weights: of the models before the data, by name; by default all are equal.
    :param loo: whether to have LOO too, by Pareto-smoothed importance sampling (``az.loo``).
    :param untrusted: whether to compare fits although the verdict does not trust them all.
    :return: a table (``.frame``), the ``weights`` and a sentence.
    :raises ValueError: for fewer than two models, fits that are not to be trusted, or weights that are not positive
        numbers, one for each model.
    :raises TypeError: for what is not a fit.

    A :class:`DifferentDataWarning` says where the models were fitted to different data.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_nflows import VI, AutoFlow
        >>> def model(sd, y):
        ...     z = pyro.sample("z", dist.Normal(0.0, sd))
        ...     with pyro.plate("row", len(y)):
        ...         pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        ...
        >>> y = torch.tensor([2.0, 1.0, 2.5])
        >>> fits = {f"sd {sd}": VI(AutoFlow(model), seed=0, progress_bar=False).run(sd, y) for sd in (0.1, 2.0)}
        >>> list(compare(fits).models)
        ['sd 2.0', 'sd 0.1']
    """
    posteriors = _posteriors(fits, untrusted)
    before = _log_weights(list(posteriors), prior_weights)
    found = {name: posterior.diagnostics() for name, posterior in posteriors.items()}
    evidence = {name: (float(numbers["iwae"]), float(numbers["iwae_se"])) for name, numbers in found.items()}
    exports = {name: _export(posterior) for name, posterior in posteriors.items()}
    _check_data({name: observed(export) for name, export in exports.items()})
    elpds = {name: elpd_of(export) if loo else Elpd(math.nan, math.nan) for name, export in exports.items()}
    after = {name: evidence[name][0] + before[name] for name in evidence}
    most = max(after.values())
    total = sum(math.exp(value - most) for value in after.values())
    best = max(evidence, key=lambda name: evidence[name][0])
    models = {
        name: Compared(
            *evidence[name],
            evidence[name][0] - evidence[best][0],
            0.0 if name == best else math.hypot(evidence[name][1], evidence[best][1]),
            math.exp(after[name] - most) / total,
            *elpds[name],
        )
        for name in sorted(after, key=lambda name: -after[name])
    }
    return Comparison(models, _sentence(models))


def _posteriors(fits: Mapping[str, Results | Posterior], untrusted: bool) -> dict[str, Posterior]:
    if not isinstance(fits, Mapping) or len(fits) < 2:
        raise ValueError("compare: expected a dict with two fits or more, as in compare({'a': vi_a, 'b': vi_b})")
    posteriors = dict[str, Posterior]()
    for name, fit in fits.items():
        if not isinstance(fit, Results | Posterior):
            raise TypeError(
                f"compare: {name!r} is a {type(fit).__name__}, expected a VI that was run, or its posterior"
            )
        posterior = fit.posterior if isinstance(fit, Results) else fit
        verdict = posterior.verdict() if posterior.settled is None else posterior.of_weights()
        if not (untrusted or verdict.outcome.is_trusted):
            raise ValueError(
                f"compare: the fit of {name!r} is not to be trusted, nor is its evidence. {verdict.sentence} "
                "compare(..., untrusted=True) compares it as it is"
            )
        posteriors[name] = posterior
    return posteriors


def _log_weights(names: list[str], weights: Mapping[str, float] | None) -> dict[str, float]:
    if not isinstance(weights, Mapping | None):
        raise TypeError(
            f"compare: got prior_weights of type {type(weights).__name__}, expected a dict with a number for each of "
            f"the models {names}"
        )
    given = dict.fromkeys(names, 1.0) if weights is None else dict(weights)
    if given.keys() != set(names) or not all(0 < weight < math.inf for weight in given.values()):
        raise ValueError(
            f"compare: got prior_weights={given}, expected a positive number for each of the models {names}"
        )
    return {name: math.log(weight) for name, weight in given.items()}


def _export(posterior: Posterior) -> Any:
    return posterior.to_arviz(untrusted=True)


def _check_data(data: Mapping[str, np.ndarray]) -> None:
    first, *others = data
    for name in others:
        if not np.array_equal(data[first], data[name]):
            warnings.warn(
                f"compare: the models {first!r} and {name!r} were fitted to different data, so their evidences and "
                "LOO cannot be compared; fit both to the same rows, on the same scale",
                DifferentDataWarning,
                stacklevel=user_level(),
            )


def _sentence(models: Mapping[str, Compared]) -> str:
    first, second = list(models)[:2]
    one, two = models[first], models[second]
    gap = one.log_evidence - two.log_evidence
    error = math.hypot(one.log_evidence_se, two.log_evidence_se)
    said = (
        f"Given the data, '{first}' has weight {one.weight:.3f} and '{second}' {two.weight:.3f}: the log Bayes factor "
        f"of '{first}' against '{second}' is {gap:.2f} ± {error:.2f}."
    )
    best = max(models, key=lambda name: models[name].elpd_loo)
    if not all(math.isfinite(model.elpd_loo) for model in models.values()):
        return said
    same = "too" if best == first else "instead"
    return f"{said} By LOO the best is '{best}' {same}."
