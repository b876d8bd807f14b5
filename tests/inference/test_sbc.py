"""SBC on models whose posterior is known: each data set has a fit of its own, and what is wrong is named."""

import gc
import html
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_nflows import ELBO, IWAE, SBC, VI, AutoCIF, AutoFlow, flows
from pyro_nflows.diagnostics.calibration import Calibration, PValues
from pyro_nflows.diagnostics.calibration_summary import CalibrationSummary
from pyro_nflows.engine import EngineWarning, Round, times
from pyro_nflows.inference import replications, sbc
from pyro_nflows.inference.plan import Plan
from pyro_nflows.inference.replications import Replications
from pyro_nflows.inference.schedule import Schedule
from pyro_nflows.layers import LocScale
from pyro_nflows.layers.base import Chain
from tests.streams import Terminal

TWO = partial(flows.realnvp, num_layers=2, hidden_dims=(4,))
QUICK = Schedule(end=Round(200, 16, 5e-2), rounds=(Round(50, 16, 1e-3),), num_samples=400, max_ends=1)
TINY = Schedule(end=Round(5, 4, 5e-2), rounds=(Round(5, 4, 1e-3),), num_samples=40, max_ends=1)
X = torch.tensor([[1.0, 1.2], [0.5, 0.4], [-1.0, -0.8], [2.0, 2.1]], dtype=torch.float64)


def small(model: Callable[..., Any]) -> AutoFlow:
    return AutoFlow(model, TWO)


def check(guide: AutoFlow, num: int = 60, **kwargs: Any) -> SBC:
    options = {"num_simulations": num, "schedule": QUICK, "seed": 0, "progress_bar": False, **kwargs}
    return SBC(guide, **options)


def tiny(model: Callable[..., Any], num: int = 5, **kwargs: Any) -> SBC:
    return check(small(model), num, schedule=TINY, num_samples=9, engine="eager", **kwargs)


def regression(x: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(0.0, torch.ones(2)).to_event(1))
    with pyro.plate("unit", len(y)):
        pyro.sample("y", dist.Normal(x @ b, 1.0), obs=y)


