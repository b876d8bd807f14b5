"""Prior-informed coordinates: the same posterior, whichever centering, and a hierarchy without its funnel."""

import copy
import inspect
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.mcmc.util import initialize_model
from pyro.infer.reparam import LocScaleReparam, NeuTraReparam
from pyro.optim import ClippedAdam
from torch import Tensor

from pyro_nflows import ELBO, VI, AutoCIF, AutoDAIS, AutoFlow, AutoSpline
from pyro_nflows.engine import Trainer
from pyro_nflows.layers import LocScale, Planar
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.log_joint import LogJoint, Vectorization
from pyro_nflows.testing import check_coordinates
from tests.bounds import assert_same_bounds
from tests.guide_registry import moved

Y = torch.tensor(0.7, dtype=torch.float64)
CENTERINGS = [None, 0.0, 0.4, 1.0]
each_centering = pytest.mark.parametrize("centering", CENTERINGS)


def pair(y: Tensor = Y) -> None:
    """The smallest hierarchy."""
    tau = pyro.sample("tau", dist.LogNormal(0.0, 0.5))
    z = pyro.sample("z", dist.Normal(0.3, tau))
    pyro.sample("y", dist.Normal(z, 0.5), obs=y)


def schools(y: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


SCHOOLS = (
    torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=torch.float64),
    torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=torch.float64),
)


def grid(num: int = 241, far: float = 9.0) -> tuple[Tensor, float]:
    """Points of the plane, and the area that each stands for."""
    side = torch.linspace(-far, far, num)
    return torch.cartesian_prod(side, side), float((side[1] - side[0]) ** 2)


def flow(latent_dim: int) -> Planar:
    return Planar(latent_dim)


def joint_of(guide: AutoFlow, model: Callable[..., Any], *args: Any) -> LogJoint:
    guide(*args)
    return LogJoint(BoundModel(model, args), guide.latents)


@each_centering
def test_the_evidence_is_the_same(centering: Any) -> None:
    points, area = grid()
    joint = joint_of(AutoFlow(pair, flow, centering=centering), pair, Y)
    tau = (0.5 * torch.linspace(-9, 9, 20_001)).exp()  # z is summed out: y is normal given tau
    density = dist.Normal(0.3, (tau**2 + 0.25).sqrt()).log_prob(Y).exp() * dist.LogNormal(0.0, 0.5).log_prob(tau).exp()
    assert float(joint(points).exp().sum()) * area == pytest.approx(float(torch.trapezoid(density, tau)), rel=1e-5)


@each_centering
def test_the_guides_density_of_values_integrates_to_one(centering: Any) -> None:
    guide = AutoFlow(pair, lambda dim: LocScale(dim), centering=centering, init_scale=0.5)
    guide(Y)
    points, area = grid()
    log_tau, z = points.T
    log_density = guide.log_prob({"tau": log_tau.exp(), "z": z}, 1, Y) + log_tau
    assert float(log_density.detach().exp().sum()) * area == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("centering", [0.0, 0.4, {"theta": torch.linspace(0.0, 1.0, 8)}])
def test_values_and_coordinates_are_each_others_inverses(centering: Any) -> None:
    guide = AutoFlow(schools, centering=centering)
    guide(*SCHOOLS)
    v = torch.randn(5, guide.latent_dim)
    values = guide.constrain(v, *SCHOOLS)
    back, _ = guide.unconstrain(values, *SCHOOLS)
    torch.testing.assert_close(back, v)
    if centering == 0.0:
        theta = values["mu"][:, None] + values["tau"][:, None] * v[:, 2:]
        torch.testing.assert_close(values["theta"], theta)


@pytest.mark.parametrize("how", list(Vectorization))
def test_every_way_to_run_rows_gives_the_same(how: Vectorization) -> None:
    joint = joint_of(AutoFlow(schools, centering=0.3), schools, *SCHOOLS)
    joint.prepare()
    z = torch.randn(4, 10)
    expected = torch.stack([joint.single(row) for row in z])
    joint.how = how
    torch.testing.assert_close(joint(z), expected)


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO])
def test_pyros_bounds_are_ours(loss: Any) -> None:
    guide = AutoFlow(schools, flow, centering=0.0, init_scale=0.5)
    assert_same_bounds(ELBO(1), loss(), schools, guide, *SCHOOLS)


