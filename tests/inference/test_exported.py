"""What of a fit goes to ArviZ: draws with the weights that are theirs, and what is to be known of them."""

import importlib.metadata
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_nflows
from pyro_nflows import VI, AutoFlow, flows
from pyro_nflows.inference.exported import UntrustedWarning
from tests.models import PAIRS, pairs

MODERN = int(arviz.__version__.split(".")[0]) >= 1
Y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], dtype=torch.float64)
SIGMA = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], dtype=torch.float64)


def eight_schools(y: Tensor, sigma: Tensor) -> None:
    level = pyro.sample("level", dist.Normal(y.new_zeros(()), 1.0))
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
    with pyro.plate("school", len(y)):
        effect = pyro.sample("effect", dist.Normal(y.new_zeros(()), 1.0))
        theta = pyro.deterministic("theta", 5 * level + tau * effect)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def middle(site: dict[str, Any]) -> Tensor:
    return torch.full(site["fn"].shape(), {"level": 0.8, "tau": 3.0, "effect": 0.0}[site["name"]])


def mean_log_tau() -> float:
    """By quadrature, with the schools' own effects integrated out."""
    mu, log_tau = torch.linspace(-20, 30, 401, dtype=torch.float64), torch.linspace(-9, 5, 701, dtype=torch.float64)
    tau = log_tau.exp()
    width = (SIGMA.square() + tau[:, None, None].square()).sqrt()
    log_p = dist.Normal(mu[None, :, None], width).log_prob(Y).sum(-1) + dist.Normal(0.0, 5.0).log_prob(mu)
    log_p += (dist.HalfCauchy(5.0).log_prob(tau) + log_tau)[:, None]
    weight = (log_p - log_p.max()).exp()
    return float((weight.sum(1) * log_tau).sum() / weight.sum())


@pytest.fixture(scope="module")
def rough() -> VI:
    """A guide that is no posterior, though its weights tell the way to one."""
    guide = AutoFlow(eight_schools, init_scale=0.9, init_loc_fn=middle)
    return VI(guide, seed=0, engine="eager", progress_bar=False).judge(Y, SIGMA)


@pytest.fixture(scope="module")
def raw(rough: VI) -> Any:
    return rough.to_arviz(20_000, resample=False)


@pytest.fixture(scope="module")
def resampled(rough: VI) -> Any:
    return rough.to_arviz(8000, resample=True)


def stat(data: Any, name: str) -> np.ndarray:
    return data["sample_stats"][name].values.ravel()


def weights(log_weight: np.ndarray) -> np.ndarray:
    weight = np.exp(log_weight - log_weight.max())
    return weight / weight.sum()


def test_the_guide_is_rough(rough: VI, raw: Any) -> None:
    assert 0.05 < rough.diagnostics()["ess"] < 0.6
    assert abs(np.log(raw["posterior"]["tau"].values).mean() - mean_log_tau()) > 0.2


@pytest.mark.parametrize("weight", ["log_weight", "lp - log_q"])
@pytest.mark.parametrize("kind", ["raw", "resampled"])
def test_weighted_means_are_the_posteriors_either_way(
    rough: VI, kind: str, weight: str, request: pytest.FixtureRequest
) -> None:
    data = request.getfixturevalue(kind)
    log_weight = stat(data, "log_weight") if weight == "log_weight" else stat(data, "lp") - stat(data, "log_q")
    w, log_tau = weights(log_weight), np.log(data["posterior"]["tau"].values.ravel())
    mean = (w * log_tau).sum()
    ess = rough.diagnostics()["ess"] * (len(w) if kind == "raw" else 8000)
    error = ((w * (log_tau - mean) ** 2).sum() / ess) ** 0.5
    assert error < 0.05
    assert abs(mean - mean_log_tau()) < 5 * error


def test_resampled_draws_all_count_the_same(resampled: Any) -> None:
    assert (stat(resampled, "log_weight") == 0).all()
    assert resampled["posterior"].attrs["resampled"] == 1


def test_raw_draws_have_the_weights_of_the_guide(rough: VI, raw: Any) -> None:
    np.testing.assert_array_equal(stat(raw, "log_weight"), rough.log_weight[:20_000])
    assert raw["posterior"].attrs["resampled"] == 0


def test_densities_are_those_of_the_draws_beside_them(rough: VI, resampled: Any) -> None:
    draws = rough.posterior.draws
    place = {float(lp): i for i, lp in enumerate(draws.log_p)}
    index = [place[lp] for lp in stat(resampled, "lp")]
    np.testing.assert_array_equal(stat(resampled, "log_guide"), draws.log_q[index])
    tau = rough.posterior.constrained(torch.tensor(index))["tau"]
    np.testing.assert_array_equal(resampled["posterior"]["tau"].values.ravel(), tau)


def by_importance(data: Any) -> float:
    """Leave-one-out from ``lp`` and ``log_q``: of each row, the posterior without it is the target."""
    log_lik = data["log_likelihood"]["y"].values.reshape(-1, 8)
    w = [weights(stat(data, "lp") - stat(data, "log_q") - row) for row in log_lik.T]
    return float(sum(np.log((each * np.exp(row)).sum()) for each, row in zip(w, log_lik.T)))


