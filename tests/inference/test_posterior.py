"""What a run leaves: a value that later runs do not change, with files and copies of its own."""

import copy
import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow
from pyro_nflows.inference import portable
from pyro_nflows.inference.posterior import Posterior
from pyro_nflows.layers import Planar

Y = torch.tensor([1.0, 2.5, 0.5], dtype=torch.float64)


def model(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 10.0))
    sd = pyro.sample("sd", dist.Gamma(y.new_tensor(2.0), 1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(mu, sd), obs=y)


def located(y: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    z = pyro.sample("z", dist.Normal(loc, 1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def flow(latent_dim: int) -> Planar:
    return Planar(latent_dim)


def line(of: Callable[..., None] = model, num_steps: int = 50, **options: Any) -> VI:
    return VI(AutoFlow(of, flow), num_steps=num_steps, engine="eager", seed=0, progress_bar=False, **options)


def drawn(posterior: Posterior, num: int = 100) -> Tensor:
    pyro.set_rng_seed(3)
    return torch.stack([*posterior.get_samples(num).values()])


@pytest.fixture(scope="module")
def fitted() -> VI:
    pyro.clear_param_store()
    return line().run(Y)


def test_before_a_run_there_is_none() -> None:
    with pytest.raises(RuntimeError, match="VI has no draws yet; call run"):
        _ = line().posterior


def test_it_says_what_its_vi_says(fitted: VI, capsys: pytest.CaptureFixture[str]) -> None:
    posterior = fitted.posterior
    assert posterior.verdict() == fitted.verdict()
    assert str(posterior.verdict()) == posterior.verdict().sentence
    assert posterior.diagnostics() == fitted.diagnostics()
    assert torch.equal(posterior.log_weight, fitted.log_weight)
    assert posterior.history is fitted.history
    shown = []
    for each in (posterior, fitted):
        pyro.set_rng_seed(3)
        each.summary()
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert torch.equal(posterior.refine(20, num_chains=2, method="hmc").z, fitted.refine(20, 300, 2, "hmc").z)
    assert posterior.to_arviz(30, untrusted=True)["posterior"]["mu"].shape == (1, 30)


def test_its_fields_cannot_be_set(fitted: VI) -> None:
    for name in ("draws", "missed", "history"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(fitted.posterior, name, None)


def test_more_draws_are_another_posterior(fitted: VI) -> None:
    first = fitted.posterior
    num = len(first.draws.z)
    assert first.with_draws(num) is first
    assert first.get_samples(num + 100)["mu"].shape == (num + 100,)
    assert len(first.draws.z) == num
    more = first.with_draws(num + 100)
    assert len(more.draws.z) == num + 100
    assert torch.equal(more.draws.z[:num], first.draws.z)


def test_a_later_run_leaves_an_earlier_posterior_as_it_is(tmp_path: Path) -> None:
    vi = line()
    first = vi.run(Y).posterior
    num, median = len(first.draws.z) + 1000, vi.guide.median()["mu"]
    before = drawn(first), drawn(first, num), first.verdict()
    second = vi.run(Y + 1).posterior
    assert not torch.equal(drawn(second), before[0])
    assert vi.guide.median()["mu"] != median
    assert torch.equal(drawn(first), before[0])
    assert torch.equal(drawn(first, num), before[1])
    assert first.verdict() == before[2]
    first.save(tmp_path / "first.pt")
    again = VI.load(tmp_path / "first.pt", AutoFlow(model, flow), Y)
    assert torch.equal(drawn(again.posterior), before[0])
    assert again.guide.median()["mu"] == median


def test_values_are_on_the_supports_that_the_posteriors_own_data_give() -> None:
    def up_to(high: Tensor, y: Tensor) -> None:
        z = pyro.sample("z", dist.Uniform(torch.zeros_like(high), high))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    vi, y = line(up_to), torch.tensor(0.5)
    narrow, wide = (vi.run(torch.tensor(high), y).posterior for high in (0.1, 40.0))
    assert 0 < drawn(narrow).max() < 0.1
    assert float(drawn(wide).max()) > 0.2


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda posterior: pickle.loads(pickle.dumps(posterior))])
def test_a_copy_does_what_it_does(copied: Callable[[Posterior], Posterior], fitted: VI, tmp_path: Path) -> None:
    again = copied(fitted.posterior)
    assert again.guide is not fitted.guide
    assert again.guide.layer is again.layer
    assert torch.equal(drawn(again), drawn(fitted.posterior))
    num = len(again.draws.z) + 1000
    assert torch.equal(drawn(again, num), drawn(fitted.posterior, num))
    again.save(tmp_path / "again.pt")
    assert VI.load(tmp_path / "again.pt", AutoFlow(model, flow), Y).verdict() == fitted.verdict()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda vi: pickle.loads(pickle.dumps(vi))])
def test_a_copy_of_a_vi_and_its_posterior_have_one_guide(copied: Callable[[VI], VI], fitted: VI) -> None:
    again = copied(fitted)
    assert again.guide is again.posterior.guide
    assert again.guide.layer is again.posterior.layer


def test_a_fit_whose_model_cannot_be_pickled_keeps_its_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a hierarchy are computed with the model, which does not come along."""
    monkeypatch.setattr(portable, "STRONGER", ())  # as where nobody has imported cloudpickle

    def nested(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 3.0))
        with pyro.plate("n", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    vi = line(nested).run(Y)
    assert vi.guide.latents.moving
    again = pickle.loads(pickle.dumps(vi))
    for name, values in vi.posterior.constrained(torch.arange(50)).items():
        assert torch.equal(again.posterior.constrained(torch.arange(50))[name], values)
    assert again.get_samples(100)["theta"].shape == (100, 3)
    with pytest.raises(ValueError, match="was unpickled without its model and data"):
        again.to_arviz()
    chains = vi.refine(10, num_chains=2, method="independence")
    assert torch.equal(pickle.loads(pickle.dumps(chains)).get_samples()["theta"], chains.get_samples()["theta"])


def test_a_guide_that_was_loaded_without_data_says_what_its_model_takes(fitted: VI, tmp_path: Path) -> None:
    fitted.save(tmp_path / "fit.pt")
    again = VI.load(tmp_path / "fit.pt", AutoFlow(model, flow))
    for ask in (again.guide.median, again.guide, again.judge):
        with pytest.raises(TypeError, match=r"AutoFlow: the model takes \(y: .*, and was run without any argument"):
            ask()
    assert torch.equal(again.guide.median(Y)["mu"], fitted.guide.median()["mu"])


def test_a_fit_of_a_model_without_arguments_is_not_loaded_into_one_that_takes_some(tmp_path: Path) -> None:
    line(lambda: model(Y), num_steps=5).run().save(tmp_path / "fit.pt")
    with pytest.raises(TypeError, match=r"the model takes .* VI\.load"):
        VI.load(tmp_path / "fit.pt", AutoFlow(model, flow))
    assert len(VI.load(tmp_path / "fit.pt", AutoFlow(lambda: model(Y), flow)).log_weight)


def test_saving_does_not_run_the_model(fitted: VI, tmp_path: Path) -> None:
    def broken(y: Tensor) -> None:
        raise ZeroDivisionError("the model was run")

    posterior = copy.deepcopy(fitted.posterior)
    posterior.guide._bare_model = posterior.guide._model = (broken,)
    posterior.save(tmp_path / "fit.pt")
    assert VI.load(tmp_path / "fit.pt", AutoFlow(model, flow), Y).verdict() == fitted.verdict()


def test_a_fit_loaded_without_data_is_saved_with_the_models_own_parameters(tmp_path: Path) -> None:
    pyro.clear_param_store()
    vi = line(located).run(Y)
    loc = pyro.param("loc").item()
    vi.save(tmp_path / "fit.pt")
    VI.load(tmp_path / "fit.pt", AutoFlow(located, flow)).save(tmp_path / "again.pt")
    pyro.clear_param_store()
    VI.load(tmp_path / "again.pt", AutoFlow(located, flow), Y)
    assert pyro.param("loc").item() == loc


def test_a_later_run_that_moves_the_models_own_parameters_does_not_move_an_earlier_posterior() -> None:
    pyro.clear_param_store()
    vi = line(located)
    first = vi.run(Y).posterior
    num, loc = len(first.draws.z) + 500, pyro.param("loc").item()
    pyro.set_rng_seed(3)
    before = first.with_draws(num).draws
    vi.run(Y + 10)
    now = pyro.param("loc").item()
    assert now != loc
    pyro.set_rng_seed(3)
    assert torch.equal(first.with_draws(num).draws.log_p, before.log_p)
    assert pyro.param("loc").item() == now


def test_further_draws_without_a_weight_count_for_nothing() -> None:
    def cliff() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        pyro.factor("cliff", torch.where(z.abs() > 0.5, torch.nan, 0.0) * z)

    vi = line(cliff, num_steps=20).run()
    num = len(vi.log_weight)
    assert vi.get_samples(num + 2000)["z"].isfinite().all()
    assert (vi.log_weight[num:] == -torch.inf).any()
    assert not vi.log_weight.isnan().any()
