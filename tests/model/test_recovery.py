"""The scale of sites that are written non-centered is found where it is one, and only there."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_nflows import AutoFlow
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.log_joint import LogJoint
from pyro_nflows.model.noncentered import ScaleSite
from pyro_nflows.model.recovery import recovered_scales
from pyro_nflows.testing import check_coordinates

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X[:, 0] - 0.3

Model = Callable[[Tensor, Tensor], None]


def horseshoe(x: Tensor, y: Tensor) -> None:
    """A scale for all weights, one for each, and a noise that has nothing to do with them."""
    one = x.new_ones(())
    tau = pyro.sample("tau", dist.HalfCauchy(0.5 * one))
    sigma = pyro.sample("sigma", dist.HalfNormal(one))
    with pyro.plate("feature", x.shape[1]):
        scale = pyro.sample("scale", dist.HalfCauchy(one))
        eta = pyro.sample("eta", dist.Normal(0.0 * one, one))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(x @ (tau * scale * eta), sigma), obs=y)


def regression(g: Callable[[], Tensor], prior: Any = None, num_events: int = 1) -> Model:
    """A linear regression whose weights are ``g() * eta``, in one event."""

    def model(x: Tensor, y: Tensor) -> None:
        scale = g()
        eta = pyro.sample("eta", (prior or dist.Normal(x.new_zeros(4), 1.0)).to_event(num_events))
        pyro.sample("y", dist.Normal(x @ (scale * eta), 1.0).to_event(1), obs=y)

    return model


def of(name: str, fn: Any) -> Callable[[], Tensor]:
    return lambda: pyro.sample(name, fn)


def four(value: float) -> Tensor:
    return torch.full((4,), value, dtype=torch.float64)


def found_in(model: Model, x: Tensor = X, y: Tensor = Y) -> dict[str, tuple[ScaleSite, ...]]:
    guide = AutoFlow(model, centering=None)
    guide.set_up((x, y), {})
    return recovered_scales(LogJoint(BoundModel(model, (x, y)), guide.latents), guide.init_loc())


WRITTEN = {
    "a scale": (regression(of("s", dist.HalfCauchy(four(1.0)[0]))), ScaleSite("s", 1.0, num_dims=1)),
    "a scale of each": (regression(of("s", dist.HalfCauchy(four(1.0)).to_event(1))), ScaleSite("s", 1.0)),
    "a variance": (
        regression(lambda: pyro.sample("s", dist.InverseGamma(four(2.0), 1.0).to_event(1)).sqrt()),
        ScaleSite("s", 0.5),
    ),
    "a precision": (
        regression(lambda: pyro.sample("s", dist.Gamma(four(2.0)[0], 1.0)).rsqrt()),
        ScaleSite("s", -0.5, num_dims=1),
    ),
    "the logarithm of a scale": (
        regression(lambda: pyro.sample("s", dist.Normal(four(0.0), 1.0).to_event(1)).exp()),
        ScaleSite("s", 1.0, is_log=True),
    ),
    "a bounded scale": (regression(of("s", dist.Uniform(four(0.0)[0], 5.0))), ScaleSite("s", 1.0, num_dims=1)),
    "heavy tails": (
        regression(of("s", dist.HalfNormal(four(1.0)[0])), dist.StudentT(3.0, four(0.0), 2.0)),
        ScaleSite("s", 1.0, num_dims=1),
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_the_scale_is_found_however_it_is_written(name: str) -> None:
    model, expected = WRITTEN[name]
    assert found_in(model) == {"eta": (expected,)}
    check_coordinates(model, X, Y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_horseshoe_has_two_and_its_noise_is_none(dtype: torch.dtype) -> None:
    found = found_in(horseshoe, X.to(dtype), Y.to(dtype))
    assert found == {"eta": (ScaleSite("tau", 1.0), ScaleSite("scale", 1.0))}


def slopes(x: Tensor, y: Tensor) -> None:
    """An intercept and a slope for each group around means, as vectors, each with its own scale."""
    mean = pyro.sample("mean", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(x.new_ones(2)).to_event(1))
    with pyro.plate("group", 3):
        eta = pyro.sample("eta", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        spread = pyro.sample("spread", dist.LogNormal(x.new_zeros(()), 1.0))
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    rows = mean + scale * eta + spread[:, None] * z
    group = torch.arange(len(y)) % 3
    pyro.sample("y", dist.Normal(rows[group, 0] + rows[group, 1] * x[:, 0], 1.0).to_event(1), obs=y)


def test_scales_of_coordinates_and_of_rows_stand_beside_the_right_dimension() -> None:
    assert found_in(slopes) == {"eta": (ScaleSite("scale", 1.0),), "z": (ScaleSite("spread", 1.0, num_dims=1),)}
    check_coordinates(slopes, X, Y)


def elsewhere_too(x: Tensor, y: Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfNormal(x.new_ones(())))
    eta = pyro.sample("eta", dist.Normal(x.new_zeros(4), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x @ (scale * eta), scale).to_event(1), obs=y)


def also_alone(x: Tensor, y: Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfNormal(x.new_ones(())))
    eta = pyro.sample("eta", dist.Normal(x.new_zeros(4), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x @ (scale * eta) + eta[0], 1.0).to_event(1), obs=y)


def regularised(x: Tensor, y: Tensor) -> None:
    """A slab makes the scale another function of its factors than their product."""
    tau = pyro.sample("tau", dist.HalfCauchy(x.new_ones(())))
    slab = pyro.sample("slab", dist.InverseGamma(x.new_tensor(2.0), 2.0))
    scale = pyro.sample("scale", dist.HalfCauchy(x.new_ones(4)).to_event(1))
    eta = pyro.sample("eta", dist.Normal(x.new_zeros(4), 1.0).to_event(1))
    g = tau * scale * (slab / (slab + (tau * scale) ** 2)).sqrt()
    pyro.sample("y", dist.Normal(x @ (g * eta), 1.0).to_event(1), obs=y)


def of_two(x: Tensor, y: Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfNormal(x.new_ones(())))
    a, b = (pyro.sample(name, dist.Normal(x.new_zeros(4), 1.0).to_event(1)) for name in ("a", "b"))
    pyro.sample("y", dist.Normal(x @ (scale * (a + b.exp())), 1.0).to_event(1), obs=y)


def drawn_late(x: Tensor, y: Tensor) -> None:
    eta = pyro.sample("eta", dist.Normal(x.new_zeros(4), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(x.new_ones(())))
    pyro.sample("y", dist.Normal(x @ (scale * eta), 1.0).to_event(1), obs=y)


def centered(x: Tensor, y: Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfNormal(x.new_ones(())))
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(4), scale).to_event(1))
    pyro.sample("y", dist.Normal(x @ weight, 1.0).to_event(1), obs=y)


def items(x: Tensor, y: Tensor) -> None:
    """Two parameters an item: discrimination is a factor of the distance, not of the ability alone."""
    ability = pyro.sample("ability", dist.Normal(x.new_zeros(12), 1.0).to_event(1))
    discrimination = pyro.sample("discrimination", dist.LogNormal(x.new_zeros(4), 0.5).to_event(1))
    difficulty = pyro.sample("difficulty", dist.Normal(x.new_zeros(4), 1.0).to_event(1))
    logits = discrimination * (ability[:, None] - difficulty)
    pyro.sample("y", dist.Bernoulli(logits=logits).to_event(2), obs=(x > 0).to(x))


def without_data(x: Tensor, y: Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfNormal(x.new_ones(())))
    pyro.sample("eta", dist.Normal(x.new_zeros(4), scale.new_ones(())).to_event(1))


def enumerated(x: Tensor, y: Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfNormal(x.new_ones(())))
    eta = pyro.sample("eta", dist.Normal(x.new_zeros(4), 1.0).to_event(1))
    with pyro.plate("row", len(y)):
        kind = pyro.sample("kind", dist.Bernoulli(x.new_tensor(0.3)), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(kind * (x @ (scale * eta)), 1.0), obs=y)


def through_numpy(x: Tensor, y: Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfNormal(x.new_ones(())))
    eta = pyro.sample("eta", dist.Normal(x.new_zeros(4), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x @ torch.as_tensor((scale * eta).numpy()), 1.0).to_event(1), obs=y)


OTHERS = [
    *(elsewhere_too, also_alone, regularised, of_two, drawn_late, centered, items, without_data, enumerated),
    through_numpy,
    regression(of("s", dist.HalfNormal(four(1.0)[0])), dist.Normal(four(0.5), 1.0)),
    regression(of("s", dist.HalfNormal(four(1.0)[0])), dist.MultivariateNormal(four(0.0), torch.eye(4).double()), 0),
]


@pytest.mark.parametrize("model", OTHERS)
def test_what_is_not_only_a_scale_of_one_site_before_it_is_left_alone(model: Model) -> None:
    with poutine.block():
        assert found_in(model) == {}


def both_ways(x: Tensor, y: Tensor) -> None:
    """Weights around a mean that is itself written non-centered, with a spread that has a location."""
    tau = pyro.sample("tau", dist.HalfNormal(x.new_ones(())))
    eta = pyro.sample("eta", dist.Normal(x.new_zeros(4), 1.0).to_event(1))
    spread = pyro.sample("spread", dist.LogNormal(tau, 1.0))
    weight = pyro.sample("weight", dist.Normal(tau * eta, spread).to_event(1))
    pyro.sample("y", dist.Normal(x @ weight, 1.0).to_event(1), obs=y)


def through_a_level(x: Tensor, y: Tensor) -> None:
    """The same, but that the scale is the mean's only: it is found through the level below."""
    tau = pyro.sample("tau", dist.HalfNormal(x.new_ones(())))
    eta = pyro.sample("eta", dist.Normal(x.new_zeros(4), 1.0).to_event(1))
    weight = pyro.sample("weight", dist.Normal(tau * eta, 0.5).to_event(1))
    pyro.sample("y", dist.Normal(x @ weight, 1.0).to_event(1), obs=y)


def test_it_goes_together_with_priors_that_have_a_location_and_scale() -> None:
    assert found_in(both_ways) == {}
    assert found_in(through_a_level) == {"eta": (ScaleSite("tau", 1.0, num_dims=1),)}
    check_coordinates(both_ways, X, Y)
    check_coordinates(through_a_level, X, Y)
