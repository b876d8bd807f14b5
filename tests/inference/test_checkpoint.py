"""A fit that comes back: from a file, with and without the data; from a pickle, a copy, another process."""

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import ELBO, IWAE, SBC, VI, AutoDAIS, AutoFlow, AutoIAF
from pyro_nflows.guides import AutoFlow as AnyGuide
from pyro_nflows.inference import portable
from pyro_nflows.layers import Planar
from tests.few_draws import FEW, few_draws
from tests.guide_registry import Case, cases

pytestmark = pytest.mark.usefixtures("few_draws")

Y = torch.tensor([1.0, 2.5, 0.5], dtype=torch.float64)
SITES = {"mu": (), "sd": (), "share": (3,), "row": (2, 2)}


def model(y: Tensor, width: float = 1.0) -> None:
    """Constrained and unconstrained sites, scalars and a matrix."""
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 10.0))
    sd = pyro.sample("sd", dist.Gamma(y.new_tensor(2.0), 1.0))
    pyro.sample("share", dist.Dirichlet(y.new_ones(3)))
    pyro.sample("row", dist.Normal(y.new_zeros(2, 2), 1.0).to_event(2))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(mu, width * sd), obs=y)


def flow(latent_dim: int) -> Planar:
    return Planar(latent_dim)


def quick(guide: AnyGuide | None = None, **options: Any) -> VI:
    options = {"num_steps": 20, "engine": "eager", "seed": 0, "progress_bar": False, **options}
    return VI(guide or AutoFlow(model, flow), **options)


@pytest.fixture(scope="module")
def fitted() -> VI:
    pyro.clear_param_store()
    return quick(num_starts=2).run(Y)


def samples(vi: VI, num: int = 50) -> dict[str, Tensor]:
    pyro.set_rng_seed(3)
    return vi.get_samples(num)


def is_same(vi: VI, other: VI) -> bool:
    same = all(torch.equal(a, b) for a, b in zip(samples(vi).values(), samples(other).values()))
    return same and vi.verdict() == other.verdict() and vi.diagnostics() == other.diagnostics()


# ---- files --------------------------------------------------------------------------------------------------


def test_a_fit_comes_back_whole(fitted: VI, tmp_path: Path) -> None:
    fitted.save(tmp_path / "fit.pt")
    again = VI.load(tmp_path / "fit.pt", AutoFlow(model, flow), Y)
    assert is_same(fitted, again)
    assert torch.equal(again.history.trace(), fitted.history.trace())
    assert {**again.history.state(), "elbos": []} == {**fitted.history.state(), "elbos": []}
    assert again.to_arviz(num_samples=20, untrusted=True)["posterior"]["row"].shape == (2, 10, 2, 2)
    assert again.get_samples(5000)["mu"].shape == (5000,)


def test_starts_that_disagree_still_do_after_loading(tmp_path: Path) -> None:
    def two_modes(at: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(at.new_zeros(()), 30.0))
        pyro.factor("modes", -0.5 * (z.abs() - at).square())

    vi = quick(AutoFlow(two_modes, flow), num_starts=8).run(torch.tensor(10.0))
    assert vi.verdict().outcome.name == "STARTS_DISAGREE"
    vi.save(tmp_path / "fit.pt")
    assert VI.load(tmp_path / "fit.pt", AutoFlow(two_modes, flow)).verdict() == vi.verdict()


