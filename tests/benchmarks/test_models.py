"""The posteriordb models against densities written again without Pyro, and against the draws.

Set ``$POSTERIORDB`` to a ``posterior_database`` folder to run all of it.
"""

import os
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from benchmarks.log_joint import UnconstrainedLogJoint, log_joint, log_joint_by_plate
from benchmarks.models import POSTERIORS, VARIANTS, Posterior, errors, reference
from benchmarks.posteriordb_models import garch11, garch11_loop, linear_recursion

ALL = {**POSTERIORS, **VARIANTS}
STATIC = [name for name in ALL if name != "garch11_dependent"]
needs_posteriordb = pytest.mark.skipif(
    not os.environ.get("POSTERIORDB"),
    reason="set $POSTERIORDB to the path of a posterior_database folder",
)


# The densities again, term by term: p has the parameters, d the data, as posteriordb has them


def schools_likelihood(p: Any, d: Any) -> float:
    prior = stats.norm.logpdf(p.mu, 0, 5) + stats.halfcauchy.logpdf(p.tau, scale=5)
    return prior + stats.norm.logpdf(d.y, p.theta, d.sigma).sum()


def schools_centered(p: Any, d: Any) -> float:
    return schools_likelihood(p, d) + stats.norm.logpdf(p.theta, p.mu, p.tau).sum()


def schools_noncentered(p: Any, d: Any) -> float:
    return schools_likelihood(p, d) + stats.norm.logpdf((p.theta - p.mu) / p.tau).sum()


def ar_k(p: Any, d: Any) -> float:
    total = stats.norm.logpdf([p.alpha, *p.beta], 0, 10).sum()
    total += stats.halfcauchy.logpdf(p.sigma, scale=2.5)
    for t in range(5, d.T):
        mean = p.alpha + sum(p.beta[k] * d.y[t - k - 1] for k in range(5))
        total += stats.norm.logpdf(d.y[t], mean, p.sigma)
    return total


def garch_dependent(p: Any, d: Any) -> float:
    scale, total = d.sigma1, stats.norm.logpdf(d.y[0], p.mu, d.sigma1)
    for previous, y in zip(d.y[:-1], d.y[1:], strict=True):
        scale = (p.alpha0 + p.alpha1 * (previous - p.mu) ** 2 + p.beta1 * scale**2) ** 0.5
        total += stats.norm.logpdf(y, p.mu, scale)
    return total


def garch(p: Any, d: Any) -> float:
    # the model's site is beta1 / (1 - alpha1), whose density has this Jacobian
    return garch_dependent(p, d) + np.log(1 - p.alpha1)


def gp_regr(p: Any, d: Any) -> float:
    distance = np.subtract.outer(d.x, d.x)
    kernel = p.alpha**2 * np.exp(-(distance**2) / (2 * p.rho**2)) + p.sigma * np.eye(d.N)
    prior = stats.gamma.logpdf(p.rho, 25, scale=1 / 4) + stats.halfnorm.logpdf(p.alpha, scale=2)
    prior += stats.halfnorm.logpdf(p.sigma, scale=1)
    return prior + stats.multivariate_normal(np.zeros(d.N), kernel).logpdf(d.y)


def gauss_mix(p: Any, d: Any) -> float:
    prior = stats.norm.logpdf(p.mu, 0, 2).sum() + stats.halfnorm.logpdf(p.sigma, scale=2).sum()
    parts = stats.norm.logpdf(np.array(d.y)[:, None], p.mu, p.sigma)
    likelihood = np.logaddexp.reduce(parts + np.log([p.theta, 1 - p.theta]), axis=1).sum()
    return prior + stats.beta.logpdf(p.theta, 5, 5) + likelihood


def blr(p: Any, d: Any) -> float:
    prior = stats.norm.logpdf(p.beta, 0, 10).sum() + stats.halfnorm.logpdf(p.sigma, scale=10)
    return prior + stats.norm.logpdf(d.y, np.array(d.X) @ p.beta, p.sigma).sum()


def diamonds(p: Any, d: Any) -> float:
    x = np.array(d.X)[:, 1:]
    prior = stats.norm.logpdf(p.b).sum() + stats.t.logpdf(p.Intercept, 3, 8, 10)
    prior += np.log(2) + stats.t.logpdf(p.sigma, 3, 0, 10)
    return prior + stats.norm.logpdf(d.Y, p.Intercept + (x - x.mean(0)) @ p.b, p.sigma).sum()


