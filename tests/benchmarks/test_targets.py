"""The known answers of the synthetic targets, by quadrature and by simulation."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from scipy import integrate, special, stats
from torch import Tensor
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from benchmarks import targets
from benchmarks.log_joint import UnconstrainedLogJoint, log_joint, log_joint_by_plate
from benchmarks.regressions import eight_schools, horseshoe, logistic_regression
from benchmarks.targets import Target

BUILD: dict[str, Callable[[], Target]] = {
    "u1": partial(targets.energy, 1),
    "u2": partial(targets.energy, 2),
    "u3": partial(targets.energy, 3),
    "u4": partial(targets.energy, 4),
    "lattice 9": partial(targets.lattice, 3),
    "lattice 16": partial(targets.lattice, 4),
    "many well": partial(targets.many_well, 3),
    "funnel": partial(targets.funnel, 5),
    "banana": targets.banana,
    "student t": partial(targets.student_t, 4.0, 3),
    "gaussian": partial(targets.gaussian, 6, 1e4),
    "eight schools, centered": partial(eight_schools, centered=True),
    "eight schools, noncentered": partial(eight_schools, centered=False),
    "logistic": partial(logistic_regression, 50, 4),
    "horseshoe": partial(horseshoe, 50, 6),
}

# The shapes of the latent variables of the targets that have no known mean; all are positive
# below, so that they are on their supports
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "logistic": {"weight": (4,)},
    "horseshoe": {"tau": (), "lambda": (6,), "weight_trans": (6,)},
}


def points(name: str, target: Target, number: int) -> dict[str, Tensor]:
    """Values of every latent variable, on its support."""
    shapes = SHAPES.get(name) or {site: tuple(mean.shape) for site, mean in target.mean.items()}
    if name == "eight schools, noncentered":
        shapes["theta_trans"] = shapes.pop("theta")
    generator = torch.Generator().manual_seed(1)
    return {site: 0.2 + torch.rand((number, *shape), generator=generator) for site, shape in shapes.items()}


def rows(values: dict[str, Tensor], index: Any) -> dict[str, Tensor]:
    return {name: value[index] for name, value in values.items()}


# Densities written again without Pyro; v has the values of the sites as arrays


def schools(v: dict[str, Any], sd_of_theta: Any) -> float:
    y, sigma = [28, 8, -3, 7, -1, 1, 18, 12], [15, 10, 16, 11, 9, 11, 10, 18]
    theta = v["theta"] if "theta" in v else v["mu"] + v["tau"] * v["theta_trans"]
    prior = stats.norm.logpdf(v["mu"], 0, 5) + stats.halfcauchy.logpdf(v["tau"], scale=5)
    standardised = (theta - v["mu"]) / v["tau"]
    prior += (stats.norm.logpdf(standardised) - np.log(sd_of_theta)).sum()
    return prior + stats.norm.logpdf(y, theta, sigma).sum()


def bernoulli(target: Target, weight: Any) -> float:
    x, y = (a.numpy() for a in target.args)
    probability = special.expit(x @ weight)
    return np.log(np.where(y == 1, probability, 1 - probability)).sum()


def lattice(target: Target, v: dict[str, Any]) -> float:
    means = target.args[0].numpy()
    covariance = 0.25**2 * np.eye(2)
    return np.log(np.mean([stats.multivariate_normal(m, covariance).pdf(v["z"]) for m in means]))


def horseshoe_density(target: Target, v: dict[str, Any]) -> float:
    prior = stats.halfcauchy.logpdf(v["tau"]) + stats.halfcauchy.logpdf(v["lambda"]).sum()
    prior += stats.norm.logpdf(v["weight_trans"]).sum()
    return prior + bernoulli(target, v["tau"] * v["lambda"] * v["weight_trans"])


DENSITIES: dict[str, Callable[[Target, dict[str, Any]], float]] = {
    "lattice 9": lattice,
    "lattice 16": lattice,
    "many well": lambda _, v: (0.5 * v["x"] + 6 * v["x"] ** 2 - v["x"] ** 4 - 0.5 * v["v"] ** 2).sum(),
    "funnel": lambda _, v: stats.norm.logpdf(v["z0"], 0, 3) + stats.norm.logpdf(v["z"], 0, np.exp(v["z0"] / 2)).sum(),
    "banana": lambda _, v: (
        stats.norm.logpdf(v["z0"], 0, 10) + stats.norm.logpdf(v["z1"], 0.03 * (v["z0"] ** 2 - 100), 1)
    ),
    "student t": lambda _, v: stats.multivariate_t(np.zeros(3), np.eye(3), df=4).logpdf(v["z"]),
    "gaussian": lambda t, v: stats.multivariate_normal(np.zeros(6), (t.args[0] @ t.args[0].T).numpy()).logpdf(v["z"]),
    "eight schools, centered": lambda _, v: schools(v, np.full(8, v["tau"])),
    "eight schools, noncentered": lambda _, v: schools(v, np.ones(8)),
    "logistic": lambda t, v: stats.norm.logpdf(v["weight"]).sum() + bernoulli(t, v["weight"]),
    "horseshoe": horseshoe_density,
}


@pytest.mark.parametrize("name", DENSITIES)
def test_log_joint_equals_a_density_written_again(name: str) -> None:
    target = BUILD[name]()
    values = points(name, target, 3)
    for i in range(3):
        ours = log_joint(target.model, target.args, rows(values, i)).item()
        theirs = DENSITIES[name](target, {k: v[i].numpy() for k, v in values.items()})
        assert ours == pytest.approx(theirs, rel=1e-10)


@pytest.mark.parametrize("name", BUILD)
def test_loop_equals_vmap_equals_trace_equals_plate(name: str) -> None:
    target = BUILD[name]()
    values = points(name, target, 6)
    joint = UnconstrainedLogJoint(target.model, target.args, rows(values, 0))
    free = joint.unconstrain(values)
    with pyro.validation_enabled(False):
        batched = vmap(grad(joint))
        traced = make_fx(batched)(rows(free, slice(3)))(rows(free, slice(3, 6)))
        result = batched(free)
        loop = [grad(joint)(rows(free, i)) for i in range(6)]
    for site in free:
        expected = torch.stack([gradient[site] for gradient in loop])
        torch.testing.assert_close(result[site], expected)
        torch.testing.assert_close(traced[site], expected[3:])
    plate = log_joint_by_plate(target.model, target.args, values)
    each = [log_joint(target.model, target.args, rows(values, i)) for i in range(6)]
    torch.testing.assert_close(plate, torch.stack(each))


def density_on_grid(target: Target, grids: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Grid points and the density there times the area of a cell; two scalars, or two in one."""
    mesh = torch.stack([m.flatten() for m in torch.meshgrid(*grids.values(), indexing="ij")])
    values = dict(zip(grids, mesh, strict=True))
    area = math.prod((g[1] - g[0]).item() for g in grids.values())
    sites = {"z": mesh.T} if "z" in target.mean else values
    shaped = {k: v.reshape(-1, *target.mean[k].shape) for k, v in sites.items()}
    with pyro.validation_enabled(False):
        log_density = vmap(partial(log_joint, target.model, target.args))(shaped)
    return shaped, area * log_density.exp()


