"""Sites that are written non-centered, in the coordinates of the centered model: the same posterior."""

import copy
import io
import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.mcmc.util import initialize_model
from pyro.infer.reparam import NeuTraReparam
from pyro.optim import ClippedAdam
from torch import Tensor

from pyro_nflows import ELBO, VI, AutoDAIS, AutoFlow, AutoSpline
from pyro_nflows.layers import Planar
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.log_joint import LogJoint, Vectorization
from tests.bounds import assert_same_bounds
from tests.guide_registry import moved

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = 3 * X[:, 0] - 0.3
MIXED = torch.linspace(0.0, 1.0, 5)
CENTERS = torch.tensor([0.9, 0.1, 0.4, 0.0])
GROUP = torch.arange(5).repeat_interleave(40)
STRONG = torch.tensor([-2.0, -0.5, 0.1, 1.0, 3.0], dtype=torch.float64)[GROUP]


def written(x: Tensor, y: Tensor) -> None:
    """A horseshoe, non-centered."""
    tau = pyro.sample("tau", dist.HalfCauchy(0.5))
    with pyro.plate("feature", x.shape[1]):
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(x @ (tau * scale * eta), 1.0), obs=y)


def centered(x: Tensor, y: Tensor) -> None:
    """The same, centered."""
    tau = pyro.sample("tau", dist.HalfCauchy(0.5))
    with pyro.plate("feature", x.shape[1]):
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        weight = pyro.sample("weight", dist.Normal(0.0, tau * scale))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(x @ weight, 1.0), obs=y)


def groups(y: Tensor, noise: float = 1.0) -> None:
    """Means of groups, each with 40 observations, non-centered."""
    tau = pyro.sample("tau", dist.HalfNormal(2.0))
    with pyro.plate("group", 5):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(tau * eta[..., GROUP], noise), obs=y)


def flow(latent_dim: int) -> Planar:
    return Planar(latent_dim)


def joint_of(guide: AutoFlow, model: Any, *args: Any) -> LogJoint:
    guide(*args)
    return LogJoint(BoundModel(model, args), guide.latents)


def test_coordinates_are_those_of_the_centered_model() -> None:
    """So the log joint is the same function of them, whichever way the model is written."""
    one = joint_of(AutoFlow(written, centering={"eta": CENTERS}), written, X, Y)
    other = joint_of(AutoFlow(centered, centering={"weight": CENTERS}), centered, X, Y)
    v = torch.randn(7, 9)
    torch.testing.assert_close(one(v), other(v))


def test_values_are_the_models_own() -> None:
    guide = AutoFlow(written, centering={"eta": CENTERS})
    guide(X, Y)
    v = torch.randn(7, 9)
    values = guide.constrain(v, X, Y)
    scale = values["tau"][:, None] * values["scale"]
    torch.testing.assert_close(values["eta"], scale ** (-CENTERS) * v[:, 5:])
    back, log_det = guide.unconstrain(values, X, Y)
    torch.testing.assert_close(back, v)
    plain = AutoFlow(written, centering=None)
    plain(X, Y)
    _, expected = plain.unconstrain(values, X, Y)
    torch.testing.assert_close(log_det, expected - (CENTERS * scale.log()).sum(-1))


@pytest.mark.parametrize("how", list(Vectorization))
def test_every_way_to_run_rows_gives_the_same(how: Vectorization) -> None:
    joint = joint_of(AutoFlow(groups, centering={"eta": MIXED}), groups, STRONG)
    joint.prepare()
    z = torch.randn(4, 6)
    expected = torch.stack([joint.single(row) for row in z])
    joint.how = how
    torch.testing.assert_close(joint(z), expected)


def test_pyros_bound_is_ours() -> None:
    guide = AutoFlow(groups, flow, centering={"eta": MIXED}, init_scale=0.5)
    assert_same_bounds(ELBO(1), Trace_ELBO(), groups, guide, STRONG / 10)
    loss = Trace_ELBO(10, vectorize_particles=True, max_plate_nesting=1)
    ours = torch.tensor([ELBO(10).loss(groups, guide, STRONG / 10) for _ in range(30)])
    theirs = torch.tensor([loss.loss(groups, guide, STRONG / 10) for _ in range(100)])
    error = (ours.var() / 30 + theirs.var() / 100).sqrt()
    assert abs(float(ours.mean() - theirs.mean())) < 5 * float(error)


def test_they_stay_as_they_are_unless_asked_for_or_measured() -> None:
    for centering in ("auto", None, 0.0):
        guide = AutoFlow(written, centering=centering)
        guide(X, Y)
        assert guide.latents.centering == {}
        assert guide.scales == {}
        assert not guide.latents.moving
    guide = AutoFlow(written, centering=0.5)
    guide(X, Y)
    assert guide.latents.centering.keys() == {"eta"}
    assert "eta * tau * scale centered by 0.50" in guide.extra_repr()


