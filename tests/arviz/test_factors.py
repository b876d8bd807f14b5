"""A likelihood that is written as a factor is in the log-likelihood, or it is said that it is not."""

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow
from pyro_nflows.arviz import FactorWarning, to_arviz
from tests.models import PAIRS

SEEN = torch.tensor([0.3, 1.2, 0.7, 2.0], dtype=torch.float64)
LIMIT = torch.tensor([1.5, 2.5, 0.9], dtype=torch.float64)


def survival(seen: Tensor, limit: Tensor) -> None:
    """Times until an event, and those at which some were still waiting for it."""
    rate = pyro.sample("rate", dist.Gamma(seen.new_tensor(2.0), 1.0))
    with pyro.plate("died", len(seen)):
        pyro.sample("time", dist.Exponential(rate), obs=seen)
    with pyro.plate("alive", len(limit)):
        pyro.factor("censored", -rate * limit)


def draws(*shape: int) -> dict[str, Tensor]:
    return {"rate": torch.rand(shape, dtype=torch.float64) + 0.2}


def test_a_factor_in_a_plate_has_its_rows() -> None:
    given = draws(40)
    data = to_arviz(survival, given, (SEEN, LIMIT), seed=0)
    found = data["log_likelihood"]
    assert found["censored"].dims == ("chain", "draw", "alive")
    np.testing.assert_allclose(found["censored"].values[0], -given["rate"][:, None] * LIMIT)
    num_rows = sum(variable[0, 0].size for variable in found.data_vars.values())
    assert num_rows == len(SEEN) + len(LIMIT)
    assert data["posterior"].attrs["notes"] == "log_likelihood has the factor censored, 3 rows of alive"
    assert arviz.loo(data, var_name="censored").n_data_points == 3
    for group in ("posterior_predictive", "observed_data", "prior_predictive"):
        assert set(data[group].data_vars) == {"time"}


def test_what_is_in_the_log_likelihood_can_be_said() -> None:
    data = to_arviz(survival, draws(40), (SEEN, LIMIT), log_likelihood=["time"], seed=0)
    assert set(data["log_likelihood"].data_vars) == {"time"}
    assert arviz.loo(data).n_data_points == len(SEEN)
    assert "notes" not in data["posterior"].attrs
    with pytest.raises(ValueError, match="log_likelihood names 'tiem', but the observed sites and factors"):
        to_arviz(survival, draws(40), (SEEN, LIMIT), log_likelihood=["tiem"], seed=0)


def test_factors_in_sequential_plates_are_a_row_each() -> None:
    def model(limit: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(limit.new_tensor(2.0), 1.0))
        for i in pyro.plate("alive", len(limit)):
            pyro.factor(f"censored_{i}", -rate * limit[i])

    given = draws(5)
    data = to_arviz(model, given, (LIMIT,), seed=0)
    np.testing.assert_allclose(data["log_likelihood"]["censored_1"].values[0], -given["rate"] * LIMIT[1])


def test_factors_without_rows_are_named_in_a_warning_and_in_the_notes() -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0))
        pyro.factor("soft", -z.square())
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    z = torch.randn(20, dtype=torch.float64)
    with pytest.warns(FactorWarning, match="the factor 'soft' is outside of all plates") as warned:
        data = to_arviz(model, {"z": z}, (PAIRS,), seed=0)
    assert warned[0].filename == __file__
    assert data["posterior"].attrs["notes"] == "no log_likelihood of the factor soft: it has no rows"
    assert set(data["log_likelihood"].data_vars) == {"y"}
    for asked in (["y"], False):
        to_arviz(model, {"z": z}, (PAIRS,), log_likelihood=asked, seed=0)  # a warning would be an error here


def test_a_factor_in_a_plate_that_shows_some_rows_has_none() -> None:
    def model(limit: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(limit.new_tensor(2.0), 1.0))
        with pyro.plate("alive", len(limit), subsample_size=2) as rows:
            pyro.factor("censored", -rate * limit[rows])

    with pytest.warns(FactorWarning, match="shows a random part of its rows"):
        data = to_arviz(model, draws(5), (LIMIT,), seed=0)
    assert "no log_likelihood of the factor censored" in data["posterior"].attrs["notes"]


def test_a_fit_of_a_model_with_a_factor() -> None:
    guide = AutoFlow(survival, init_scale=0.5)
    vi = VI(guide, seed=0, engine="eager", progress_bar=False).judge(SEEN, LIMIT)
    data = vi.to_arviz(500, resample=False, untrusted=True)
    rate = data["posterior"]["rate"].values
    rows = data["log_likelihood"]["time"].values.sum(-1) + data["log_likelihood"]["censored"].values.sum(-1)
    expected = rows + data["log_prior"]["rate"].values + np.log(rate)  # the last is the slope of the constraint
    np.testing.assert_allclose(data["sample_stats"]["lp"].values, expected, rtol=1e-9)
    assert set(vi.to_arviz(50, log_likelihood=["time"], untrusted=True)["log_likelihood"].data_vars) == {"time"}
