"""Comparisons agree with the exact evidences of conjugate models, and with exact leave-one-out densities."""

import dataclasses
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow, compare
from pyro_nflows.inference.compared import DifferentDataWarning

X = torch.linspace(-1, 1, 10, dtype=torch.float64)
Y = 0.8 * X + 0.5 * torch.randn(10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def flat(x: Tensor, y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(a, 0.5), obs=y)


def line(x: Tensor, y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
    b = pyro.sample("b", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(a + b * x, 0.5), obs=y)


def marginal(slope: bool) -> dist.MultivariateNormal:
    covariance = 0.25 * torch.eye(10, dtype=X.dtype) + 1 + slope * X.outer(X)
    return dist.MultivariateNormal(torch.zeros_like(X), covariance)


def exact_loo(slope: bool) -> float:
    """Each row given the others: by the inverse covariance of all."""
    precision = torch.linalg.inv(marginal(slope).covariance_matrix)
    variance = 1 / precision.diag()
    return float(dist.Normal(Y - variance * (precision @ Y), variance.sqrt()).log_prob(Y).sum())


@pytest.fixture(scope="module")
def fits() -> dict[str, VI]:
    return {m.__name__: VI(AutoFlow(m), seed=0, progress_bar=False).run(X, Y) for m in (flat, line)}


def test_evidences_and_weights_are_exact(fits: dict[str, VI]) -> None:
    found = compare(fits, prior_weights={"flat": 3.0, "line": 1.0})
    right = {name: float(marginal(name == "line").log_prob(Y)) for name in fits}
    for name, model in found.models.items():
        assert abs(model.log_evidence - right[name]) < 3 * model.log_evidence_se + 1e-4
    gap = right["line"] - right["flat"]
    factor = found.models["flat"]
    assert abs(factor.log_bayes_factor + gap) < 3 * factor.log_bayes_factor_se + 1e-4
    assert found.weights["line"] == pytest.approx(1 / (1 + 3 * math.exp(-gap)), abs=0.01)
    assert sum(found.weights.values()) == pytest.approx(1)


def test_loo_is_that_of_the_conjugate_model(fits: dict[str, VI]) -> None:
    for name, model in compare(fits).models.items():
        assert abs(model.elpd_loo - exact_loo(name == "line")) < 0.1


def test_it_is_a_frozen_table_with_a_sentence(fits: dict[str, VI]) -> None:
    found = compare({name: vi.posterior for name, vi in fits.items()}, loo=False)
    assert list(found.frame.index) == list(found.models) == ["line", "flat"]
    assert found.frame.loc["line", "log_bayes_factor"] == 0
    assert "'line' has weight" in found.sentence
    assert found.sentence in repr(found)
    assert "<table" in found._repr_html_()
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.sentence = ""  # type: ignore[misc]


def test_different_data_are_warned_of(fits: dict[str, VI]) -> None:
    other = VI(AutoFlow(flat), seed=0, progress_bar=False).run(X, Y + 1)
    with pytest.warns(DifferentDataWarning, match="'line' and 'flat' were fitted to different data"):
        compare({"line": fits["line"], "flat": other}, loo=False)


def test_mistakes_are_told(fits: dict[str, VI]) -> None:
    poor = VI(AutoFlow(line, init_scale=30.0), seed=0, progress_bar=False).judge(X, Y)
    assert not poor.verdict().outcome.is_trusted
    with pytest.raises(ValueError, match="fit of 'poor' is not to be trusted"):
        compare({"poor": poor, **fits})
    assert len(compare({"poor": poor, **fits}, untrusted=True, loo=False).models) == 3
    with pytest.raises(ValueError, match="two fits or more"):
        compare({"flat": fits["flat"]})
    with pytest.raises(ValueError, match="positive number for each"):
        compare(fits, prior_weights={"flat": 1.0})
    with pytest.raises(TypeError, match="'b' is a int"):
        compare({"a": fits["flat"], "b": 3})  # type: ignore[dict-item]


def test_prior_weights_that_are_no_dict_are_refused(fits: dict[str, VI]) -> None:
    with pytest.raises(TypeError, match="prior_weights of type list, expected a dict"):
        compare(fits, prior_weights=[1, 1], loo=False)  # type: ignore[arg-type]