@pytest.mark.parametrize("centering", [0.0, "auto"])
def test_eight_schools_are_fitted_without_the_funnel(centering: Any) -> None:
    found = VI(AutoFlow(schools, centering=centering), seed=0, progress_bar=False).run(*SCHOOLS)
    d = found.diagnostics()
    assert d["outcome"].name == "TRUST"
    assert d["ess"] > 0.95
    assert d["num_steps"] < 5000
    assert d["iwae"] == pytest.approx(-31.311, abs=0.01)  # the evidence, as without centering
    draws = found.get_samples(20_000)
    assert float(draws["tau"].mean()) == pytest.approx(3.6, abs=0.15)
    assert float(draws["mu"].mean()) == pytest.approx(4.4, abs=0.15)
    assert draws["theta"].shape == (20_000, 8)


def groups(y: Tensor, counts: Tensor) -> None:
    """Group means of some observations each."""
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("group", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, tau))
        pyro.sample("y", dist.Normal(z, counts.rsqrt()), obs=y)


def test_measured_centering_grows_with_the_data_of_a_group() -> None:
    counts = torch.tensor([0.01, 1.0, 10.0, 1000.0])
    y = torch.tensor([0.3, -1.0, 1.2, -0.8])
    guide = AutoFlow(groups, flow, centering="auto")
    VI(guide, num_steps=20, seed=0, progress_bar=False).run(y, counts)
    found = guide.latents.centering["z"]
    variance = 0.9**2  # of a group, about
    expected = counts / (counts + 1 / variance)
    torch.testing.assert_close(found, expected.to(found), atol=0.12, rtol=0)
    assert (found.diff() > 0).all()


def test_the_centering_of_a_trained_guide_stays(tmp_path: Path) -> None:
    guide = AutoFlow(schools, flow, centering="auto")
    vi = VI(guide, num_steps=20, seed=0, progress_bar=False).run(*SCHOOLS)
    found = guide.latents.centering["theta"]
    vi.run(*SCHOOLS)
    assert torch.equal(guide.latents.centering["theta"], found)
    vi.save(tmp_path / "fit.pt")
    loaded = VI.load(tmp_path / "fit.pt", AutoFlow(schools, flow, centering="auto"), *SCHOOLS)
    torch.testing.assert_close(loaded.guide.latents.centering["theta"], found)
    values = {name: value[:3] for name, value in vi.get_samples(10, resample=False).items()}
    expected = guide.log_prob(values, 1, *SCHOOLS)
    torch.testing.assert_close(loaded.guide.log_prob(values, 1, *SCHOOLS), expected)


def test_a_run_that_fails_leaves_the_guide_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no")

    guide = AutoFlow(schools, flow, centering="auto")
    guide(*SCHOOLS)
    layer, latents = guide.layer, guide.latents
    monkeypatch.setattr(Trainer, "run_many", fails)
    with pytest.raises(OSError, match="no"):
        VI(guide, num_steps=20, seed=0, progress_bar=False).run(*SCHOOLS)
    assert guide.centering == "auto"
    assert guide.layer is layer
    assert guide.latents.centering.keys() == latents.centering.keys()
    assert float(guide.latents.centering["theta"]) == 0.0


