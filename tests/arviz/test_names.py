"""Names of dimensions, sites and arguments that are none of the model's are refused in words."""

from typing import Any

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.autoname import scope
from torch import Tensor

from pyro_nflows.arviz import to_arviz

X = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2)
Y = torch.tensor([0.2, -0.4, 1.0], dtype=torch.float64)


def regression(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(x @ slope, 1.0), obs=y)


def export(**options: Any) -> Any:
    slope = torch.randn(40, 2, dtype=torch.float64)
    return to_arviz(regression, {"slope": slope}, (X, Y), seed=0, **options)


def test_names_that_are_the_models_are_taken() -> None:
    dims = {"slope": ["predictor"], "x": ["row", "predictor"]}
    data = export(coords={"row": ["a", "b", "c"], "predictor": ["air", "water"], "chain": [7]}, dims=dims)
    assert list(data["posterior"].coords["predictor"].values) == ["air", "water"]
    assert list(data["log_likelihood"].coords["row"].values) == ["a", "b", "c"]
    assert data["constant_data"]["x"].dims == ("row", "predictor")
    assert list(data["posterior"].coords["chain"].values) == [7]


def test_a_plate_may_be_named_though_nothing_that_is_exported_lies_along_it() -> None:
    export(coords={"row": ["a", "b", "c"]}, log_likelihood=False, posterior_predictive=False, num_prior=0)


def test_plates_with_a_slash_may_be_named_either_way() -> None:
    def model(y: Tensor) -> None:
        with scope(prefix="part"), pyro.plate("row", len(y)):
            z = pyro.sample("z", dist.Normal(y, 1.0))
        pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=y.sum())

    draws = {"part/z": torch.randn(5, 3, dtype=torch.float64)}
    dims = to_arviz(model, draws, (Y,), seed=0)["posterior"]["part.z"].dims
    for name in {dims[-1], dims[-1].replace(".", "/")}:
        data = to_arviz(model, draws, (Y,), coords={name: ["a", "b", "c"]}, seed=0)
        assert list(data["posterior"].coords[dims[-1]].values) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coords": {"rwo": ["a", "b", "c"]}}, "coords names 'rwo', but the dimensions are 'chain', 'draw', 'row', "),
        ({"coords": {"row": ["a", "b"]}}, "coords has 2 labels along 'row', expected 3, one for each"),
        ({"dims": {"solpe": ["predictor"]}}, "dims names 'solpe', but the sites and arguments are 'slope', 'x', 'y'"),
        ({"dims": {"slope": ["a", "b"]}}, r"dims has \['a', 'b'\] for 'slope', expected a list of at most 1 names"),
        ({"dims": {"slope": "predictor"}}, "dims has 'predictor' for 'slope', expected a list"),
        ({"coords": {"predictor": ["air", "water"]}}, "coords names 'predictor'"),
    ],
)
def test_others_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export(**options)


@pytest.mark.filterwarnings("ignore")
def test_arviz_can_scale_prior_and_likelihood_by_powers() -> None:
    """Prior and data of a normal mean disagree, so that both matter."""

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(y.new_tensor(4.0), 0.5))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    precision = 4.0 + 3.0
    mean = (4.0 * 4.0 + float(Y.sum())) / precision
    mu = mean + torch.randn(4, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / precision**0.5
    data = to_arviz(model, {"mu": mu}, (Y,), group_by_chain=True, seed=0)
    if int(arviz.__version__.split(".")[0]) >= 1:
        found = arviz.psense_summary(data)
        values = [float(found.loc["mu", "prior"]), float(found.loc["mu", "likelihood"])]
    else:
        values = [float(arviz.psens(data, component=c)["mu"]) for c in ("prior", "likelihood")]
    assert all(np.isfinite(values))
    assert min(values) > 0.05