def midpoints(low: float, high: float, number: int) -> Tensor:
    return low + (high - low) * (torch.arange(number) + 0.5) / number


SQUARE = {"z[1]": (-6, 6, 400), "z[2]": (-6, 6, 400)}
GRIDS = {
    "u1": {"z1": (-6, 6, 400), "z2": (-6, 6, 400)},
    **{u: {"z1": (-4, 4, 800), "z2": (-8, 5, 400)} for u in ("u2", "u3", "u4")},
    "lattice 9": SQUARE,
    "lattice 16": SQUARE,
    "one pair": {"x": (-6, 6, 400), "v": (-10, 10, 200)},
}


@pytest.mark.parametrize("name", GRIDS)
def test_log_z_moments_and_mode_masses_by_quadrature(name: str) -> None:
    target = targets.many_well(1) if name == "one pair" else BUILD[name]()
    grids = {key: midpoints(*grid) for key, grid in GRIDS[name].items()}
    values, mass = density_on_grid(target, grids)
    assert mass.sum().log().item() == pytest.approx(target.log_z, abs=1e-6)
    for site, value in values.items():
        weight = (mass / mass.sum()).reshape(-1, *[1] * (value.dim() - 1))
        mean = (weight * value).sum(0)
        sd = (weight * (value - mean) ** 2).sum(0).sqrt()
        torch.testing.assert_close(mean, target.mean[site], rtol=0.0, atol=1e-5)
        torch.testing.assert_close(sd, target.sd[site], rtol=0.0, atol=1e-5)


def test_energies_agree_with_the_published_normalisers() -> None:
    log_z = [targets.energy(index).log_z for index in (1, 2, 3, 4)]
    assert log_z == pytest.approx([1.8775, 2.0821, 2.6417, 2.7107], abs=1e-4)


def test_many_well_is_a_product_of_pairs() -> None:
    one, three = targets.many_well(1), targets.many_well(3)
    assert one.log_z is not None
    assert three.log_z == pytest.approx(3 * one.log_z)
    x = midpoints(-6, 6, 4000)
    density = (0.5 * x + 6 * x**2 - x**4).exp()
    right = density[x > 0].sum() / density.sum()
    torch.testing.assert_close(three.mode_masses, torch.stack([1 - right, right]).expand(3, 2))


def sample(target: Target, num_samples: int) -> dict[str, Tensor]:
    """Draws from a target whose model can be run forwards."""
    pyro.set_rng_seed(0)
    with pyro.plate("draws", num_samples, dim=-2):
        trace = pyro.poutine.trace(target.model).get_trace(*target.args)
    values = {site: trace.nodes[site]["value"] for site in target.mean}
    return {s: v.reshape(num_samples, *target.mean[s].shape) for s, v in values.items()}