def test_without_data_there_are_draws_and_the_verdict(
    fitted: VI, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def untouched(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("the model was run")

    fitted.save(tmp_path / "fit.pt")
    again = VI.load(tmp_path / "fit.pt", AutoFlow(untouched, flow))
    assert is_same(fitted, again)
    assert {name: value.shape[1:] for name, value in samples(again).items()} == SITES
    again.summary()
    assert "share[2]" in capsys.readouterr().out
    for ask in (lambda: again.get_samples(5000), again.to_arviz, again.refine):
        with pytest.raises(
            ValueError, match=r"this VI was loaded without its data, so it has only its 4000 saved draws"
        ):
            ask()
    again.save(tmp_path / "again.pt")
    assert is_same(fitted, VI.load(tmp_path / "again.pt", AutoFlow(model, flow), Y))


def test_a_model_without_arguments_needs_none(tmp_path: Path) -> None:
    vi = quick(AutoFlow(lambda: model(Y), flow)).run()
    vi.save(tmp_path / "fit.pt")
    again = VI.load(tmp_path / "fit.pt", AutoFlow(lambda: model(Y), flow))
    assert again.get_samples(5000)["mu"].shape == (5000,)


def test_a_fit_loaded_without_data_trains_further(fitted: VI, tmp_path: Path) -> None:
    fitted.save(tmp_path / "fit.pt")
    guide = AutoFlow(model, flow)
    VI.load(tmp_path / "fit.pt", guide)
    vi = quick(guide).run(Y)
    assert vi.diagnostics()["elbo"] > fitted.diagnostics()["elbo"] - 0.5


def test_other_data_and_another_model_are_told(fitted: VI, tmp_path: Path) -> None:
    fitted.save(tmp_path / "fit.pt")
    for args in ((Y + 1,), (Y, 2.0)):
        with pytest.raises(ValueError, match=r"at a saved draw, the log density of the model with these data is -?\d"):
            VI.load(tmp_path / "fit.pt", AutoFlow(model, flow), *args)


def test_another_guide_or_flow_is_told(fitted: VI, tmp_path: Path) -> None:
    fitted.save(tmp_path / "fit.pt")
    with pytest.raises(ValueError, match="a fit of AutoFlow, got a fresh AutoIAF"):
        VI.load(tmp_path / "fit.pt", AutoIAF(model), Y)
    with pytest.raises(
        ValueError, match=r"a fit of AutoFlow with other layers, or of another model; make the guide as it was"
    ):
        VI.load(tmp_path / "fit.pt", AutoFlow(model), Y)


def test_a_fit_of_random_data_rows_is_not_compared(tmp_path: Path) -> None:
    def minibatches(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 1.0))
        with pyro.plate("n", len(y), subsample_size=1) as index:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])

    vi = quick(AutoFlow(minibatches, flow)).run(Y)
    vi.save(tmp_path / "fit.pt")
    assert VI.load(tmp_path / "fit.pt", AutoFlow(minibatches, flow), Y).get_samples(5)["mu"].shape == (5,)


