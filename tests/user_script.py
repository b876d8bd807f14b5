"""What a user would write with every public name, for type checkers: `tests/test_user_script.py` runs mypy on it.

Each `assert_type` is what an editor shows. The script runs, too: ``python tests/user_script.py``.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # beside it are folders with names of other packages
    sys.path[:] = [path for path in sys.path if path != str(Path(__file__).parent)]

from typing import TYPE_CHECKING

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Predictive
from torch import Tensor
from typing_extensions import assert_type

from pyro_nflows import (
    ELBO,
    IWAE,
    SBC,
    VI,
    AutoCIF,
    AutoCNF,
    AutoDAIS,
    AutoFlow,
    AutoFlowified,
    AutoGlow,
    AutoIAF,
    AutoJKO,
    AutoMAF,
    AutoNICE,
    AutoPlanar,
    AutoRadial,
    AutoRealNVP,
    AutoResidual,
    AutoSpline,
    AutoWasserstein,
    FlowDistribution,
    compare,
    fit_jko,
    flows,
    layers,
)
from pyro_nflows.diagnostics.verdict import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

x = torch.tensor([0.0, 1.0, 2.0, 3.0])
y = torch.tensor([0.1, 0.9, 2.2, 2.8])


def model(x: Tensor, y: Tensor | None = None) -> None:
    """A line."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Normal(slope * x + shift, 0.5), obs=y)


def fit(guide: AutoFlow) -> VI:
    """Train it, and look at what it has."""
    vi = VI(guide, num_steps=50, seed=0, progress_bar=False, objective=ELBO(16)).run(x, y)
    assert_type(vi.get_samples(10), dict[str, Tensor])
    assert_type(vi.log_weight, Tensor)
    assert_type(vi.predict(x, num_samples=10)["y"], Tensor)
    assert_type(vi.verdict().outcome, Outcome)
    assert_type(vi.verdict().sentence, str)
    found = vi.diagnostics()
    assert_type(found["elbo"], float)
    assert_type(found["iwae"] + found["iwae_se"], float)
    assert_type(found["num_steps"], int)
    assert_type(found["outcome"], Outcome)
    assert_type(vi.summary(kind="stats").columns, list[str])
    return vi


def keep(vi: VI, folder: Path) -> VI:
    """A result is saved, drawn, refined, and used as a prior."""
    vi.save(folder / "fit.pt")
    figure: Figure = vi.plot("slope")
    figure.savefig(folder / "fit.png")
    posterior = vi.posterior
    assert_type(posterior.get_samples(10), dict[str, Tensor])
    prior = posterior.as_prior(untrusted=True)
    assert_type(prior.sample((3,)), dict[str, Tensor])
    VI(AutoFlow(prior.on(model)), num_steps=50, progress_bar=False)
    chains = vi.refine(num_samples=5, warmup_steps=5, num_chains=2, seed=0)
    assert_type(chains.r_hat, float)
    assert_type(chains.get_samples(), dict[str, Tensor])
    return VI.load(folder / "fit.pt", AutoFlow(model), x, y)


def loop() -> float:
    """A loop of one's own."""
    guide = AutoIAF(model, num_layers=1, hidden_dims=(8,))
    svi = SVI(model, guide, guide.optimizer(lr=0.01, num_steps=3), loss=IWAE(num_particles=4))
    for _ in range(3):
        svi.step(x, y)
    Predictive(model, guide=guide, num_samples=3)(x)
    return ELBO(num_particles=100).loss(model, guide, x, y)


def density() -> Tensor:
    """A flow as a distribution."""
    distribution = FlowDistribution(flows.spline(2))
    assert_type(distribution.rsample((3,)), Tensor)
    mine = layers.Chain(layers.Planar(2), layers.LocScale(2))
    point, log_weight = mine(torch.zeros(5, 2))
    assert_type(point, Tensor)
    assert_type(log_weight, Tensor)
    blocks = flows.jko(1, num_blocks=1, hidden_dims=(4,), inverted=True)
    fitted = fit_jko(torch.randn(50, 1), blocks, num_steps=2, seed=0, progress_bar=False)
    assert_type(fitted.log_probs, list[float])
    assert_type(FlowDistribution(fitted.layer).sample((3,)), Tensor)
    return distribution.log_prob(torch.zeros(4, 2))


GUIDES: list[AutoFlow] = [
    AutoCIF(model),
    AutoCNF(model),
    AutoDAIS(model),
    AutoFlow(model, flows.couplings, init_scale=0.2),
    AutoFlow(model, lambda dim: layers.Planar(dim)),
    AutoFlowified(model),
    AutoGlow(model),
    AutoIAF(model),
    AutoJKO(model, num_blocks=2),
    AutoMAF(model),
    AutoNICE(model),
    AutoPlanar(model),
    AutoRadial(model),
    AutoRealNVP(model),
    AutoResidual(model),
    AutoSpline(model),
    AutoWasserstein(model, num_components=2),
]


def main(folder: Path) -> None:
    """All of it."""
    vi = keep(fit(AutoFlow(model)), folder)
    comparison = compare({"a": vi, "b": fit(AutoWasserstein(model))}, untrusted=True)
    assert_type(comparison.weights, dict[str, float])
    assert_type(loop(), float)
    assert_type(density(), Tensor)
    check = SBC(AutoFlow(model), num_simulations=4, num_samples=9, seed=0, progress_bar=False).run(x, y)
    assert_type(check.verdict().sentence, str)
    assert_type(check.ranks["slope"], Tensor)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