def test_a_killed_run_goes_on_in_the_same_coordinates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def line(path: Path | None) -> VI:
        guide = AutoFlow(schools, flow, centering="auto")
        return VI(guide, num_steps=60, seed=0, engine="traced", checkpoint=path, progress_bar=False)

    expected = line(None).run(*SCHOOLS)
    path, run_many, calls = tmp_path / "run.pt", Trainer.run_many, [0]

    def breaks_off(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            self.journal.write()
            raise OSError("killed")
        return run_many(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "run_many", breaks_off)
    with pytest.raises(OSError, match="killed"):
        line(path).run(*SCHOOLS)
    monkeypatch.undo()
    found = line(path).run(*SCHOOLS)
    torch.testing.assert_close(found.log_weight, expected.log_weight)


def test_svi_and_predictive() -> None:
    guide = AutoSpline(schools, 2, (8,), centering=0.0)
    svi = SVI(schools, guide, ClippedAdam({"lr": 0.01}), Trace_ELBO(8, vectorize_particles=True))
    losses = torch.tensor([svi.step(*SCHOOLS) for _ in range(300)])
    assert losses[-50:].mean() < losses[:50].mean()
    draws = Predictive(schools, guide=guide, num_samples=7)(*SCHOOLS)
    assert draws["theta"].shape == (7, 8)
    guide.median(*SCHOOLS)


def chain(y: Tensor) -> None:
    """A random walk whose step size is unknown; each site's prior is around the last one."""
    step = pyro.sample("step", dist.HalfNormal(1.0))
    x: Any = 0.0
    for t in pyro.markov(range(len(y))):
        x = pyro.sample(f"x_{t}", dist.Normal(x, step))
        pyro.sample(f"y_{t}", dist.Normal(x, 1.0), obs=y[t])


def vectors(y: Tensor) -> None:
    """Rows of a matrix normal around an unknown mean with an unknown Cholesky factor, in two plates."""
    scale = pyro.sample("scale", dist.HalfNormal(torch.ones(2)).to_event(1))
    cholesky = pyro.sample("cholesky", dist.LKJCholesky(2, 1.0))
    with pyro.plate("a", 2, dim=-2), pyro.plate("b", 3, dim=-1):
        z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), scale_tril=scale[..., None] * cholesky))
        log_rate = pyro.sample("rate", dist.LogNormal(z.sum(-1), scale[0]))
        pyro.sample("y", dist.Normal(log_rate, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "y", "sites"),
    [
        (chain, torch.tensor([0.1, 0.5, -0.2]), ["x_0", "x_1", "x_2"]),
        (vectors, torch.ones(2, 3), ["rate", "z"]),
    ],
)
def test_chains_of_sites_and_vectors_have_the_density_of_the_jacobian(model: Any, y: Any, sites: list[str]) -> None:
    plain, guide = AutoFlow(model), AutoFlow(model, centering=0.3)
    y = y.double()
    joint, own = joint_of(plain, model, y), joint_of(guide, model, y)
    assert sorted(guide.latents.centering) == sites
    v = 0.5 * torch.randn(own.latents.dim)

    def unconstrained(v: Tensor) -> Tensor:
        values = {name: value[0] for name, value in guide.constrain(v[None], y).items()}
        return plain.unconstrain(values, y)[0]

    jacobian = torch.autograd.functional.jacobian(unconstrained, v)
    expected = joint(unconstrained(v)[None]) + torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(own(v[None]), expected)


def test_copies_pickles_and_files_keep_it(tmp_path: Path) -> None:
    vi = VI(AutoFlow(schools, flow, centering=0.2), num_steps=20, seed=0, progress_bar=False).run(*SCHOOLS)
    values = {name: value[:3] for name, value in vi.get_samples(10, resample=False).items()}
    expected = vi.guide.log_prob(values, 1, *SCHOOLS)
    vi.save(tmp_path / "fit.pt")
    loaded = VI.load(tmp_path / "fit.pt", AutoFlow(schools, flow, centering=0.2), *SCHOOLS)
    twin = copy.deepcopy(vi.guide)
    for guide in (loaded.guide, twin):
        torch.testing.assert_close(guide.log_prob(values, 1, *SCHOOLS), expected)
    file = io.BytesIO()
    torch.save(vi.guide.state_dict(), file)
    file.seek(0)
    fresh = AutoFlow(schools, flow, centering=0.2)
    fresh.load_state_dict(torch.load(file))
    fresh(*SCHOOLS)
    torch.testing.assert_close(fresh.log_prob(values, 1, *SCHOOLS), expected)


def test_the_file_says_how_centered_the_guide_is(tmp_path: Path) -> None:
    for then, now in ((0.2, None), (None, 0.2), ({"theta": torch.rand(8)}, 0.0)):
        vi = VI(AutoFlow(schools, flow, centering=then), num_steps=20, seed=0, progress_bar=False).run(*SCHOOLS)
        vi.save(tmp_path / "fit.pt")
        loaded = VI.load(tmp_path / "fit.pt", AutoFlow(schools, flow, centering=now), *SCHOOLS)
        v = torch.randn(3, 10)
        for name, value in vi.guide.constrain(v, *SCHOOLS).items():
            torch.testing.assert_close(loaded.guide.constrain(v, *SCHOOLS)[name], value)