def shifted(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", Shifted(z, 0.5), obs=y)


class Shifted(dist.Normal):
    """Its draws are not those of its density."""

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return super().sample(sample_shape) + 0.5


def folded(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(z.abs(), 0.1), obs=y)


class Diagonal(AutoFlow):
    """No flow, and an affine end without correlations."""

    _full_rank = False


@pytest.fixture(scope="module")
def right() -> SBC:
    pyro.clear_param_store()
    return check(small(regression), 100).run(X, torch.zeros(4))


# ---- right and wrong ----------------------------------------------------------------------------------------


def test_what_is_right_passes(right: SBC) -> None:
    assert right.verdict().outcome is Calibration.CALIBRATED
    assert list(right.ranks) == ["b[0]", "b[1]", "log_joint"]
    for ranks, shares in zip(right.ranks.values(), right.shares.values()):
        assert ranks.shape == shares.shape == (100,)
        assert ranks.dtype == torch.long
        assert 0 <= ranks.min() < 10 < 90 < ranks.max() <= 99
        assert ((shares - (ranks + 0.5) / 100).abs() < 5 * (0.25 / 100 + 0.25 / 400) ** 0.5).all()
    assert (right.ess > 0.95).all()
    assert right.pareto_k.shape == (100,)
    assert not right.failed


def test_every_data_set_has_the_posterior_that_is_its_own() -> None:
    torch.manual_seed(0)
    simulated = Replications(small(regression), 12, (X, torch.zeros(4)), {})
    covariance = torch.linalg.inv(X.T @ X + torch.eye(2))
    seen = set()
    for index, one, _, fit in simulated.fits(Plan(ELBO(), QUICK, search=False)):
        assert torch.equal(one.truth, simulated.latents["b"][index])
        mean = covariance @ X.T @ simulated.data["y"][index]
        assert ((fit.draws.z.mean(0) - mean).abs() < 0.02 + 5 * (covariance.diagonal() / 400).sqrt()).all()
        assert len(simulated._open) < replications.MAX_WIDTH
        seen.add(index)
    assert seen == set(range(12))
    residual = simulated.data["y"] - simulated.latents["b"] @ X.T
    assert abs(float(residual.square().mean()) - 1) < 5 * (2 / 48) ** 0.5


def test_draws_that_are_too_narrow_are_named() -> None:
    narrow = check(Diagonal(regression, LocScale), resample=False).run(X, torch.zeros(4))
    verdict = narrow.verdict()
    assert verdict.outcome is Calibration.TOO_NARROW
    assert "of the fits are bad" in verdict.sentence
    assert narrow.p_values()["b[0]"].uniformity < 1e-6
    assert narrow.p_values()["b[0]"].symmetry > 1e-3  # narrow, but not biased


@pytest.mark.slow
def test_resampling_mends_what_it_can() -> None:
    x, y = X * torch.tensor([1.0, 0.4]), torch.zeros(4)  # less correlated
    more = replace(QUICK, num_samples=4000)
    plain, mended = (
        check(Diagonal(regression, LocScale), 120, resample=resample, schedule=more).run(x, y)
        for resample in (False, True)
    )
    assert torch.equal(plain.shares["b[0]"], mended.shares["b[0]"])
    assert float(plain.ess.median()) > 0.2
    assert plain.p_values()["b[1]"].uniformity < 1e-5 < 1e-2 < mended.p_values()["b[1]"].uniformity


def test_a_sampler_that_is_not_that_of_the_density_is_found_out() -> None:
    wrong = check(small(shifted)).run(torch.tensor(0.0))
    assert wrong.verdict().outcome is Calibration.TOO_HIGH
    assert max(wrong.p_values()["z"]) < 1e-5
    assert "log_prob of a distribution" in wrong.verdict().sentence


def test_a_mode_that_good_fits_miss_is_found_out() -> None:
    wrong = check(small(folded)).run(torch.tensor(0.0))
    assert float(wrong.ess.median()) > 0.9
    assert wrong.p_values()["z"].uniformity < 1e-10
    assert "miss a mode" in wrong.verdict().sentence


@pytest.mark.slow
def test_a_search_after_each_fit_finds_the_other_mode() -> None:
    torch.manual_seed(0)
    simulated = Replications(small(folded), 3, (torch.tensor(0.0),), {})
    for _, one, own, fit in simulated.fits(Plan(ELBO(), QUICK, search=True)):
        weight = (fit.draws.log_weight - fit.draws.log_weight.logsumexp(0)).exp()
        assert float((fit.draws.z[:, 0] > 0).double() @ weight) == pytest.approx(0.5, abs=0.1)
        assert own.shares(simulated.shared)  # what it recorded for mixtures is shared too
        assert torch.isfinite(one.log_joint(fit.draws.z)).all()


def test_a_posterior_that_is_the_prior_is_found_out_by_the_log_joint(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Modrák et al. (2023): each parameter alone has uniform ranks."""
    original = sbc.checked_fit

    def from_the_prior(guide: Any, one: Any, fit: Any, *options: Any) -> Any:
        z = torch.randn_like(fit.draws.z)
        draws = type(fit.draws)(z, one.log_joint(z), one.log_joint(z))  # equal weights
        return original(guide, one, type(fit)(fit.layer, draws, fit.undefined), *options)

    monkeypatch.setattr(sbc, "checked_fit", from_the_prior)
    wrong = check(small(regression), 100, schedule=TINY, num_samples=39).run(X, torch.zeros(4))
    p_values = wrong.p_values()
    assert min(*p_values["b[0]"], *p_values["b[1]"]) > 0.01
    assert p_values["log_joint"].uniformity < 1e-10


# ---- one recording, bounded memory, one seed ----------------------------------------------------------------


def test_all_data_sets_share_one_recording_and_few_are_open_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[Any] = []
    alive: weakref.WeakSet[Chain] = weakref.WeakSet()
    most = 0

    def prepare(*args: Any, **kwargs: Any) -> Any:
        prepared.append(args)
        return prepare_as_ever(*args, **kwargs)

    def started(*args: Any) -> Any:
        nonlocal most
        fitting = start_as_ever(*args)
        alive.add(args[0])
        gc.collect()
        most = max(most, len(alive))
        return fitting

    prepare_as_ever, start_as_ever = times.prepare, replications.start
    monkeypatch.setattr(times, "prepare", prepare)
    monkeypatch.setattr(replications, "start", started)
    monkeypatch.setattr(replications, "MIN_WIDTH", 3)
    monkeypatch.setattr(replications, "num_cores", lambda: 1)
    done = check(small(regression), 12, schedule=TINY, num_samples=9).run(X, torch.zeros(4))
    assert len(done.ess) == 12
    assert len(prepared) == 1  # the flow
    assert most <= 2 * 3  # those that are done, and those that take their place
    gc.collect()
    assert len(alive) == 0


def test_a_run_is_reproducible_and_leaves_the_random_state_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_rng_state()
    first = check(small(regression), 6, schedule=TINY, num_samples=9).run(X, torch.zeros(4))
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(replications, "MIN_WIDTH", 2)
    monkeypatch.setattr(replications, "num_cores", lambda: 1)
    again = check(small(regression), 6, schedule=TINY, num_samples=9).run(
        X, torch.full((4,), 7.0)
    )  # values do not matter
    other = check(small(regression), 6, schedule=TINY, num_samples=9, seed=1).run(X, torch.zeros(4))
    for name in first.ranks:
        assert torch.equal(first.ranks[name], again.ranks[name])
        assert torch.equal(first.shares[name], again.shares[name])
    assert not torch.equal(first.shares["b[0]"], other.shares["b[0]"])
    check(small(regression), 2, schedule=TINY, num_samples=9, seed=None).run(X, torch.zeros(4))
    assert not torch.equal(torch.get_rng_state(), before)


def test_the_guide_and_the_param_store_are_left_alone() -> None:
    guide = small(regression)
    check(guide, 3, schedule=TINY, num_samples=9).run(X, torch.zeros(4))
    assert guide.layer is None
    assert guide.prototype_trace is None
    assert not list(pyro.get_param_store().keys())
    trained = VI(small(regression), num_steps=50, seed=0, progress_bar=False).run(X[:3], torch.ones(3)).guide
    before = {name: p.clone() for name, p in trained.named_parameters()}
    check(trained, 3, schedule=TINY, num_samples=9).run(X, torch.zeros(4))  # data of another size, from the start
    assert all(torch.equal(p, before[name]) for name, p in trained.named_parameters())


def test_what_python_makes_of_data_is_not_shared() -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        value = pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        pyro.sample("w", dist.Normal(z, 0.5 if value > 0 else 5.0), obs=y)

    with pytest.warns(EngineWarning, match="Python branches on data"):
        done = check(small(model), 12, schedule=TINY, num_samples=9, engine="traced").run(torch.tensor(0.0))
    assert len(done.ess) == 12


# ---- models -------------------------------------------------------------------------------------------------


def test_sites_of_every_kind() -> None:
    def model(y: Tensor, n: Tensor) -> None:
        factor = pyro.sample("factor", dist.LKJCholesky(2, torch.ones(())))
        share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
        kind = pyro.sample("kind", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        rate = pyro.deterministic("rate", share[0] + 1 + kind)
        with pyro.plate("unit", 4), poutine.mask(mask=torch.tensor([True, True, True, False])):
            pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), scale_tril=factor), obs=y)
            pyro.sample("n", dist.Poisson(rate), obs=n)

    done = tiny(model).run(torch.zeros(4, 2), n=torch.zeros(4, dtype=torch.long))
    names = ["factor[1,0]", "factor[1,1]", "share[0]", "share[1]", "share[2]", "log_joint"]
    assert list(done.ranks) == names  # what is constant in a Cholesky factor is not ranked


def test_a_support_that_depends_on_another_latent_is_followed() -> None:
    def triangle(y: Tensor) -> None:
        a = pyro.sample("a", dist.Uniform(0.0, 1.0))
        b = pyro.sample("b", dist.Uniform(0.0, 1.0 - a))
        pyro.sample("y", dist.Normal(a + b, 0.1), obs=y)

    sbc = tiny(triangle).run(torch.tensor(0.3))
    assert {name: len(ranks) for name, ranks in sbc.ranks.items()} == {"a": 5, "b": 5, "log_joint": 5}
    assert not sbc.failed


def test_a_conditioned_model_is_simulated_too() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0))

    conditioned = poutine.condition(model, {"y": torch.tensor(50.0)})
    done = check(small(conditioned), 20, schedule=QUICK, num_samples=9).run()
    assert list(done.ranks) == ["z", "log_joint"]
    assert done.ranks["z"].min() < 5 < done.ranks["z"].max()


def test_other_objectives_and_guides() -> None:
    guide = AutoCIF(regression, inner=TWO, hidden_dims=(4,))
    done = check(guide, 4, schedule=TINY, num_samples=9, objective=IWAE(4)).run(X, torch.zeros(4))
    assert len(done.ranks["b[1]"]) == 4


# ---- what can go wrong --------------------------------------------------------------------------------------


def plain(y: Tensor) -> None:
    pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)


def with_factor(y: Tensor) -> None:
    plain(y)
    pyro.factor("penalty", -y)


def with_flat(y: Tensor) -> None:
    plain(y)
    pyro.sample("flat", dist.ImproperUniform(dist.constraints.real, (), ()))


def with_scale(y: Tensor) -> None:
    with poutine.scale(scale=2.0):
        plain(y)


def with_subsample(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("unit", 8, subsample_size=2):
        pyro.sample("part", dist.Normal(z, 1.0), obs=y.expand(2))


def with_mask(y: Tensor) -> None:
    with poutine.mask(mask=False):
        hidden = pyro.sample("hidden", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(hidden, 1.0), obs=y)


def with_param(y: Tensor) -> None:
    plain(y + pyro.param("offset", torch.zeros(())))


def with_overflow(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1000.0))
    pyro.sample("wide", dist.Normal(z.exp(), 1.0), obs=y)


def with_edge(y: Tensor) -> None:
    g = pyro.sample("g", dist.LogNormal(-800.0, 1.0))
    pyro.sample("y", dist.Normal(g, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (with_factor, "site 'penalty' is a pyro.factor"),
        (with_flat, "site 'flat' has a flat, improper prior"),
        (with_scale, "site 'z' is scaled"),
        (with_subsample, "site 'part' is scaled"),
        (with_mask, "site 'hidden' is a masked latent"),
        (with_param, "pyro.param 'offset'"),
        (with_overflow, "site 'wide' is not finite"),
        (with_edge, "site 'g' was simulated on the very edge"),
        (lambda y: pyro.sample("z", dist.Normal(0.0, 1.0)), "no observed site"),
    ],
)
def test_models_that_cannot_be_simulated_are_refused(model: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(model, 50).run(torch.tensor(0.5))


def test_a_distribution_without_a_sampler_is_refused() -> None:
    class Density(dist.Normal):
        def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
            raise NotImplementedError("no sampler here")

    def model(y: Tensor) -> None:
        pyro.sample("y", Density(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    with pytest.raises(ValueError, match=r"cannot be simulated \(no sampler here"):
        tiny(model).run(torch.tensor(0.5))


def test_data_that_cannot_be_started_are_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, as_ever = [0], replications.check_start

    def fails(share: int) -> Any:
        def check_start(*args: Any) -> Tensor:
            calls[0] += 1
            if calls[0] % share == 0:
                raise ValueError("not finite at its start")
            return as_ever(*args)

        return check_start

    monkeypatch.setattr(replications, "check_start", fails(3))
    done = tiny(plain, 9).run(torch.tensor(0.5))
    assert list(done.failed) == [2, 5, 8]
    assert done.ranks["z"].shape == (6,)
    done.summary()
    assert "3 data sets could not be started" in capsys.readouterr().out
    monkeypatch.setattr(replications, "check_start", fails(1))
    with pytest.raises(ValueError, match="none of 9 fits could be started: not finite at its start"):
        tiny(plain, 9).run(torch.tensor(0.5))


def test_ctrl_c_keeps_the_fits_that_are_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, as_ever = [0], sbc.checked_fit

    def interrupted(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return as_ever(*args)

    monkeypatch.setattr(sbc, "checked_fit", interrupted)
    done = tiny(plain, 9).run(torch.tensor(0.5))
    assert done.interrupted
    assert done.ranks["z"].shape == (3,)
    done.summary()
    assert "interrupted" in capsys.readouterr().out
    calls[0] = 3
    with pytest.raises(KeyboardInterrupt):
        tiny(plain, 9).run(torch.tensor(0.5))


def test_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match=r"SBC: expected a flow guide, SBC\(AutoFlow\(model\)\), got function"):
        SBC(plain)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"schedule must be a pyro_nflows\.inference\.schedule\.Schedule, got int"):
        check(small(plain), schedule=5)
    with pytest.raises(ValueError, match="num_samples must be at most the 40 of the schedule, got 99"):
        check(small(plain), schedule=TINY)
    with pytest.raises(ValueError, match="num_simulations"):
        check(small(plain), 0)
    with pytest.raises(RuntimeError, match="call run"):
        check(small(plain)).summary()


# ---- what one sees ------------------------------------------------------------------------------------------


def test_the_summary_has_a_row_a_parameter_the_fits_and_a_sentence(
    right: SBC, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = right.summary()
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["mean", "rank", "std", "SBC", "p", "VSBC", "p"]
    assert [row.split()[0] for row in rows[:3]] == ["b[0]", "b[1]", "log_joint"]
    mean, std, p, _ = (float(number) for number in rows[0].split()[1:])
    assert mean == pytest.approx(0.5, abs=0.15)
    assert std == pytest.approx(12**-0.5, abs=0.05)
    assert p == pytest.approx(right.p_values()["b[0]"].uniformity, rel=0.05)
    assert rows[4].startswith("100 fits, ")
    assert rows[5] == right.verdict().sentence
    assert list(summary.frame.index) == ["b[0]", "b[1]", "log_joint"]
    assert summary.loc["b[0]", "SBC p"] == right.p_values()["b[0]"].uniformity
    assert len(right.summary("b")) == 2
    assert len(right.summary(["b[1]", "log_joint"])) == 2
    with pytest.raises(ValueError, match="no parameter is named 'mu'"):
        right.summary("mu")


def test_p_values_are_computed_once_for_what_is_shown(right: SBC, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(ranks: torch.Tensor, num_samples: int) -> float:
        calls.append(1)
        return 0.5

    monkeypatch.setattr("pyro_nflows.inference.calibrated.uniformity", counted)
    for show in (right.summary, right._repr_html_):
        calls.clear()
        show()
        assert len(calls) == len(right.ranks)


def test_many_parameters_are_printed_short_and_kept_whole() -> None:
    ranks = {f"theta[{i}]": torch.arange(10) for i in range(50)}
    p_values = {name: PValues(0.9 - 0.01 * i, 0.9) for i, name in enumerate(ranks)}
    summary = CalibrationSummary(ranks, p_values, 9)
    lines = str(summary).splitlines()
    assert len(lines) == 32
    assert lines[1].startswith("theta[20]")  # those with the least p-values
    assert lines[-1] == "... 20 more, with larger p-values: summary().frame has them"
    assert summary.to_html().count("<tr>") == 32
    assert len(summary.frame) == 50
    assert len(str(CalibrationSummary(ranks, p_values, 9, "theta")).splitlines()) == 51


def test_it_shows_itself(right: SBC) -> None:
    head, fits, sentence = repr(right).splitlines()
    assert head.startswith("SBC of AutoFlow")
    assert fits.startswith("100 fits, ")
    assert sentence == right.verdict().sentence
    page = right._repr_html_()
    assert html.escape(sentence) in page
    assert "#1a7f37" in page
    assert page.count("<tr>") == 4
    assert "call run" in repr(tiny(plain, 3))
    assert "call run" in tiny(plain, 3)._repr_html_()


def test_the_plot_has_a_row_a_parameter(right: SBC) -> None:
    pytest.importorskip("matplotlib").use("agg")
    figure = right.plot()
    p = right.p_values()
    assert [ax.get_title() for ax in figure.axes[::2]] == sorted(p, key=lambda name: min(p[name]))
    assert len(right.plot("b[1]", prob=0.9).axes) == 2
    with pytest.raises(ValueError, match="no parameter is named 'mu'"):
        right.plot("mu")
    from matplotlib import pyplot

    pyplot.close("all")


def test_the_bar_counts_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    tiny(plain, 3, progress_bar=True).run(torch.tensor(0.5))
    assert "3/3" in terminal.getvalue()
    assert "fit/s" in terminal.getvalue()
