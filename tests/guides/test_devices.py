"""Guides and fits where the data are on another device than torch's default one, or where that is another one."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor

from pyro_nflows import ELBO, VI, AutoPlanar
from pyro_nflows.system.randomness import forked, generators
from tests import pretend_device
from tests.guide_registry import Case, cases
from tests.models import PAIRS, pairs

POSSIBLE = pytest.mark.skipif(not pretend_device.POSSIBLE, reason="this torch takes no backend written in Python")
ELSEWHERE = [pytest.param("pretend", marks=POSSIBLE), pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=ELSEWHERE)
def elsewhere(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device that is not torch's default one."""
    pretends = request.param == pretend_device.NAME
    with pretend_device.pretended(default=False) if pretends else contextlib.nullcontext():
        yield request.param


def model(x: Tensor) -> None:
    with pyro.plate("unit", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def shared_mean(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 1.0))
    scale = pyro.sample("scale", dist.LogNormal(x.new_zeros(()), 1.0))
    with pyro.plate("unit", len(x)):
        pyro.sample("x", dist.Normal(mu, scale), obs=x)


@cases()
def test_the_guide_is_on_the_device_of_the_models_latents(case: Case, elsewhere: str) -> None:
    guide, x = case(model), PAIRS.to(elsewhere)
    for elbo in (ELBO(3), Trace_ELBO()):
        SVI(model, guide, Adam({"lr": 1e-2}), elbo).step(x)
    tensors = [*guide(x).values(), *guide.median(x).values(), *guide.parameters()]
    assert {tensor.device.type for tensor in tensors} == {elsewhere}
    if case.bijective:
        posterior = guide.get_posterior(x)
        assert posterior.log_prob(posterior.sample()).device.type == elsewhere
    moved_back = case(pairs)
    moved_back.load_state_dict({name: value.cpu() for name, value in guide.state_dict().items()})
    torch.testing.assert_close(moved_back.median()["z"], guide.median(x)["z"].cpu())


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_data_on_a_device_are_all_that_a_fit_there_takes(engine: str, elsewhere: str, tmp_path: Path) -> None:
    x = PAIRS.to(elsewhere)
    vi = VI(AutoPlanar(shared_mean, num_layers=1), num_steps=50, engine=engine, seed=0, progress_bar=False).run(x)
    draws = vi.get_samples(20)
    assert {value.device.type for value in [*draws.values(), *vi.predict(x, num_samples=5).values()]} == {elsewhere}
    assert bool(torch.isfinite(vi.posterior.draws.log_weight).all())
    vi.diagnostics()
    vi.summary()
    vi.save(tmp_path / "fit.pt")
    again = VI.load(tmp_path / "fit.pt", AutoPlanar(shared_mean, num_layers=1), x)
    assert again.get_samples(20)["mu"].shape == (20,)


def test_numbers_on_a_device_go_on_where_they_were(elsewhere: str) -> None:
    if elsewhere == "cuda":
        torch.zeros(1, device=elsewhere)
    assert len(generators()) > 1
    torch.manual_seed(0)
    expected = torch.randn(3, device=elsewhere)
    torch.manual_seed(0)
    with forked(1):
        aside = torch.randn(3, device=elsewhere)
    assert torch.equal(torch.randn(3, device=elsewhere), expected)
    assert not torch.equal(aside, expected)


@POSSIBLE
def test_a_pretended_device_is_as_strict_as_a_gpu() -> None:
    with pretend_device.pretended(default=False) as device:
        there, here = torch.ones(3, device=device), torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, generator=torch.Generator(), device=device)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert (there + torch.tensor(1.0)).cpu().equal(here + 1)  # as CUDA takes numbers on the CPU
        with pretend_device.transfers() as counted:
            (there * 2).sum().item()
        assert sum(counted.values()) == 1