def flat(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def test_without_a_hierarchy_it_changes_nothing() -> None:
    guide = AutoFlow(flat, centering=0.0)
    guide(Y)
    assert guide.latents.centering == {}
    assert not guide.latents.moving


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"site 'mu', expected some of \['theta'\]"):
        AutoFlow(schools, centering={"mu": 0.0})(*SCHOOLS)
    with pytest.raises(ValueError, match=r"centering of 'theta' must be between 0 and 1, got 1\.5"):
        AutoFlow(schools, centering={"theta": 1.5})(*SCHOOLS)
    with pytest.raises(ValueError, match=r"AutoFlow: centering must be between 0 and 1, got 1\.5"):
        AutoFlow(schools, centering=1.5)


@pytest.mark.parametrize(
    ("kind", "centering"),
    [
        (AutoCIF, "auto"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((AutoCIF, 0.0), (AutoDAIS, "auto"), (AutoDAIS, 0.0))
        ),
    ],
)
def test_guides_with_auxiliary_variables_take_it_too(kind: Any, centering: Any) -> None:
    """Without, the annealed guide's bound is -32.6 at as many steps."""
    vi = VI(kind(schools, centering=centering), num_steps=600, seed=0, progress_bar=False).run(*SCHOOLS)
    assert -31.6 < vi.diagnostics()["elbo"] < -31.3
    assert vi.get_samples(5)["theta"].shape == (5, 8)


@pytest.mark.parametrize("centering", [0.0, "auto"])
def test_annealed_guides_train_by_svi_and_are_copied(centering: Any) -> None:
    guide = AutoDAIS(schools, 3, centering=centering)
    svi = SVI(schools, guide, ClippedAdam({"lr": 0.02}), Trace_ELBO())
    losses = torch.tensor([svi.step(*SCHOOLS) for _ in range(10)])
    assert losses.isfinite().all()
    assert guide.latents.centering.keys() == {"theta"}
    twin = copy.deepcopy(guide)
    twin.recenter({"theta": torch.full((8,), 0.7)})
    assert twin(*SCHOOLS)["theta"].shape == (8,)
    z = torch.randn(3, 10)
    plain = joint_of(AutoFlow(schools, flow), schools, *SCHOOLS)
    own = joint_of(twin, schools, *SCHOOLS)
    torch.testing.assert_close(twin.log_joint(z), own(z))
    assert not torch.allclose(twin.log_joint(z), plain(z))


@pytest.mark.parametrize("centering", [0.0, {"theta": torch.linspace(0.0, 1.0, 8)}])
def test_neutra_transports_the_plain_log_joint(centering: Any) -> None:
    guide = AutoSpline(schools, 2, (8,), centering=centering)
    guide(*SCHOOLS)
    moved(guide, 0.1)
    neutra = NeuTraReparam(guide)
    _, potential, transforms, _ = initialize_model(schools, SCHOOLS)
    start, transported, _, _ = initialize_model(neutra.reparam(schools), SCHOOLS)
    (x,) = start.values()
    values = neutra.transform_sample(x)
    for name, value in guide.constrain(guide.layer(x[None])[0], *SCHOOLS).items():
        torch.testing.assert_close(values[name], value[0])
    transform = guide.get_transform()

    def unconstrained(x: Tensor) -> Tensor:
        z: Tensor = transform(x)
        return z

    log_det = torch.linalg.slogdet(torch.autograd.functional.jacobian(unconstrained, x))[1]
    z = {name: transforms[name](value) for name, value in values.items()}
    torch.testing.assert_close(transported(start), potential(z) - log_det)
    torch.testing.assert_close(transform.inv(transform(x)), x)
    many = torch.randn(5, 3, 10)
    torch.testing.assert_close(transform(many)[2, 1], transform(many[2, 1]))
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, transform(x)), log_det)