def test_leave_one_out_by_importance_is_arvizs(raw: Any, resampled: Any) -> None:
    loo = arviz.loo(resampled)
    expected = float(loo.elpd if MODERN else loo.elpd_loo)
    assert by_importance(raw) == pytest.approx(expected, abs=0.05)
    assert by_importance(resampled) == pytest.approx(expected, abs=0.05)
    if MODERN:
        for data in (raw, resampled):
            stats = data["sample_stats"]
            again = arviz.loo_approximate_posterior(data, stats["lp"], stats["log_q"])
            assert float(again.elpd) == pytest.approx(expected, abs=0.05)


def test_attributes_say_what_the_fit_says_of_itself(rough: VI, raw: Any) -> None:
    found = rough.diagnostics()
    for attrs in (raw.attrs, raw["posterior"].attrs, raw["sample_stats"].attrs):
        assert attrs["verdict"] == rough.verdict().outcome.name
        assert attrs["verdict_sentence"] == rough.verdict().sentence
        assert (attrs["ess"], attrs["pareto_k"]) == (found["ess"], found["pareto_k"])
        assert (attrs["log_evidence"], attrs["log_evidence_se"]) == (found["iwae"], found["iwae_se"])
        assert attrs["seed"] == 0
        for name, package in [("torch", "torch"), ("pyro", "pyro-ppl")]:
            assert attrs[f"{name}_version"] == importlib.metadata.version(package)
        assert attrs["inference_library_version"] == pyro_nflows.__version__


def test_the_seed_is_known_of_a_fit_from_a_file(rough: VI, raw: Any, tmp_path: Path) -> None:
    rough.save(tmp_path / "fit.pt")
    again = VI.load(tmp_path / "fit.pt", AutoFlow(eight_schools), Y, SIGMA).to_arviz(20_000, resample=False)
    assert again.attrs["seed"] == 0
    np.testing.assert_array_equal(stat(again, "log_weight"), stat(raw, "log_weight"))


def test_attributes_come_back_from_a_file(raw: Any, tmp_path: Path) -> None:
    raw.to_netcdf(str(tmp_path / "raw.nc"))
    again = arviz.from_netcdf(str(tmp_path / "raw.nc"))
    for name in ("verdict", "verdict_sentence", "ess", "pareto_k", "trusted", "resampled", "seed"):
        assert again["posterior"].attrs[name] == raw["posterior"].attrs[name]
    again.close()


def test_without_a_seed_none_is_told_of() -> None:
    vi = VI(AutoFlow(pairs), engine="eager", progress_bar=False).judge(PAIRS)
    assert "seed" not in vi.to_arviz(50, untrusted=True).attrs


@pytest.mark.parametrize("resample", [True, False])
def test_an_untrusted_fit_is_exported_with_a_warning(resample: bool) -> None:
    guide = AutoFlow(pairs, init_loc_fn=lambda _: torch.full((4,), 3.0))
    vi = VI(guide, seed=0, engine="eager", progress_bar=False).judge(PAIRS)
    assert vi.verdict().sentence.startswith("Do not trust")
    with pytest.warns(UntrustedWarning, match="Do not trust these draws") as warned:
        data = vi.to_arviz(100, resample=resample)
    assert warned[0].filename == __file__
    assert data["posterior"].attrs["trusted"] == 0
    asked = vi.to_arviz(100, resample=resample, untrusted=True)  # any warning would be an error here
    assert asked["posterior"].attrs["verdict_sentence"] == vi.verdict().sentence


def test_a_trusted_fit_says_so(resampled: Any) -> None:
    assert resampled.attrs["trusted"] == 1


def test_the_draws_of_one_fit_in_several_chains(rough: VI) -> None:
    one, four = (rough.to_arviz(800, resample=True, num_chains=n) for n in (1, 4))
    assert four["posterior"]["theta"].shape == (4, 200, 8)
    assert four["log_likelihood"]["y"].shape == (4, 200, 8)
    for name in ("tau", "theta"):
        np.testing.assert_array_equal(
            four["posterior"][name].values.ravel(), one["posterior"][name].values.ravel()
        )  # the draws are those of one sample
    assert np.isfinite(float(arviz.rhat(four)["level"].max()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_chains": 0}, "num_chains must be a positive integer, got 0"),
        ({"num_chains": 11}, "got num_chains=11 and num_samples=10, expected num_chains to be at most num_samples"),
        ({"num_samples": 0}, "num_samples must be a positive integer, got 0"),
    ],
)
def test_chains_that_cannot_be_are_refused(rough: VI, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rough.to_arviz(**{"num_samples": 10, **options})


def test_starts_are_chains_and_can_be_split() -> None:
    guide = AutoFlow(pairs, lambda dim: flows.realnvp(dim, 2, (4,)))
    vi = VI(guide, num_steps=4, num_starts=2, seed=0, engine="eager", progress_bar=False).run(PAIRS)
    assert vi.to_arviz(800, untrusted=True)["posterior"]["z"].shape == (2, 400, 4)
    assert vi.to_arviz(800, num_chains=4, untrusted=True)["posterior"]["z"].shape == (4, 200, 4)
    with pytest.raises(ValueError, match="expected num_chains to be a multiple of 2, the number of starts"):
        vi.to_arviz(800, num_chains=3, untrusted=True)
