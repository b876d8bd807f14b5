"""What ArviZ is given is what the model says, and ArviZ can work with it, on both of its lines."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.infer.autoguide import AutoNormal, init_to_median
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.nn import PyroModule, PyroSample
from torch import Tensor

from pyro_nflows.arviz import to_arviz

MODERN = int(arviz.__version__.split(".")[0]) >= 1
Y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], dtype=torch.float64)
SIGMA = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], dtype=torch.float64)
SCHOOLS = list("ABCDEFGH")
GROUPS = {
    "posterior",
    "sample_stats",
    "log_likelihood",
    "log_prior",
    "posterior_predictive",
    "prior",
    "prior_predictive",
    "observed_data",
    "constant_data",
}


def eight_schools(y: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.deterministic("effect", theta - mu)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def school_draws(*shape: int) -> dict[str, Tensor]:
    mu, tau = 4 + 3 * torch.randn(shape), 5 * torch.rand(shape) + 0.1
    return {"mu": mu, "tau": tau, "theta": mu[..., None] + tau[..., None] * torch.randn(*shape, 8)}


def regression(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(x @ slope, 1.0), obs=y)


def groups(data: Any) -> set[str]:
    return set(data.children) if MODERN else set(data.groups())


@pytest.fixture(scope="module")
def data() -> Any:
    torch.manual_seed(0)
    stats = {name: torch.randn(500) for name in ("lp", "log_q", "log_weight")}
    return to_arviz(
        eight_schools, school_draws(500), (Y,), {"sigma": SIGMA}, sample_stats=stats, coords={"school": SCHOOLS}, seed=0
    )


def test_all_groups_are_there(data: Any) -> None:
    assert groups(data) == GROUPS
    assert type(data).__name__ == ("DataTree" if MODERN else "InferenceData")


@pytest.mark.parametrize(
    ("group", "dims"),
    [
        ("posterior", {"mu": (), "tau": (), "theta": ("school",), "effect": ("school",)}),
        ("prior", {"mu": (), "tau": (), "theta": ("school",), "effect": ("school",)}),
        ("sample_stats", {"lp": (), "log_q": (), "log_weight": ()}),
        ("log_likelihood", {"y": ("school",)}),
        ("log_prior", {"mu": (), "tau": (), "theta": ("school",)}),
        ("posterior_predictive", {"y": ("school",)}),
        ("prior_predictive", {"y": ("school",)}),
    ],
)
def test_dimensions_are_named_by_plates(data: Any, group: str, dims: dict[str, tuple[str, ...]]) -> None:
    assert {n: v.dims for n, v in data[group].data_vars.items()} == {n: ("chain", "draw", *d) for n, d in dims.items()}
    assert dict(data[group].sizes).items() >= {"chain": 1, "draw": 500}.items()
    if "school" in data[group].coords:
        assert list(data[group].coords["school"].values) == SCHOOLS


def test_data_groups_hold_the_arguments_once(data: Any) -> None:
    np.testing.assert_array_equal(data["observed_data"]["y"], Y)
    assert data["observed_data"]["y"].dims == ("school",)
    assert list(data["constant_data"].data_vars) == ["sigma"]
    np.testing.assert_array_equal(data["constant_data"]["sigma"], SIGMA)


def test_attributes_follow_the_convention(data: Any) -> None:
    for group in groups(data):
        attrs = data[group].attrs
        assert attrs["inference_library"] == "pyro_nflows"
        assert attrs["inference_library_version"]
        assert attrs["created_at"]
        assert "notes" not in attrs
    assert data.attrs["inference_library"] == "pyro_nflows"


def test_values_are_those_of_the_model(data: Any) -> None:
    posterior = {name: torch.tensor(data["posterior"][name].values[0]) for name in ("mu", "theta", "effect")}
    torch.testing.assert_close(posterior["effect"], posterior["theta"] - posterior["mu"][:, None])
    expected = dist.Normal(posterior["theta"], SIGMA).log_prob(Y)
    np.testing.assert_allclose(data["log_likelihood"]["y"].values[0], expected)
    tau = torch.tensor(data["posterior"]["tau"].values[0])
    prior = {"tau": dist.HalfCauchy(5.0).log_prob(tau), "mu": dist.Normal(0.0, 5.0).log_prob(posterior["mu"])}
    prior["theta"] = dist.Normal(posterior["mu"], tau).log_prob(posterior["theta"].T).T
    for name, value in prior.items():
        np.testing.assert_allclose(data["log_prior"][name].values[0], value, rtol=1e-5, atol=1e-5)
    replicated = (torch.tensor(data["posterior_predictive"]["y"].values[0]) - posterior["theta"]) / SIGMA
    assert abs(replicated.mean()) < 5 / replicated.numel() ** 0.5
    assert abs(replicated.square().mean() - 1) < 5 * (2 / replicated.numel()) ** 0.5
    prior_mu = data["prior"]["mu"].values / 5
    assert abs(prior_mu.mean()) < 5 / 500**0.5


def test_summary_has_a_row_for_every_parameter(data: Any) -> None:
    summary = arviz.summary(data, var_names=["mu", "theta"])
    assert list(summary.index) == ["mu", *(f"theta[{school}]" for school in SCHOOLS)]
    assert float(summary.loc["mu", "mean"]) == pytest.approx(float(data["posterior"]["mu"].mean()), abs=0.5)


def test_loo_and_compare_run(data: Any) -> None:
    loo = arviz.loo(data)
    assert loo.n_data_points == 8
    assert np.isfinite(loo.elpd if MODERN else loo.elpd_loo)
    table = arviz.compare({"these": data, "same": data})
    assert set(table.index) == {"these", "same"}


# ArviZ 0.2x, with Matplotlib 3.11.
@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping:DeprecationWarning")
def test_plots_run(data: Any) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    with pyplot.rc_context({"backend": "agg"}):
        arviz.plot_pair(data, var_names=["mu", "tau"])
        (arviz.plot_ppc_dist if MODERN else arviz.plot_ppc)(data)
        pyplot.close("all")


def test_netcdf_round_trip(data: Any, tmp_path: Path) -> None:
    data.to_netcdf(str(tmp_path / "data.nc"))
    loaded = arviz.from_netcdf(str(tmp_path / "data.nc"))
    assert groups(loaded) == groups(data)
    for group in groups(data):
        for name, variable in data[group].data_vars.items():
            np.testing.assert_array_equal(loaded[group][name].values, variable.values)
            assert loaded[group][name].dims == variable.dims
    loaded.close()


def test_seed_makes_it_reproducible_and_spares_the_global_state() -> None:
    draws, before = school_draws(50), torch.get_rng_state()
    first, second = (to_arviz(eight_schools, draws, (Y, SIGMA), seed=5) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for group, name in [("posterior_predictive", "y"), ("prior", "theta")]:
        np.testing.assert_array_equal(first[group][name].values, second[group][name].values)
    unseeded = to_arviz(eight_schools, draws, (Y, SIGMA))
    assert not torch.equal(torch.get_rng_state(), before)
    assert not np.array_equal(unseeded["prior"]["theta"].values, first["prior"]["theta"].values)


def test_chains_stay_apart() -> None:
    draws = school_draws(3, 40)
    stats = {"lp": torch.randn(3, 40)}
    data = to_arviz(eight_schools, draws, (Y, SIGMA), sample_stats=stats, group_by_chain=True, seed=0)
    np.testing.assert_array_equal(data["posterior"]["theta"].values, draws["theta"])
    np.testing.assert_array_equal(data["sample_stats"]["lp"].values, stats["lp"])
    expected = dist.Normal(draws["theta"], SIGMA).log_prob(Y)
    np.testing.assert_allclose(data["log_likelihood"]["y"].values, expected)
    assert dict(data["prior"].sizes)["chain"] == 1
    assert {"ess_bulk", "r_hat"} <= set(arviz.summary(data).columns)


def test_groups_can_be_left_out() -> None:
    options = {"log_likelihood": False, "log_prior": False, "posterior_predictive": False, "num_prior": 0}
    data = to_arviz(eight_schools, school_draws(10), (Y, SIGMA), **options)
    assert groups(data) == {"posterior", "observed_data", "constant_data"}
    assert "notes" not in data["posterior"].attrs


def test_event_dimensions_are_counted_and_can_be_named() -> None:
    def model(y: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("day", 3), pyro.plate("site", 4, dim=-2):
            pyro.sample("y", dist.MultivariateNormal(loc, torch.eye(2)), obs=y)

    arguments = (model, {"loc": torch.randn(10, 2)}, (torch.randn(4, 3, 2),))
    data = to_arviz(*arguments, seed=0)
    assert data["posterior"]["loc"].dims == ("chain", "draw", "loc_dim_0")
    assert data["posterior_predictive"]["y"].dims == ("chain", "draw", "site", "day", "y_dim_0")
    assert data["observed_data"]["y"].dims == ("site", "day", "y_dim_0")
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "site", "day")
    dims = {"loc": ["axis"], "y": ["site", "day", "axis"]}
    data = to_arviz(*arguments, dims=dims, coords={"axis": ["east", "north"]}, seed=0)
    assert data["observed_data"]["y"].dims == ("site", "day", "axis")
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "site", "day")
    assert list(data["posterior"].coords["axis"].values) == ["east", "north"]


def test_masked_observations_are_dropped_from_the_log_likelihood() -> None:
    seen = Y > 0

    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("school", len(y)), poutine.scale(scale=2.0), poutine.mask(mask=seen):
            pyro.sample("y", dist.Normal(z, 10.0), obs=y)

    z = torch.randn(200)
    data = to_arviz(model, {"z": z}, (torch.where(seen, Y, torch.nan),), seed=0)
    variable = data["log_likelihood"]["y"]
    assert variable.dims == ("chain", "draw", "y_unmasked")
    np.testing.assert_array_equal(variable.coords["y_unmasked"], seen.nonzero().squeeze(-1))
    np.testing.assert_allclose(variable.values[0], dist.Normal(z[:, None], 10.0).log_prob(Y)[:, seen])
    assert arviz.loo(data).n_data_points == seen.sum()
    assert data["posterior_predictive"]["y"].shape == (1, 200, 8)


def test_an_improper_prior_is_left_out_with_a_note() -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    data = to_arviz(model, {"z": torch.randn(20)}, (torch.tensor(1.0),), seed=0)
    assert groups(data) == {"posterior", "log_likelihood", "log_prior", "posterior_predictive", "observed_data"}
    assert data["posterior"].attrs["notes"].startswith("no prior: NotImplementedError")


def test_a_subsampled_plate_is_left_out_with_a_note() -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y), subsample_size=3) as rows:
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])

    data = to_arviz(model, {"z": torch.randn(20)}, (Y,), seed=0)
    assert groups(data) == {"posterior", "log_prior", "prior", "constant_data"}
    assert data["posterior"].attrs["notes"] == "no data of y: a plate shows a random part of it"


def test_enumerated_latents_do_not_break_it() -> None:
    def model(y: Tensor, pairwise: bool) -> None:
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        with pyro.plate("unit", len(y)):
            label = pyro.sample("label", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            if pairwise:
                pyro.sample("again", dist.Normal(loc[label], 2.0), obs=y)
            pyro.sample("y", dist.Normal(loc[label], 1.0), obs=y)

    loc = 3 * torch.randn(20, 2)
    data = to_arviz(model, {"loc": loc}, (Y, False), seed=0)
    half = dist.Categorical(torch.ones(2))
    exact = dist.MixtureSameFamily(half, dist.Normal(loc[:, None], 1.0)).log_prob(Y)
    np.testing.assert_allclose(data["log_likelihood"]["y"].values[0], exact)
    assert list(data["posterior"].data_vars) == ["loc"]
    data = to_arviz(model, {"loc": loc}, (Y, True), seed=0)
    assert "log_likelihood" not in groups(data)
    assert "no log_likelihood of y: its discrete latents" in data["posterior"].attrs["notes"]
    assert set(data["posterior_predictive"].data_vars) == {"again", "y"}


def test_sequential_plates() -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for i in pyro.plate("school", 3):
            pyro.sample(f"y_{i}", dist.Normal(z, 1.0), obs=y[i])

    data = to_arviz(model, {"z": torch.randn(20)}, (Y[:3],), seed=0)
    for group in ("log_likelihood", "posterior_predictive", "observed_data"):
        assert set(data[group].data_vars) == {"y_0", "y_1", "y_2"}
    assert data["log_likelihood"]["y_1"].dims == ("chain", "draw")
    assert set(data["prior"].data_vars) == {"z"}


def test_names_that_xarray_and_netcdf_cannot_hold_are_changed(tmp_path: Path) -> None:
    def model(y: Tensor) -> None:
        with scope(prefix="part"):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("draw", len(y)):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    data = to_arviz(model, {"part/z": torch.randn(20)}, (Y,), seed=0)
    assert list(data["posterior"].data_vars) == ["part.z"]
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "draw_plate")
    data.to_netcdf(str(tmp_path / "data.nc"))


def test_arguments_are_named_by_the_signature() -> None:
    def model(x: Tensor, *more: Tensor, options: dict[str, Any], **rest: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=rest["y"])

    arguments = (torch.ones(2), torch.ones(3), torch.ones(4))
    options = {"scale": torch.tensor(2.0), "name": "text", "pair": [np.ones(5), 1]}
    data = to_arviz(model, {"z": torch.randn(5)}, arguments, {"options": options, "y": Y[0], "w": Y}, seed=0)
    sizes = {name: variable.size for name, variable in data["constant_data"].data_vars.items()}
    assert sizes == {"x": 2, "more_0": 3, "more_1": 4, "options_scale": 1, "options_pair_0": 5, "w": 8}


class Linear(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.slope = PyroSample(dist.Normal(torch.zeros(2), 1.0).to_event(1))
        self.offset = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("row", len(x)):
            pyro.sample("y", dist.Normal(x @ self.slope + self.offset, 1.0), obs=y)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model,
        lambda model: poutine.condition(poutine.scale(model, 2.0), {"unused": torch.tensor(1.0)}),
        lambda model: AutoNormal(model).model,
        lambda model: InitMessenger(init_to_median)(poutine.block(model, hide=["nothing"])),
    ],
)
def test_modules_and_wrapped_models(wrap: Callable[[Any], Any]) -> None:
    x, slope = torch.randn(4, 2), torch.randn(30, 2)
    data = to_arviz(wrap(Linear()), {"slope": slope}, (x, Y[:4]), seed=0)
    expected = dist.Normal(slope @ x.T + 0.5, 1.0).log_prob(Y[:4])
    np.testing.assert_allclose(data["log_likelihood"]["y"].values[0], expected.detach())
    assert list(data["constant_data"].data_vars) == ["x"]
    assert list(pyro.get_param_store().keys()) == []


def test_models_whose_signature_is_hidden() -> None:
    def decorated(*args: Tensor) -> None:
        eight_schools(*args, SIGMA)

    functools.update_wrapper(decorated, eight_schools)
    data = to_arviz(decorated, school_draws(5), (Y,), seed=0)
    assert groups(data) == GROUPS - {"sample_stats", "constant_data"}
    data = to_arviz(functools.partial(eight_schools, sigma=SIGMA), school_draws(5), (Y,), seed=0)
    assert groups(data) == GROUPS - {"sample_stats", "constant_data"}


def test_parameters_of_the_model_are_read_and_left_alone() -> None:
    def model(y: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), scale), obs=y)

    z, y = torch.randn(5), torch.tensor(0.0)
    pyro.param("scale", torch.tensor(3.0), constraint=dist.constraints.positive)
    data = to_arviz(model, {"z": z}, (y,), seed=0)
    np.testing.assert_allclose(data["log_likelihood"]["y"].values[0], dist.Normal(z, 3.0).log_prob(y))
    assert pyro.param("scale").requires_grad
    pyro.clear_param_store()
    to_arviz(model, {"z": z}, (y,), seed=0)
    assert list(pyro.get_param_store().keys()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    data = to_arviz(
        regression, {"slope": torch.randn(5, 2, dtype=dtype)}, (torch.ones(4, 2, dtype=dtype), Y[:4].to(dtype))
    )
    name = str(dtype).removeprefix("torch.")
    assert data["posterior"]["slope"].dtype == name
    assert data["log_likelihood"]["y"].dtype == name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {"mu": d["mu"]}, "expected the latent site 'tau' too"),
        (lambda d: d | {"mu": d["mu"][:3]}, "samples: got .*'mu': \\(1, 3\\)"),
        (lambda d: d | {"mu": d["mu"][0]}, "expected \\(1, 10\\) for every name"),
        (lambda d: {}, "samples: got .*{}"),
    ],
)
def test_mistakes_are_named(change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_arviz(eight_schools, change(school_draws(10)), (Y, SIGMA))


def test_statistics_of_other_draws_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sample_stats: got .*\(1, 9\).*expected \(1, 10\)"):
        to_arviz(eight_schools, school_draws(10), (Y, SIGMA), sample_stats={"lp": torch.zeros(9)})


def unsampled(y: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("flat", dist.ImproperUniform(dist.constraints.real, (), ()), obs=y[0])
    pyro.sample("y", dist.Normal(mu, 1.0).expand([len(y)]).to_event(1), obs=y)


def test_replicated_data_that_cannot_be_drawn_are_left_out_with_a_note() -> None:
    data = to_arviz(unsampled, {"mu": torch.randn(6)}, (torch.zeros(3),), seed=0)
    notes = data["posterior"].attrs["notes"]
    assert "no posterior_predictive: NotImplementedError" in notes
    assert "no prior: NotImplementedError" in notes
    assert "posterior_predictive" not in groups_of(data)
    assert set(data["log_likelihood"].data_vars) == {"flat", "y"}


def groups_of(data: Any) -> set[str]:
    return set(data.groups()) if hasattr(data, "extend") else set(data.children)


EXTRAS = {
    "labels": np.array(list("ABC")),
    "objects of strings": np.array(["A", "BC"], dtype=object),
    "dates": np.array(["2020-01-01", "2021-06-30"], dtype="datetime64[D]"),
    "spans": np.array([1, 5], dtype="timedelta64[D]"),
    "reversed": np.arange(4.0)[::-1],
    "sparse": torch.eye(3).to_sparse(),
    "complex": np.array([1j, 2.0]),
    "booleans": np.array([True, False]),
    "half": torch.ones(2, dtype=torch.bfloat16),
}


def shrug(extra: Any) -> None:
    pyro.sample("y", dist.Normal(pyro.sample("mu", dist.Normal(0.0, 1.0)), 1.0), obs=torch.tensor(0.3))


@pytest.mark.parametrize("name", EXTRAS)
def test_arrays_of_any_kind_among_the_arguments_are_kept(name: str) -> None:
    extra = EXTRAS[name]
    data = to_arviz(shrug, {"mu": torch.randn(4)}, (extra,), seed=0)
    kept = data["constant_data"]["extra"].values
    right = extra.to_dense().float().numpy() if isinstance(extra, torch.Tensor) else extra
    assert (kept == right).all()
    assert "notes" not in data["posterior"].attrs


def test_arrays_that_cannot_be_kept_are_named() -> None:
    for extra in (np.array(["a", None], dtype=object), np.zeros(2, dtype=[("a", float), ("b", int)])):
        data = to_arviz(shrug, {"mu": torch.randn(4)}, (extra,), seed=0)
        assert "no constant_data of extra: TypeError: an array" in data["posterior"].attrs["notes"]


def test_latents_without_constraint_are_pyros(data: Any) -> None:
    draws = school_draws(20)
    found = to_arviz(eight_schools, draws, (Y, SIGMA), unconstrained=True, seed=0)
    assert groups(found) == GROUPS - {"sample_stats"} | {"unconstrained_posterior"}
    real = found["unconstrained_posterior"]
    np.testing.assert_allclose(real["tau"].values[0], draws["tau"].log())
    np.testing.assert_allclose(real["theta"].values[0], draws["theta"])
    assert real["theta"].dims == ("chain", "draw", "school")
    assert "unconstrained_posterior" not in groups(data)


def test_a_simplex_without_constraint_has_a_dimension_less() -> None:
    def shares() -> None:
        pyro.sample("share", dist.Dirichlet(torch.ones(3)))

    found = to_arviz(shares, {"share": torch.tensor([[0.2, 0.3, 0.5]] * 4)}, unconstrained=True, seed=0)
    assert found["unconstrained_posterior"]["share"].shape == (1, 4, 2)


def varying(x: Tensor, y: Tensor | None = None) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(x)):
        mean = pyro.deterministic("mean", slope * x)
        pyro.sample("y", dist.Normal(mean, 1e-3), obs=y)


@pytest.mark.parametrize("given", [(torch.tensor([2.0, 5.0]),), {"x": np.array([2.0, 5.0], dtype="float32")}])
def test_predictions_have_groups_of_their_own(given: Any) -> None:
    x, slope = torch.linspace(0.0, 1.0, 4), torch.randn(30)
    options: dict[str, Any] = {"coords": {"row": list("abcd")}, "seed": 0}
    found = to_arviz(varying, {"slope": slope}, (x, 2 * x), predictions=given, **options)
    made, held = found["predictions"], found["predictions_constant_data"]
    assert made["y"].dims == made["mean"].dims == ("chain", "draw", "row")
    np.testing.assert_allclose(made["y"].values[0], slope[:, None] * torch.tensor([2.0, 5.0]), atol=0.01)
    np.testing.assert_allclose(held["x"].values, [2.0, 5.0])
    assert found["posterior_predictive"]["y"].shape == (1, 30, 4)
    assert list(found["posterior_predictive"]["row"].values) == list("abcd")
    assert list(made["row"].values) == [0, 1]
    assert groups(found) >= {"predictions", "predictions_constant_data"}


def test_predictions_that_cannot_be_are_refused() -> None:
    x, slope = torch.linspace(0.0, 1.0, 4), {"slope": torch.randn(5)}
    with pytest.raises(TypeError, match=r"got predictions of type Tensor, .* a tuple by position"):
        to_arviz(varying, slope, (x, x), predictions=x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"predictions"):
        to_arviz(varying, slope, (x, x), predictions={"z": x})
    draws = school_draws(5)
    with pytest.raises(ValueError, match="'theta' has shape"):
        to_arviz(eight_schools, draws, (Y, SIGMA), predictions=(Y[:3], SIGMA[:3]))


@pytest.mark.filterwarnings("ignore")
def test_a_single_observation_has_no_dimension_in_any_group(tmp_path: Path) -> None:
    def model(y: Tensor) -> None:
        pyro.sample("y", dist.Normal(pyro.sample("mu", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    data = to_arviz(model, {"mu": 0.5 * torch.randn(2, 400)}, (torch.tensor(0.7),), group_by_chain=True, seed=0)
    for group in ("posterior_predictive", "log_likelihood"):
        assert data[group]["y"].dims == ("chain", "draw", *data["observed_data"]["y"].dims)
    assert data["observed_data"]["y"].shape == ()
    assert arviz.loo(data).n_data_points == 1
    data.to_netcdf(str(tmp_path / "data.nc"))
    if not MODERN:
        assert 0 < float(arviz.loo_pit(data, y="y")) < 1
        assert np.isfinite(float(arviz.psens(data, component="likelihood")["mu"]))


def test_predictions_of_new_groups_draw_them_from_their_prior() -> None:
    draws = {"mu": torch.full((2000,), 3.0), "tau": torch.full((2000,), 2.0), "theta": torch.zeros(2000, 8)}
    options: dict[str, Any] = {"predictions": (Y[:3], SIGMA[:3]), "log_likelihood": False, "seed": 0}
    with pytest.raises(ValueError, match=r"^to_arviz\(predictions=\): the latent site 'theta' .*fresh=\['theta'\]"):
        to_arviz(eight_schools, draws, (Y, SIGMA), **options)
    with pytest.raises(ValueError, match=r"fresh has \['nu'\], but the latent sites are"):
        to_arviz(eight_schools, draws, (Y, SIGMA), fresh=["nu"], **options)
    with pytest.raises(ValueError, match=r"got fresh=\['theta'\] without predictions="):
        to_arviz(eight_schools, draws, (Y, SIGMA), fresh=["theta"])
    found = to_arviz(eight_schools, draws, (Y, SIGMA), fresh=["theta"], **options)
    theta = found["predictions"]["theta"]
    assert theta.dims == ("chain", "draw", "school")
    assert theta.shape == found["predictions"]["y"].shape == (1, 2000, 3)
    assert (abs(theta.values[0].mean(0) - 3) < 5 * 2 / 2000**0.5).all()
    assert (found["posterior"]["theta"] == 0).all()


def test_predictions_of_random_rows_are_refused() -> None:
    def model(x: Tensor, y: Tensor | None = None) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(x), subsample_size=3) as rows:
            pyro.sample("y", dist.Normal(slope * x[rows], 1.0), obs=None if y is None else y[rows])

    with pytest.raises(ValueError, match=r"^to_arviz\(predictions=\): plate 'row' shows a random 3 of its 8 rows"):
        to_arviz(model, {"slope": torch.randn(5)}, (Y, Y), predictions=(Y,), seed=0)