def test_neutra_runs_a_model_that_handlers_wrap_within_itself() -> None:
    wrapped = poutine.condition(schools, data={})
    guide = AutoFlow(wrapped, flow, centering=0.0)
    guide(*SCHOOLS)
    neutra = NeuTraReparam(guide)
    start, transported, _, _ = initialize_model(neutra.reparam(wrapped), SCHOOLS)
    _, potential, transforms, _ = initialize_model(wrapped, SCHOOLS)
    (x,) = start.values()
    values, transform = neutra.transform_sample(x), guide.get_transform()
    z = {name: transforms[name](value) for name, value in values.items()}
    log_det = transform.log_abs_det_jacobian(x, transform(x))
    torch.testing.assert_close(transported(start), potential(z) - log_det)


def test_a_prior_that_a_reparameterisation_made_constant_is_not_hierarchical() -> None:
    guide = AutoFlow(poutine.reparam(schools, config={"theta": LocScaleReparam(0.0)}), flow, centering="auto")
    guide(*SCHOOLS)
    assert not guide.latents.centering


@pytest.mark.slow
def test_nuts_in_its_coordinates_finds_the_posterior() -> None:
    """Of the smallest hierarchy, whose posterior means are integrals."""
    guide = AutoFlow(pair, lambda dim: LocScale(dim), centering=0.0, init_scale=0.5)
    guide(Y)
    neutra = NeuTraReparam(guide)
    mcmc = MCMC(NUTS(neutra.reparam(pair)), num_samples=400, warmup_steps=100, disable_progbar=True)
    mcmc.run(Y)
    with torch.no_grad():
        draws = neutra.transform_sample(mcmc.get_samples()["tau_shared_latent"].unsqueeze(-2))
    points, _ = grid()
    density = joint_of(AutoFlow(pair, flow, centering=None), pair, Y)(points).exp()
    density = density / density.sum()
    for name, exact in (("tau", points[:, 0].exp()), ("z", points[:, 1])):
        mean, sd = (density * exact).sum(), (density * (exact - (density * exact).sum()) ** 2).sum().sqrt()
        # neighbours among NUTS's draws are alike: half of them are counted
        assert abs(float(draws[name].mean() - mean)) < 5 * float(sd) / 200**0.5, name


# ---- together with all else that is found by running the model --------------------------------------------------


def mixture(y: Tensor) -> None:
    """Rows of two kinds, summed out."""
    tau = pyro.sample("tau", dist.LogNormal(0.0, 0.5))
    shift = pyro.sample("shift", dist.Normal(0.0, tau))
    with pyro.plate("row", len(y)):
        kind = pyro.sample("kind", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(shift * kind, 1.0), obs=y)


def bounded(y: Tensor) -> None:
    """A support that moves with one latent, and a prior that does with another."""
    low = pyro.sample("low", dist.Normal(0.0, 1.0))
    between = pyro.sample("between", dist.Uniform(low, low + 2.0))
    z = pyro.sample("z", dist.Normal(between, (0.5 * low).exp()))
    pyro.sample("y", dist.Normal(z, 1.0).expand(y.shape).to_event(1), obs=y)


def padded(y: Tensor) -> None:
    """Entries beyond the data are masked, and count with their prior."""
    tau = pyro.sample("tau", dist.LogNormal(0.0, 0.5))
    with pyro.plate("row", len(y)), poutine.mask(mask=torch.tensor([True, True, False])):
        z = pyro.sample("z", dist.Normal(0.3, tau))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y)


TOGETHER = [(mixture, "shift"), (bounded, "z"), (padded, "z")]
together = pytest.mark.parametrize(("model", "site"), TOGETHER)


@together
def test_coordinates_go_together_with_enumeration_moving_supports_and_masks(model: Any, site: str) -> None:
    y = torch.tensor([0.3, -0.4, 1.2])
    check_coordinates(model, y)
    guide = AutoFlow(model, flow, centering=0.3, init_scale=0.3)
    plain = AutoFlow(model, flow)
    guide(y)
    assert site in guide.latents.centering
    joint, own = joint_of(plain, model, y), joint_of(guide, model, y)
    joint.prepare(), own.prepare()
    v = 0.5 * torch.randn(4, own.latents.dim)
    values = guide.constrain(v, y)
    back, log_det = guide.unconstrain(values, y)
    torch.testing.assert_close(back, v)
    z, plain_log_det = plain.unconstrain(values, y)
    torch.testing.assert_close(own(v), joint(z) + log_det - plain_log_det)


