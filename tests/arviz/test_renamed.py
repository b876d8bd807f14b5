"""No variable and no dimension takes another's name, and the notes say what is named anew."""

from pathlib import Path
from typing import Any

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows.arviz import to_arviz

Y = torch.tensor([0.2, -0.4, 1.0], dtype=torch.float64)


def pair(y: Tensor, names: tuple[str, str, str], plates: tuple[str, str] = ("row", "group")) -> None:
    a = pyro.sample(names[0], dist.Normal(y.new_zeros(2), 1.0).to_event(1))
    with pyro.plate(plates[1], 2):
        b = pyro.sample(names[1], dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate(plates[0], len(y)):
        pyro.sample(names[2], dist.Normal(a.sum() + b.sum(), 1.0), obs=y)


def export(names: tuple[str, str, str], plates: tuple[str, str] = ("row", "group"), **options: Any) -> Any:
    draws = {names[0]: torch.full((8, 2), 1.0).double(), names[1]: torch.full((8, 2), 2.0).double()}
    return to_arviz(pair, draws, (Y, names, plates), seed=0, **options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (("x/b", "x.b", "y"), ("x.b_2", "x.b", "y")),
        (("x.b", "x/b", "y"), ("x.b", "x.b_2", "y")),
        (("draw", "chain", "y"), ("draw_variable", "chain_variable", "y")),
        (("draw", "draw_variable", "y"), ("draw_variable_2", "draw_variable", "y")),
        (("a", "b", "draw"), ("a", "b", "draw_variable")),
        (("a", "b", "part/chain"), ("a", "b", "part.chain")),
    ],
)
def test_every_site_is_there(names: tuple[str, str, str], kept: tuple[str, str, str], tmp_path: Path) -> None:
    data = export(names, predictions=(Y[:2], names), unconstrained=True)
    data.to_netcdf(str(tmp_path / "data.nc"))
    for group in ("posterior", "prior", "log_prior", "unconstrained_posterior"):
        assert list(data[group].data_vars) == list(kept[:2])
        assert data[group].sizes["chain"] == 1
    for group in ("log_likelihood", "posterior_predictive", "prior_predictive", "observed_data", "predictions"):
        assert list(data[group].data_vars) == [kept[2]]
    assert (data["posterior"][kept[0]] == 1).all()
    assert (data["posterior"][kept[1]] == 2).all()
    np.testing.assert_allclose(data["observed_data"][kept[2]].values, Y)
    assert arviz.loo(data).n_data_points == 3
    notes = data["posterior"].attrs.get("notes", "")
    for name, new in zip(names, kept):
        assert (f"the variable {name!r} is named {new!r}" in notes) is (new != name.replace("/", "."))


@pytest.mark.parametrize(
    ("plates", "kept"),
    [
        (("draw", "group"), ("draw_plate", "group")),
        (("draw", "draw_plate"), ("draw_plate_2", "draw_plate")),
        (("chain", "draw"), ("chain_plate", "draw_plate")),
        (("p/row", "p.row"), ("p.row_2", "p.row")),
    ],
)
def test_every_plate_is_a_dimension(plates: tuple[str, str], kept: tuple[str, str]) -> None:
    data = export(("a", "b", "y"), plates, coords={kept[0]: list("uvw"), kept[1]: list("st")})
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", kept[0])
    assert data["posterior"]["b"].dims == ("chain", "draw", kept[1])
    assert list(data["log_likelihood"].coords[kept[0]].values) == list("uvw")
    assert list(data["posterior"].coords[kept[1]].values) == list("st")
    for name, new in zip(plates, kept):
        assert (f"the dimension {name!r} is named {new!r}" in data["posterior"].attrs["notes"]) is (new != name)


def test_the_models_own_names_are_taken() -> None:
    names, plates = ("p/a", "p/b", "p/y"), ("p/row", "p/group")
    options: dict[str, Any] = {"dims": {"p/a": ["p/k"]}, "coords": {"p/k": ["u", "v"], "p/row": list("rst")}}
    data = export(names, plates, log_likelihood=["p/y"], **options)
    assert list(data["posterior"]["p.a"].coords["p.k"].values) == ["u", "v"]
    assert list(data["log_likelihood"]["p.y"].coords["p.row"].values) == list("rst")
    assert "notes" not in data["posterior"].attrs


def test_a_dimension_that_is_named_as_its_variable() -> None:
    data = export(("a", "b", "y"), dims={"a": ["a"]})
    assert data["posterior"]["a"].dims == ("chain", "draw", "a_dim")
    with pytest.raises(ValueError, match=r"dims has \['draw'\] for 'a', but 'chain' and 'draw' are the dimensions"):
        export(("a", "b", "y"), dims={"a": ["draw"]})


def test_an_argument_may_be_named_as_a_plate() -> None:
    def model(row: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(row.new_zeros(()), 1.0))
        with pyro.plate("row", len(row)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=2 * row)

    data = to_arviz(model, {"mu": torch.zeros(4).double()}, (Y,), seed=0)
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "row")
    np.testing.assert_allclose(data["constant_data"]["row"].values, Y)
    assert "notes" not in data["posterior"].attrs