def located(y: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    z = pyro.sample("z", dist.Normal(loc, scale))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def test_the_models_own_parameters_come_back(tmp_path: Path) -> None:
    vi = quick(AutoFlow(located, flow), num_steps=100).run(Y)
    before = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    assert before["loc"].abs() > 0.1
    vi.save(tmp_path / "fit.pt")
    pyro.clear_param_store()
    again = VI.load(tmp_path / "fit.pt", AutoFlow(located, flow), Y)
    assert {name: value.item() for name, value in pyro.get_param_store().items()} == pytest.approx(
        {name: value.item() for name, value in before.items()}
    )
    assert again.verdict() == vi.verdict()


def test_a_failed_save_costs_neither_the_fit_nor_the_file(
    fitted: VI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted.save(tmp_path / "fit.pt")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fitted.save(tmp_path / "fit.pt")
    assert is_same(fitted, VI.load(tmp_path / "fit.pt", AutoFlow(model, flow), Y))


# ---- pickles and copies -------------------------------------------------------------------------------------


def by_pickle(vi: VI) -> VI:
    result: VI = pickle.loads(pickle.dumps(vi))
    return result


@pytest.mark.parametrize("copied", [by_pickle, copy.deepcopy])
def test_a_copy_does_all_that_the_fit_does(fitted: VI, copied: Callable[[VI], VI]) -> None:
    again = copied(fitted)
    assert is_same(fitted, again)
    assert again.get_samples(5000)["mu"].shape == (5000,)
    assert again.to_arviz(num_samples=20, untrusted=True)["posterior"]["row"].shape == (2, 10, 2, 2)
    before = samples(fitted)
    pyro.clear_param_store()
    assert again.run(Y).diagnostics()["elbo"] > fitted.diagnostics()["elbo"] - 0.5
    assert all(torch.equal(a, b) for a, b in zip(samples(fitted).values(), before.values()))


@pytest.mark.parametrize("copied", [by_pickle, copy.deepcopy])
def test_a_fit_that_has_not_run_can_be_copied(copied: Callable[[VI], VI]) -> None:
    again = copied(quick(AutoFlow(model, flow)))
    with pytest.raises(RuntimeError, match="VI has no draws yet"):
        again.get_samples()
    assert again.run(Y).get_samples(5)["mu"].shape == (5,)


@pytest.mark.parametrize("engine", [None, "traced"])
def test_recorded_code_does_not_travel(engine: str | None) -> None:
    vi = quick(AutoFlow(model, flow), engine=engine).run(Y)
    assert is_same(by_pickle(vi), vi)


@cases()
def test_a_fit_by_any_guide_can_be_copied(case: Case) -> None:
    vi = quick(case(model), num_steps=2).run(Y)
    assert is_same(by_pickle(vi), vi)
    assert by_pickle(vi).get_samples(FEW + 500)["mu"].shape == (FEW + 500,)


def test_a_model_that_cannot_be_pickled_stays_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "STRONGER", ())  # as where nobody has imported cloudpickle
    vi = quick(AutoFlow(lambda y: model(y), flow)).run(Y)
    again = by_pickle(vi)
    assert is_same(vi, again)
    with pytest.raises(
        ValueError, match=r"was unpickled without its model and data, which could not be pickled \(.*lambda"
    ):
        again.get_samples(5000)
    with pytest.raises(ValueError, match="was unpickled without its model"):
        again.to_arviz()
    with pytest.raises(RuntimeError, match="has no model"):
        again.run(Y)
    assert copy.deepcopy(vi).get_samples(5000)["mu"].shape == (5000,)


def test_a_guide_that_cannot_be_pickled_points_to_save() -> None:
    class Odd(dist.Normal):
        pass

    def odd(y: Tensor) -> None:
        z = pyro.sample("z", Odd(y.new_zeros(()), 1.0))
        pyro.sample("y", dist.Normal(z, 1.0).expand([3]).to_event(1), obs=y)

    vi = quick(AutoFlow(odd, flow)).run(Y)
    with pytest.raises(TypeError, match=r"cannot be pickled, because its AutoFlow cannot .*vi.save\(path\)"):
        pickle.dumps(vi)


class Regression(pyro.nn.PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.loc = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(self.loc, 1.0))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def test_a_model_with_parameters_in_the_store(tmp_path: Path) -> None:
    """The store hangs weak references on parameters, which neither pickles nor copies can follow."""
    for of in (Regression(), located):
        pyro.clear_param_store()
        vi = quick(AutoFlow(of, flow)).run(Y)
        vi.guide(Y)
        assert is_same(by_pickle(vi), vi)
        assert is_same(copy.deepcopy(vi), vi)


def in_a_process(seed: int) -> VI:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    with few_draws():
        return quick(AutoFlow(model, flow), seed=seed).run(Y)


def test_fits_come_back_from_other_processes() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        fits = pool.map(in_a_process, [0, 1])
    here = quick(AutoFlow(model, flow)).run(Y)
    for name, value in samples(fits[0]).items():
        assert torch.allclose(value, samples(here)[name])
    for vi in fits:
        assert vi.get_samples(5000)["sd"].shape == (5000,)


# ---- what else is fitted or drawn ---------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [ELBO(4, compile=True), IWAE(4, compile=True), ELBO(4)])
def test_objectives_can_be_copied_after_use(objective: ELBO) -> None:
    guide = AutoFlow(model, flow)
    objective.loss_and_grads(model, guide, Y)
    for again in (pickle.loads(pickle.dumps(objective)), copy.deepcopy(objective)):
        assert (again.num_particles, again.compile) == (objective.num_particles, objective.compile)
        assert again.loss_and_grads(model, guide, Y) < 100


def test_calibrations_and_chains_can_be_copied(fitted: VI) -> None:
    check = SBC(AutoFlow(located_prior), num_simulations=4, num_samples=9, seed=0, progress_bar=False).run(Y)
    chains = fitted.refine(num_samples=10, method="independence")
    for copied in (copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))):
        assert copied(check).verdict() == check.verdict()
        assert torch.equal(copied(check).ranks["z"], check.ranks["z"])
        assert torch.equal(copied(chains).get_samples()["sd"], chains.get_samples()["sd"])


def located_prior(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def test_an_annealed_guide_draws_by_the_data_of_its_fit() -> None:
    vi = quick(AutoDAIS(located_prior), num_steps=10).run(Y)
    vi.guide(Y + 100)
    assert vi.get_samples(5000, resample=False)["z"].mean().item() == pytest.approx(float(Y.sum() / 4), abs=0.1)


def test_the_file_of_another_model_is_named_as_such(tmp_path: Path) -> None:
    def hierarchy(y: Tensor) -> None:
        level = pyro.sample("level", dist.Normal(y.new_zeros(()), 5.0))
        with pyro.plate("n", len(y)):
            theta = pyro.sample("theta", dist.Normal(level, 1.0))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    quick(AutoFlow(hierarchy)).run(Y).save(tmp_path / "fit.pt")
    with pytest.raises(ValueError, match=r"of another model: its latent sites are \['level', 'theta'\], those of this"):
        VI.load(tmp_path / "fit.pt", AutoFlow(model), Y)