def kidscore(p: Any, d: Any) -> float:
    columns = zip(d.mom_hs, d.mom_iq, strict=True)
    mean = [p.beta @ [1, high_school, iq, high_school * iq] for high_school, iq in columns]
    prior = stats.halfcauchy.logpdf(p.sigma, scale=2.5)
    return prior + stats.norm.logpdf(d.kid_score, mean, p.sigma).sum()


def logearn(p: Any, d: Any) -> float:
    columns = zip(d.height, d.male, strict=True)
    mean = [p.beta @ [1, height, male, height * male] for height, male in columns]
    return stats.norm.logpdf(np.log(d.earn), mean, p.sigma).sum()


def nes(p: Any, d: Any) -> float:
    keys = ("real_ideo", "race_adj", "age_discrete", "educ1", "gender", "income")
    columns = zip(*(getattr(d, key) for key in keys), strict=True)
    rows = [[1, i, r, a == 2, a == 3, a == 4, e, g, n] for i, r, a, e, g, n in columns]
    return stats.norm.logpdf(d.partyid7, np.array(rows) @ p.beta, p.sigma).sum()


def logmesquite(p: Any, d: Any) -> float:
    b, log = p.beta, np.log
    mean = b[0] + b[1] * log(d.diam1) + b[2] * log(d.diam2) + b[3] * log(d.canopy_height)
    mean += b[4] * log(d.total_height) + b[5] * log(d.density) + b[6] * np.array(d.group)
    return stats.norm.logpdf(log(d.weight), mean, p.sigma).sum()


DENSITIES: dict[str, Callable[[Any, Any], float]] = {
    "eight_schools-eight_schools_centered": schools_centered,
    "eight_schools-eight_schools_noncentered": schools_noncentered,
    "arK-arK": ar_k,
    "garch-garch11": garch,
    "garch11_loop": garch,
    "garch11_dependent": garch_dependent,
    "gp_pois_regr-gp_regr": gp_regr,
    "low_dim_gauss_mix-low_dim_gauss_mix": gauss_mix,
    "sblrc-blr": blr,
    "diamonds-diamonds": diamonds,
    "kidiq-kidscore_interaction": kidscore,
    "earnings-logearn_interaction": logearn,
    "nes2000-nes": nes,
    "mesquite-logmesquite": logmesquite,
}


@cache
def draws(name: str) -> dict[str, np.ndarray]:
    return reference(name)


def parameters(draw: Mapping[str, float]) -> SimpleNamespace:
    """One draw, ``beta[1]``, ``beta[2]``, ... gathered into an array."""
    groups: dict[str, list[float]] = {}
    for key, value in draw.items():
        groups.setdefault(key.split("[")[0], []).append(value)
    vectors = {key.split("[")[0] for key in draw if "[" in key}
    return SimpleNamespace(**{k: np.array(v) if k in vectors else v[0] for k, v in groups.items()})


def rows(values: Mapping[str, Tensor], index: Any) -> dict[str, Tensor]:
    return {name: value[index] for name, value in values.items()}


def unconstrained(posterior: Posterior, args: Any) -> tuple[UnconstrainedLogJoint, dict]:
    sites = posterior.to_sites(draws(posterior.name))
    joint = UnconstrainedLogJoint(posterior.model, args, rows(sites, 0))
    return joint, joint.unconstrain(sites)


@needs_posteriordb
@pytest.mark.parametrize("name", ALL)
def test_log_joint_equals_a_density_written_again(name: str) -> None:
    posterior = ALL[name]
    args, all_draws = posterior.args(), draws(posterior.name)
    data = SimpleNamespace(**posterior.data())
    sites = posterior.to_sites(all_draws)
    for i in range(0, 10_000, 2_000):
        ours = log_joint(posterior.model, args, rows(sites, i)).item()
        p = parameters({key: column[i] for key, column in all_draws.items()})
        assert ours == pytest.approx(DENSITIES[name](p, data), rel=1e-10)