def test_vi_centers_entries_of_which_the_data_say_most() -> None:
    guide = AutoFlow(groups, flow)
    found = VI(guide, num_steps=100, seed=0, progress_bar=False).run(STRONG)
    assert isinstance(guide.centering, dict)
    assert (guide.centering["eta"] > 0.8).all()
    assert "eta * tau centered by 0.9" in guide.extra_repr()
    assert [scale.name for scale in guide.scales["eta"]] == ["tau"]
    tau = torch.linspace(1e-3, 12, 20_001, dtype=torch.float64)  # groups are summed out: their means are normal
    mean, rest = STRONG[::40], dist.Normal(0.0, 1.0).log_prob(torch.zeros(200)).sum() + 2.5 * math.log(2 * math.pi / 40)
    likelihood = dist.Normal(0.0, (tau**2 + 1 / 40).sqrt()).log_prob(mean[:, None]).sum(0) + rest
    evidence = torch.trapezoid((likelihood + dist.HalfNormal(2.0).log_prob(tau)).exp(), tau).log()
    assert found.diagnostics()["iwae"] == pytest.approx(float(evidence), abs=0.02)
    draws = found.get_samples(500)
    assert draws["eta"].shape == (500, 5)
    torch.testing.assert_close((draws["tau"][:, None] * draws["eta"]).mean(0), STRONG[::40], atol=0.1, rtol=0)


def test_and_leaves_them_where_they_say_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_nflows.inference.running.carry", None)
    guide = AutoFlow(groups, flow)
    VI(guide, num_steps=20, seed=0, progress_bar=False).run(STRONG / 10, 30.0)
    assert guide.centering == "auto"
    assert guide.latents.centering == {}


def test_copies_files_and_states_keep_the_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vi = VI(AutoFlow(groups, flow), num_steps=20, seed=0, progress_bar=False).run(STRONG)
    values = {name: value[:3] for name, value in vi.get_samples(10, resample=False).items()}
    expected = vi.guide.log_prob(values, 1, STRONG)
    vi.save(tmp_path / "fit.pt")
    # what is known is not looked for again, which other data might not show
    monkeypatch.setattr("pyro_nflows.guides.centers.recovered_scales", None)
    loaded = VI.load(tmp_path / "fit.pt", AutoFlow(groups, flow), STRONG)
    for guide in (loaded.guide, copy.deepcopy(vi.guide)):
        assert guide.scales == vi.guide.scales
        torch.testing.assert_close(guide.log_prob(values, 1, STRONG), expected)
    file = io.BytesIO()
    torch.save(vi.guide.state_dict(), file)
    file.seek(0)
    fresh = AutoFlow(groups, flow)
    fresh.load_state_dict(torch.load(file))
    fresh(STRONG)
    torch.testing.assert_close(fresh.log_prob(values, 1, STRONG), expected)
    again = VI(AutoFlow(groups, flow), num_steps=20, seed=0, start=vi, progress_bar=False).run(STRONG)
    assert again.guide.scales == vi.guide.scales
    torch.testing.assert_close(again.guide.latents.centering, vi.guide.latents.centering)


def learned(model: Any) -> tuple[AutoFlow, list[float]]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoFlow(model, flow, centering="learned")
    svi = SVI(model, guide, ClippedAdam({"lr": 0.03}), Trace_ELBO())
    return guide, [svi.step(X, Y) for _ in range(20)]


def test_svi_learns_it_as_in_the_centered_model() -> None:
    (one, losses), (other, expected) = learned(written), learned(centered)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(one.centering["eta"], other.centering["weight"])
    assert (one.centering["eta"] != 0.5).all()
    assert Predictive(written, guide=one, num_samples=7)(X, Y)["eta"].shape == (7, 4)
    one.median(X, Y)


def test_annealed_guides_take_it_too() -> None:
    guide = AutoDAIS(written, 3, centering={"eta": CENTERS})
    svi = SVI(written, guide, ClippedAdam({"lr": 0.02}), Trace_ELBO())
    losses = torch.tensor([svi.step(X, Y) for _ in range(10)])
    assert losses.isfinite().all()
    own = joint_of(AutoFlow(written, centering={"eta": CENTERS}), written, X, Y)
    z = torch.randn(3, 9)
    torch.testing.assert_close(guide.log_joint(z), own(z))


def test_neutra_transports_the_plain_log_joint() -> None:
    guide = AutoSpline(written, 2, (8,), centering={"eta": CENTERS})
    guide(X, Y)
    moved(guide, 0.1)
    neutra = NeuTraReparam(guide)
    _, potential, transforms, _ = initialize_model(written, (X, Y))
    start, transported, _, _ = initialize_model(neutra.reparam(written), (X, Y))
    (x,) = start.values()
    values, transform = neutra.transform_sample(x), guide.get_transform()
    z = {name: transforms[name](value) for name, value in values.items()}
    torch.testing.assert_close(transported(start), potential(z) - transform.log_abs_det_jacobian(x, transform(x)))


def test_a_site_that_is_no_such_product_is_named() -> None:
    with pytest.raises(ValueError, match=r"site 'scale', expected some of \['eta'\]"):
        AutoFlow(written, centering={"scale": 0.5})(X, Y)