@pytest.mark.parametrize("name", ["lattice 9", "lattice 16", "banana", "student t", "gaussian", "funnel"])
def test_moments_by_simulation(name: str) -> None:
    target = BUILD[name]()
    num_samples = 100_000
    for site, draws in sample(target, num_samples).items():
        mean, sd = target.mean[site], target.sd[site]
        assert ((draws.mean(0) - mean).abs() < 5 * sd / num_samples**0.5).all()
        if (name, site) != ("funnel", "z") and name != "student t":  # their kurtosis is too large
            squares = ((draws - mean) / sd) ** 2
            assert ((squares.mean(0) - 1).abs() < 5 * squares.std(0) / num_samples**0.5).all()


def test_sd_of_the_heavy_tails_by_quadrature() -> None:
    funnel, student = targets.funnel(4), targets.student_t(4.0, 2)
    variance, _ = integrate.quad(lambda z0: np.exp(z0) * stats.norm.pdf(z0, 0, 3), -40, 60)
    torch.testing.assert_close(funnel.sd["z"], torch.full((3,), variance**0.5))
    variance, _ = integrate.quad(lambda z: z**2 * stats.t.pdf(z, 4), -np.inf, np.inf)
    torch.testing.assert_close(student.sd["z"], torch.full((2,), variance**0.5))


def test_infinite_moments_are_left_out() -> None:
    assert targets.student_t(2.0, 2).sd == {}
    assert targets.student_t(1.0, 2).mean == {}


def test_gaussian_has_its_condition_number_and_sd() -> None:
    target = targets.gaussian(6, 1e4)
    covariance = target.args[0] @ target.args[0].T
    eigenvalues = torch.linalg.eigvalsh(covariance)
    assert (eigenvalues[-1] / eigenvalues[0]).item() == pytest.approx(1e4, rel=1e-8)
    torch.testing.assert_close(covariance.diagonal().sqrt(), target.sd["z"])


@pytest.mark.parametrize("name", ["lattice 9", "lattice 16"])
def test_modes_gives_each_mode_its_share(name: str) -> None:
    target = BUILD[name]()
    assert target.modes is not None
    assert target.mode_masses is not None
    masses, num_samples = target.mode_masses, 20_000
    shares = target.modes(sample(target, num_samples))
    assert ((shares - masses).abs() < 5 * (masses * (1 - masses) / num_samples).sqrt()).all()
    one_mode = target.modes({"z": target.args[0][2] + 0.1 * torch.randn(50, 2)})
    torch.testing.assert_close(one_mode, torch.eye(len(masses))[2])


def test_modes_of_a_well_and_of_two_lobes() -> None:
    x = torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, 1.0]])
    well, lobes = targets.many_well(2), targets.energy(1)
    assert well.modes is not None
    assert lobes.modes is not None
    torch.testing.assert_close(well.modes({"x": x}), torch.tensor([[0.25, 0.75], [0.25, 0.75]]))
    torch.testing.assert_close(lobes.modes({"z1": x[:, 0]}), torch.tensor([0.25, 0.75]))


def test_eight_schools_evidence_and_moments_by_quadrature() -> None:
    target = eight_schools(centered=True)
    y, sigma = (a.numpy() for a in target.args)

    def given_tau(tau: float) -> tuple[float, np.ndarray, np.ndarray]:
        # z = (mu, theta) and y are jointly normal, given tau: condition by the textbook
        prior = np.full((9, 9), 25.0) + np.diag([0.0] + [tau**2] * 8)
        marginal = prior[1:, 1:] + np.diag(sigma**2)
        gain = np.linalg.solve(marginal, prior[1:]).T
        density = stats.multivariate_normal(np.zeros(8), marginal).pdf(y)
        density *= stats.halfcauchy.pdf(tau, scale=5)
        return density, gain @ y, np.diag(prior - gain @ prior[1:])

    def integrand(log_tau: float) -> np.ndarray:
        tau = np.exp(log_tau)
        density, mean, variance = given_tau(tau)
        first, second = np.append(mean, tau), np.append(variance + mean**2, tau**2)
        return tau * density * np.concatenate([[1], first, second])

    evidence, *moments = integrate.quad_vec(integrand, -20, 9, epsrel=1e-9, epsabs=0)[0]
    mean, square = np.array(moments).reshape(2, 10) / evidence
    sd = np.sqrt(square - mean**2)
    assert target.log_z == pytest.approx(np.log(evidence), abs=1e-6)
    for known, result in ((target.mean, mean), (target.sd, sd)):
        claimed = np.concatenate([[known["mu"]], known["theta"], [known["tau"]]])
        assert claimed == pytest.approx(result, abs=1e-5)


def test_simulated_data_depend_on_the_seed_alone() -> None:
    x, y = logistic_regression(500, 4, seed=3).args
    assert torch.equal(logistic_regression(500, 4, seed=3).args[0], x)
    assert not torch.equal(logistic_regression(500, 4, seed=4).args[1], y)
    assert 0.3 < y.mean() < 0.7
