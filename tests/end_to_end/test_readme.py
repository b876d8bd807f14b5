"""The examples that a reader pastes first: they run, and what they reach is right."""

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam, ClippedAdam
from torch import Tensor

from pyro_nflows import ELBO, IWAE, SBC, VI, AutoCIF, AutoFlow, layers
from pyro_nflows.diagnostics.verdict import Outcome
from tests.run_readme import README, examples

PAGES = [page for page in sorted((README.parent / "docs").glob("*.md")) if examples(page.read_text(encoding="utf-8"))]
GOOD = (Outcome.TRUST, Outcome.RESAMPLED)
Names = dict[str, Any]


@contextlib.contextmanager
def as_a_reader() -> Iterator[None]:
    """In single precision, from an empty store."""
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float64)


def run(page: Path, names: Names) -> Names:
    for source in examples(page.read_text(encoding="utf-8")):
        exec(compile(source, str(page), "exec"), names)
    return names


# ---- README -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session() -> Names:
    """All names of the README's examples, run in order."""
    with as_a_reader():
        return run(README, {"__name__": "__main__"})


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


# ---- the documentation's pages ------------------------------------------------------------------------------


def normal(y: Tensor) -> None:
    """Stands for the reader's model; its log evidence is known."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)


DATA = torch.ones(2)
EVIDENCE = float(dist.Normal(0.0, 2**0.5).log_prob(DATA).sum())


class MyLayer(layers.LocScale):
    """Stands for the reader's layer."""


def is_trusted(names: Names) -> None:
    found = names["vi"].diagnostics()
    assert found["outcome"] in GOOD
    assert abs(found["iwae"] - EVIDENCE) < 5 * found["iwae_se"] + 1e-3


def is_refined_and_calibrated(names: Names) -> None:
    assert ((names["draws"]["z"].mean(0) - 0.5).abs() < 0.1).all()
    assert "No sign of miscalibration" in names["check"].verdict().sentence


def has_converged(names: Names) -> None:
    assert ELBO(4000).loss(names["model"], names["guide"], DATA) == pytest.approx(-EVIDENCE, abs=0.1)


def works_with_pyros_tools(names: Names) -> None:
    for name, mean in names["means"].items():
        assert (mean - names["right"]).abs().max() < 0.06, name  # half a standard deviation
    assert sum(names["losses"][-100:]) / 100 == pytest.approx(names["ours"], abs=0.5)
    assert set(names["labels"].tolist()) <= {0.0, 1.0}
    assert names["share"] > 0.8
    assert ((names["spread"] / torch.tensor([0.52, 1.28]) - 1).abs() < 5 * 0.5**0.5 / 400**0.5).all()
    assert float(names["fixed"]["a"]) == 1.0
    assert "theta_decentered" in names["latents"]
    assert {name: value.shape[0] for name, value in names["chains"].items()} == dict.fromkeys(names["latents"], 20)
    torch.testing.assert_close(names["middle"]["a"], torch.tensor(1.0))
    assert torch.equal(names["again"].median()["a"], names["middle"]["a"])


def has_right_means(names: Names) -> None:
    """Of y ~ N(mu, 2), and of rows shrunk half-way towards mu."""
    y, draws = names["y"], names["vi"].get_samples(500)
    assert names["vi"].diagnostics()["outcome"] in GOOD
    assert abs(float(draws["mu"].mean() - y.mean())) < 5 * (2 / 1000) ** 0.5 / 500**0.5 + 1e-3
    expected = 0.5 * (y + y.mean())
    assert float((draws["z"].mean(0) - expected).square().mean()) ** 0.5 < 0.1


def is_in_arviz(names: Names) -> None:
    """Weighted and resampled draws have one mean; LOO is over all rows."""
    resampled = names["vi"].to_arviz()["posterior"]["mu"].values
    assert float(names["mean"]) == pytest.approx(float(resampled.mean()), abs=5 * float(resampled.std()) / 1000**0.5)
    assert names["loo"].n_data_points == len(names["seen"]) + len(names["limit"])


def schools(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, 5.0))
        pyro.sample("y", dist.Normal(theta, 10.0), obs=y)


def is_of_the_schools(names: Names) -> None:
    """Their log evidence is -31.31, by a sum over a grid of tau; the chains and the weights agree."""
    assert names["found"]["outcome"] in GOOD
    assert names["found"]["iwae"] == pytest.approx(-31.31, abs=0.02)
    assert names["chains"].r_hat < 1.1


REACHED: dict[str, Callable[[Names], None]] = {
    "arviz": is_in_arviz,
    "big_models": has_right_means,
    "coming_from": is_of_the_schools,
    "index": is_trusted,
    "how_to_choose": is_refined_and_calibrated,
    "plain_svi": has_converged,
    "what_can_go_wrong": is_trusted,
    "with_pyros_tools": works_with_pyros_tools,
}


def start_of(page: str) -> Names:
    """What a page's first example takes for granted."""
    if page == "with_pyros_tools":
        return {"__name__": "__main__"}
    if page == "arviz":
        vi = VI(AutoFlow(schools), seed=0, progress_bar=False).run(torch.tensor([28.0, 8.0, -3.0, 7.0]))
        given = {"vi": vi, "names": list("ABCD"), "VI": VI, "AutoFlow": AutoFlow, "np": np, "xarray": xarray}
        data = {"seen": torch.tensor([0.3, 1.2, 0.7, 2.0]), "limit": torch.tensor([1.5, 2.5, 0.9])}
        return {**given, **data, "pyro": pyro, "dist": dist, "torch": torch}
    if page == "big_models":
        y = 1 + 2**0.5 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
        names = {"pyro": pyro, "dist": dist, "torch": torch, "y": y, "new_y": y[:500]}
        return names | {thing.__name__: thing for thing in (VI, AutoFlow, SVI, Trace_ELBO)}
    given = [VI, SBC, AutoFlow, AutoCIF, ELBO, SVI, Trace_ELBO, ClippedAdam, MyLayer]
    guide = AutoFlow(normal)
    names: Names = {"model": normal, "data": DATA, "guide": guide, "torch": torch, "optim": Adam({"lr": 1e-3})}
    if page == "how_to_choose":
        names["vi"] = VI(guide, seed=0, progress_bar=False).run(DATA)
    return names | {thing.__name__: thing for thing in given}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore:At pyro.sample")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_the_pages_show_runs(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(mpl.rcParams, "figure.max_open_warning", 0)
    monkeypatch.chdir(tmp_path)
    try:
        names = run(page, start_of(page.stem))
    finally:
        torch.set_default_dtype(torch.float64)
    REACHED.get(page.stem, lambda names: None)(names)
