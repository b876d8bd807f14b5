"""R-hat and effective sample sizes are those of ArviZ, on both of its lines."""

import arviz as az
import pytest
import torch
from torch import Tensor

from pyro_nflows.diagnostics.mixing import ess_bulk, ess_tail, r_hat


def chains(kind: str, num_samples: int = 501) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, num_samples, dtype=torch.float64, generator=generator)
    if kind == "independent":
        return noise
    if kind == "slow" or kind == "alternating":
        walk, weight = [noise[:, 0]], 0.9 if kind == "slow" else -0.7
        for step in noise.unbind(1)[1:]:
            walk.append(weight * walk[-1] + step)
        return torch.stack(walk, 1)
    if kind == "apart":
        return noise + torch.arange(4.0)[:, None] / 4
    if kind == "other spreads":
        return noise * torch.tensor([0.5, 1.0, 1.0, 2.0])[:, None]
    if kind == "heavy":
        return noise / torch.randn(noise.shape, generator=generator, dtype=noise.dtype)
    return noise.round()  # ties


KINDS = ["independent", "slow", "alternating", "apart", "other spreads", "heavy", "ties"]


@pytest.mark.parametrize("num_samples", [7, 500, 501])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_arviz(kind: str, num_samples: int) -> None:
    draws = chains(kind, num_samples)
    assert r_hat(draws) == pytest.approx(float(az.rhat(draws.numpy())), rel=1e-9)
    assert ess_bulk(draws) == pytest.approx(float(az.ess(draws.numpy(), method="bulk")), rel=1e-9)
    assert ess_tail(draws) == pytest.approx(float(az.ess(draws.numpy(), method="tail", prob=(0.05, 0.95))), rel=1e-9)


def test_a_single_chain_is_compared_with_itself() -> None:
    drifts = torch.linspace(0, 3, 200, dtype=torch.float64) + chains("independent")[0, :200]
    assert r_hat(drifts[None]) > 1.2
    assert r_hat(chains("independent")[:1]) < 1.05


@pytest.mark.parametrize("draws", [torch.randn(4, 3), torch.full((2, 10), torch.nan), torch.randn(4, 0)])
def test_where_there_is_nothing_to_tell_from_numbers_are_none(draws: Tensor) -> None:
    assert all(f(draws) != f(draws) for f in (r_hat, ess_bulk, ess_tail))


def test_rank_normalised_r_hat_sees_what_the_plain_one_does_not() -> None:
    """Chains of other spreads around one mean."""
    draws = chains("other spreads")
    halves = torch.cat([draws[:, :250], draws[:, -250:]])
    within = halves.var(1).mean()
    plain = ((250 * halves.mean(1).var() / within + 249) / 250).sqrt()
    assert plain < 1.01
    assert r_hat(draws) > 1.05
