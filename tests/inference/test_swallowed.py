"""Far out, numbers swallow what is added to them, and a density may seem to have a mode there; it is not missed."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow
from pyro_nflows.diagnostics.verdict import Outcome
from pyro_nflows.inference.swallowed import HUGE, not_swallowed
from pyro_nflows.modes.gaussians import Gaussian
from pyro_nflows.modes.missed import Missed


def counts(y: Tensor) -> None:
    """Counts that are as good as a Poisson's, so that nothing bounds the concentration from above."""
    mean, concentration = pyro.sample("mean", dist.LogNormal(1.0, 1.0)), pyro.sample("size", dist.HalfCauchy(10.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.GammaPoisson(concentration, concentration / mean), obs=y)


Y = torch.tensor([6.0, 3, 5, 4, 7, 5, 4, 6, 2, 5, 8, 5, 3, 6, 5, 4, 7, 4, 5, 6] * 3)


def test_a_mode_of_swallowed_numbers_is_no_mode() -> None:
    vi = VI(AutoFlow(counts), seed=0, progress_bar=False).run(Y)
    mean = vi.get_samples(4000)["mean"]
    assert vi.diagnostics()["outcome"] is Outcome.TRUST
    assert abs(mean.mean() - Y.mean()) < 0.1
    assert 0.8 < mean.std() / (Y.mean() / len(Y)).sqrt() < 1.2


def sites() -> None:
    """Latents of one number, of three and of none."""
    pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("none", dist.Normal(torch.zeros(0), 1.0).to_event(1))
    pyro.sample("scale", dist.LogNormal(0.0, 1.0))


def test_a_region_is_left_out_where_a_latent_is_huge_beside_what_it_usually_is() -> None:
    guide = AutoFlow(sites)
    guide()
    draws = torch.randn(200, 4)
    draws[:, 1] += 1e9

    def region(*loc: float) -> Missed:
        return Missed(Gaussian(torch.tensor(loc), torch.eye(4)), 1.0)

    far = math.log(HUGE)
    real = [region(1e6, 1e9, 0.0, 0.0), region(0.0, 1e20, 0.0, -60.0), region(0.0, 0.0, -1e11, far - 2)]
    lost = [region(2 * HUGE, 1e9, 0.0, 0.0), region(0.0, 0.0, 0.0, far + 2), region(0.0, 0.0, 0.0, 800.0)]
    assert not_swallowed(guide, draws, [*lost, *real]) == real
    assert not_swallowed(guide, draws, []) == []