@needs_posteriordb
@pytest.mark.parametrize("name", POSTERIORS)
def test_reference_draws_satisfy_the_identities_of_stein(name: str) -> None:
    # E[g] = 0 and E[(u - m) g] = -1 for the gradient g of the log density over u: these fail when
    # the model and the draws are of different posteriors
    posterior = POSTERIORS[name]
    joint, points = unconstrained(posterior, posterior.args())
    points = rows(points, slice(None, None, 10 if name == "diamonds-diamonds" else 2))
    with pyro.validation_enabled(False):
        gradients = vmap(grad(joint), chunk_size=500)(points)
    for site, g in gradients.items():
        centered = points[site] - points[site].mean(0)
        for identity in (g, centered * g + 1):
            standard_error = identity.std(0) / len(identity) ** 0.5
            assert (identity.mean(0).abs() < 5 * standard_error).all()


@needs_posteriordb
@pytest.mark.parametrize("name", STATIC)
def test_loop_equals_vmap_equals_traced_gradient(name: str) -> None:
    posterior = ALL[name]
    args = posterior.args()
    if name == "garch11_loop":
        args = (args[0][:20], args[1])
    joint, points = unconstrained(posterior, args)
    with pyro.validation_enabled(False):
        batched = vmap(grad(joint))
        traced = make_fx(batched)(rows(points, slice(3, 6)))
        results = batched(rows(points, slice(3))), traced(rows(points, slice(3)))
        loop = [grad(joint)(rows(points, i)) for i in range(3)]
    for site in points:
        expected = torch.stack([gradient[site] for gradient in loop])
        for result in results:
            torch.testing.assert_close(result[site], expected, rtol=1e-9, atol=1e-9)


@needs_posteriordb
@pytest.mark.parametrize("name", ALL)
def test_a_particle_plate_equals_the_loop(name: str) -> None:
    posterior = ALL[name]
    args, sites = posterior.args(), posterior.to_sites(draws(posterior.name))
    loop = torch.stack([log_joint(posterior.model, args, rows(sites, i)) for i in range(3)])
    plate = log_joint_by_plate(posterior.model, args, rows(sites, slice(3)))
    torch.testing.assert_close(plate, loop, rtol=1e-10, atol=0.0)


@needs_posteriordb
@pytest.mark.parametrize("name", ALL)
def test_to_reference_undoes_to_sites(name: str) -> None:
    posterior = ALL[name]
    expected = draws(posterior.name)
    result = posterior.to_reference(posterior.to_sites(expected))
    assert result.keys() == expected.keys()
    assert max(errors(result, expected)) < 1e-12


def test_errors_are_those_of_the_worst_parameter() -> None:
    base = np.random.default_rng(0).normal(size=1000)
    base = (base - base.mean()) / base.std()
    truth = {"a": base, "b[1]": 1 + 2 * base}
    fit = {"a": 0.1 + base, "b[1]": 1.5 + 1.8 * base, "extra": base}
    assert errors(fit, truth) == pytest.approx((0.25, 0.1))
    with pytest.raises(ValueError, match=r"lack \['b\[1\]'\].*to_reference"):
        errors({"a": base}, truth)


def test_no_database_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("posteriordb")
    monkeypatch.delenv("POSTERIORDB", raising=False)
    with pytest.raises(ValueError, match=r"arK-arK.*set \$POSTERIORDB"):
        POSTERIORS["arK-arK"].args()


@pytest.mark.parametrize("decay", [0.0, 1e-300, 1e-8, 0.3, 0.999, 1 - 2**-53, 1.0])
def test_linear_recursion_is_exact_to_rounding(decay: float) -> None:
    shock = torch.rand(200, generator=torch.Generator().manual_seed(0))
    exact = [Fraction(shock[0].item())]
    for c in shock[1:].tolist():
        exact.append(Fraction(c) + Fraction(decay) * exact[-1])
    expected = torch.tensor([float(value) for value in exact])
    result = linear_recursion(shock, torch.tensor(decay))
    torch.testing.assert_close(result, expected, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("share", [1e-12, 1e-3, 0.5, 1 - 1e-3, 1 - 1e-12])
def test_garch_equals_its_loop_in_value_and_gradient(share: float) -> None:
    y = torch.randn(200, generator=torch.Generator().manual_seed(0))
    point = {"mu": 0.1, "alpha0": 0.3, "alpha1": 1e-3, "beta1_share": share}
    values = {name: torch.tensor(value, requires_grad=True) for name, value in point.items()}
    joints = [log_joint(model, (y, 0.5), values) for model in (garch11, garch11_loop)]
    torch.testing.assert_close(joints[0], joints[1], rtol=1e-13, atol=0.0)
    gradients = [torch.autograd.grad(joint, list(values.values())) for joint in joints]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-9)
