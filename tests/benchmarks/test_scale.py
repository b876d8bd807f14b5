"""The benchmark of growth: its models are the same in both languages, and its Gaussians are known."""

import pyro
import pytest
import torch

from benchmarks import scale, scale_models

SIZES = {"diagonal": 7, "banded": 7, "regression": 30, "centered": 9, "noncentered": 9, "walk": 9, "cox": 3}
VALUES = {"h": torch.linspace(-1, 1, 9), "mu": 0.3, "half_phi": 0.9, "sigma": 0.2}


@pytest.mark.parametrize("name", SIZES)
def test_a_model_has_the_same_density_in_both_languages(name: str) -> None:
    pytest.importorskip("numpyro")
    import jax.numpy as jnp
    from numpyro.infer.util import log_density

    args, model = scale_models.data(name, SIZES[name]), scale_models.models("pyro")[name]
    values = {key: torch.as_tensor(value, dtype=torch.float32) for key, value in VALUES.items()}
    given = pyro.poutine.condition(model, values)
    trace = pyro.poutine.trace(given).get_trace(*map(torch.tensor, args))
    latents = {key: trace.nodes[key]["value"].numpy() for key in [*VALUES, "z", "beta", "field"] if key in trace.nodes}
    expected, _ = log_density(scale_models.models("numpyro")[name], tuple(map(jnp.array, args)), {}, latents)
    assert trace.log_prob_sum().item() == pytest.approx(float(expected), rel=1e-4)


def test_the_banded_gaussian_is_known() -> None:
    args = scale_models.data("banded", 30)
    found = scale_models.exact("banded", args)
    assert found is not None
    model = scale_models.models("pyro")["banded"]

    def log_joint(z: torch.Tensor) -> torch.Tensor:
        trace = pyro.poutine.trace(pyro.poutine.condition(model, {"z": z})).get_trace(torch.tensor(args[0]).double())
        return trace.log_prob_sum()

    mean = torch.tensor(found[0])
    assert torch.autograd.functional.jacobian(log_joint, mean).abs().max() < 1e-5
    covariance = torch.linalg.inv(-torch.autograd.functional.hessian(log_joint, mean))
    assert torch.allclose(covariance.diagonal().sqrt(), torch.tensor(found[1]))


def test_the_exponent_is_that_of_a_line_in_logarithms() -> None:
    rows = [{"method": "x", "threads": 1, "size": size, "us": 5.0 * size**1.5} for size in (10, 300, 1000, 3000)]
    rows[0]["us"] = 1.0  # too small to count
    assert scale.exponents([*rows, {"method": "x", "threads": 1, "size": 10_000, "error": "over 9 s"}]) == {
        "x, threads 1": pytest.approx(1.5)
    }
