"""The examples that a reader pastes first: they run, and what they reach is right."""

import contextlib
import math
from collections.abc import Iterator

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.optim import ClippedAdam
from torch import Tensor

from pyro_nflows import IWAE, AutoCIF
from tests.pages import GOOD, Names
from tests.run_readme import README, examples


@contextlib.contextmanager
def as_a_reader() -> Iterator[None]:
    """In single precision, from an empty store."""
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float64)


@pytest.fixture(scope="module")
def session() -> Names:
    """All names of the README's examples, run in order."""
    names: Names = {"__name__": "__main__"}
    with as_a_reader():
        for source in examples(README.read_text(encoding="utf-8")):
            exec(compile(source, str(README), "exec"), names)
    return names


def log_evidence_of_cars(speed: Tensor, distance: Tensor) -> float:
    """Given sigma all is Gaussian; over sigma, a sum on a fine grid."""
    x, y = torch.stack([torch.ones(len(speed)), speed], -1).double(), distance.double()
    step = 100 / 20_000
    sigma = step * (torch.arange(20_000) + 0.5)
    noise = sigma[:, None, None] ** 2 * torch.eye(len(y))
    given = dist.MultivariateNormal(torch.zeros(len(y)), x @ torch.diag(torch.tensor([2500.0, 100.0])) @ x.T + noise)
    return float((given.log_prob(y) + dist.HalfNormal(20.0).log_prob(sigma)).logsumexp(0)) + math.log(step)


def test_the_first_example_is_to_be_trusted(session: Names) -> None:
    evidence, right = session["evidence"], log_evidence_of_cars(session["speed"], session["distance"])
    assert evidence["outcome"] in GOOD
    assert evidence["ess"] > 0.9
    assert abs(evidence["iwae"] - right) < 5 * evidence["iwae_se"] + 1e-3
    assert {name: len(draws) for name, draws in session["draws"].items()} == dict.fromkeys(
        ("intercept", "slope", "sigma"), 1000
    )


def test_the_loop_of_ones_own_converges(session: Names) -> None:
    right = log_evidence_of_cars(session["speed"], session["distance"])
    assert right == pytest.approx(-58.78, abs=0.005)
    assert -right - 0.05 < session["loss"] < -right + 0.3


@pytest.mark.slow
def test_it_converges_with_another_guide_and_loss(session: Names) -> None:
    data = session["speed"], session["distance"]
    right = log_evidence_of_cars(*data)
    with as_a_reader():
        optimizer = ClippedAdam({"lr": 0.01, "lrd": 0.1 ** (1 / 1500)})
        svi = SVI(session["model"], AutoCIF(session["model"]), optimizer, IWAE(16, compile=True))
        losses = torch.tensor([svi.step(*data) for _ in range(1500)])
    assert losses.isfinite().all()
    assert -right - 0.2 < float(losses[-200:].mean()) < -right + 0.4