@together
def test_they_are_fitted_to_the_same_evidence(model: Any, site: str) -> None:
    y, evidence = torch.tensor([0.3, -0.4, 1.2]), []
    for centering in (None, 0.0):
        vi = VI(AutoFlow(model, flow, centering=centering), num_steps=400, seed=0, progress_bar=False).run(y)
        evidence.append(vi.diagnostics()["iwae"])
        assert vi.get_samples(7)[site].shape[0] == 7
    assert evidence[1] == pytest.approx(evidence[0], abs=0.02)


@together
def test_pyros_bound_is_ours_there(model: Any, site: str) -> None:
    y = torch.tensor([0.3, -0.4, 1.2])
    guide = AutoFlow(model, flow, centering=0.0, init_scale=0.5)
    guide(y)
    if model is not mixture:
        assert_same_bounds(ELBO(1), Trace_ELBO(), model, guide, y)
        return
    theirs = TraceEnum_ELBO(num_particles=15, vectorize_particles=True, max_plate_nesting=1)  # draws other numbers
    bounds = torch.tensor([[each.loss(model, guide, y) for _ in range(20)] for each in (ELBO(15), theirs)])
    assert abs(float(bounds[0].mean() - bounds[1].mean())) < 5 * float((bounds.var(1).sum() / 20).sqrt())


def test_priors_that_are_several_or_random_are_left_as_they_are() -> None:
    """A location for each kind, or one that is drawn outside of the guide, is not refused."""

    def by_kind() -> None:
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        kind = pyro.sample("kind", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("z", dist.Normal(tau * kind, 1.0))

    def partly() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        pyro.sample("z", dist.Normal(mu, tau))

    guide = AutoFlow(poutine.block(partly, hide=["mu"]), centering="auto")
    guide()
    assert guide.latents.centering == {}
    guide = AutoFlow(by_kind, centering="auto")
    guide()
    assert guide.latents.centering == {}


# ---- by default -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AutoFlow, AutoSpline, AutoCIF, AutoDAIS])
def test_every_guide_has_it_by_default_and_says_so(kind: Any) -> None:
    assert inspect.signature(kind).parameters["centering"].default == "auto"
    guide = kind(schools)
    assert "center" not in repr(guide)
    guide(*SCHOOLS)
    assert guide.centering == "auto"
    assert "joint over 10 latents; theta non-centered" in repr(guide)
    guide.recenter({"theta": torch.linspace(0.25, 0.5, 8)})
    assert "theta centered by 0.25 to 0.50" in repr(guide)
    plain = kind(schools, centering=None)
    plain(*SCHOOLS)
    assert plain.latents.centering == {}
    assert "center" not in repr(plain)


def test_a_trained_guide_has_the_numbers_that_were_found() -> None:
    guide = AutoFlow(schools, flow)
    VI(guide, num_steps=20, seed=0, progress_bar=False).run(*SCHOOLS)
    assert isinstance(guide.centering, dict)
    assert guide.centering["theta"].shape == (8,)
    assert 0 < float(guide.centering["theta"].min()) < float(guide.centering["theta"].max()) < 0.3
    assert "theta centered by 0.0" in repr(guide)


def test_without_a_hierarchy_nothing_is_fitted_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_nflows.inference.running.measured_centering", None)
    guide = AutoFlow(flat, flow)
    VI(guide, num_steps=20, seed=0, progress_bar=False).run(Y)
    assert guide.centering == "auto"


def test_a_model_without_gradients_is_left_as_it_is() -> None:
    """Its latents go through NumPy; all that asks for no gradient works as without."""

    def model() -> None:
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        pyro.sample("z", dist.Normal(0.0, torch.as_tensor(tau.numpy()) + 1.0))

    guide = AutoFlow(model)
    guide.set_up((), {})
    assert guide.latents.centering == {}
    with pytest.raises(RuntimeError, match="numpy"):
        AutoFlow(model, centering=0.0).set_up((), {})
