"""Mass that blocks move: the steps against the scheme's closed form for Gaussians, and when a block is taken."""

import io
import math

import pytest
import torch
from torch.distributions import Normal

from pyro_nflows.engine import Engine, Inputs, Progress
from pyro_nflows.inference.mass import InexactBlockWarning, Mass, inexactness, is_better
from pyro_nflows.inference.transport import GROWTH, Movement, Mover, Steps, Transport
from pyro_nflows.layers import Continuous, LocScale, Planar, Residual
from pyro_nflows.numerics import quasi_normal, standard_normal_log_prob
from pyro_nflows.testing import perturbed

STEPS = Steps(300, 256, 0.05, Engine.TRACED)


def gaussian(num: int, scale: float, loc: float = 0.0) -> Mass:
    x = loc + scale * quasi_normal(num, 1, seed=num)
    return Mass(x, Normal(loc, scale).log_prob(x)[:, 0])


def test_a_step_between_gaussians_is_that_of_the_scheme() -> None:
    r"""For ``T(x) = a x + b``, KL to N(0, 1) plus ``E|T(x) - x|^2 / 2h``: ``a s^2 (1 + 1/h) = s^2 / h + 1 / a``."""
    s, m, h = 2.0, 1.5, 0.5
    block = LocScale(1)
    moved = Mover(standard_normal_log_prob, STEPS).move([block], gaussian(4096, s, m), gaussian(1024, s, m), h)
    p, q = s**2 * (1 + 1 / h), s**2 / h
    a = (q + math.sqrt(q**2 + 4 * p)) / (2 * p)
    assert float(block.log_scale.detach().exp()) == pytest.approx(a, abs=0.01)
    assert float(block.log_scale.detach().exp()) * m + float(block.loc.detach()) == pytest.approx(m / (1 + h), abs=0.02)
    divergence = 0.5 * ((a * s) ** 2 + (m / (1 + h)) ** 2 - 1) - math.log(a * s)
    assert -moved.bounds[1] == pytest.approx(divergence, abs=0.02)
    assert moved.step_sizes == [h]


def test_blocks_go_on_until_one_moves_nothing() -> None:
    blocks = [LocScale(1) for _ in range(8)]
    moved = Mover(standard_normal_log_prob, STEPS).move(blocks, gaussian(4096, 2.0), gaussian(1024, 2.0), 1.0)
    assert moved.arrived
    taken = len(moved.distances)
    assert 2 <= taken < 8
    assert all(after > before for before, after in zip(moved.bounds, moved.bounds[1:]))
    costs = [far**2 / (2 * h) for far, h in zip(moved.distances, moved.step_sizes)]
    assert all(after - cost > before for before, after, cost in zip(moved.bounds, moved.bounds[1:], costs))
    assert moved.bounds[-1] == pytest.approx(0.0, abs=0.01)
    assert all(float(block.log_scale.detach()) == 0 for block in blocks[taken:])
    assert all(a <= b <= GROWTH * a for a, b in zip(moved.step_sizes, moved.step_sizes[1:]))
    assert len(moved.clouds) == len(moved.bounds) == taken + 1


def test_mass_that_has_arrived_stays() -> None:
    block = LocScale(1)
    moved = Mover(standard_normal_log_prob, STEPS).move([block], gaussian(4096, 1.0), gaussian(1024, 1.0), 1.0)
    assert moved.arrived
    assert not moved.distances
    assert torch.equal(block.loc.detach(), torch.zeros(1))


def test_a_step_that_was_too_short_to_be_seen_is_longer_the_next_time() -> None:
    block = LocScale(1)
    moved = Mover(standard_normal_log_prob, STEPS).move([block], gaussian(4096, 1.3), gaussian(1024, 1.3), 1e-3)
    assert moved.distances
    assert moved.step_sizes == [pytest.approx(1e-3 * 2 * GROWTH)]


def test_step_sizes_keep_distances_alike() -> None:
    movement = Movement([], [])
    assert movement.next_step_size(0.3) == 0.3
    for distances, expected in (([1.0, 0.8], 0.3 / 0.8), ([1.0, 0.1], 0.3 * GROWTH), ([1.0, 2.0], 0.3)):
        assert Movement([], [], distances, [0.3]).next_step_size(9.0) == pytest.approx(expected)


def test_mass_behind_a_block_has_its_density() -> None:
    block = perturbed(lambda: Planar(2), 0.5)
    x = torch.randn(3000, 2)
    mass = Mass(x, standard_normal_log_prob(x)).through(block)
    y, log_weight = block(x)
    torch.testing.assert_close(mass.x, y.detach())
    torch.testing.assert_close(mass.log_q, (standard_normal_log_prob(x) - log_weight).detach())


def test_a_block_with_noise_of_its_own_is_trained_too() -> None:
    block = perturbed(lambda: Residual(2, hidden_dims=(4,), log_det="series"), 0.3)
    program = Transport(standard_normal_log_prob, block, 7)
    one = torch.ones(())
    rows = torch.randn(7, program.noise_width)
    loss, value = program.loss(program.params(), Inputs(rows, one, one, 0.5 * one))
    y, log_weight = block(rows[:, :2], rows[:, 3:])
    elbo = (standard_normal_log_prob(y) + log_weight - rows[:, 2]).mean()
    assert value.item() == pytest.approx(-elbo.item())
    assert loss.item() == pytest.approx((0.5 * (y - rows[:, :2]).square().sum(-1).mean() - elbo).item())


def test_points_where_the_target_is_nothing_have_no_part_in_a_step() -> None:
    def half(z: torch.Tensor) -> torch.Tensor:
        return torch.where(z[:, 0] > 0, standard_normal_log_prob(z), -torch.inf)

    block, one = LocScale(1), torch.ones(())
    program = Transport(half, block, 2)
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    params = program.params().requires_grad_()
    loss, _ = program.loss(params, Inputs(rows, one, one, one))
    assert loss.item() == pytest.approx(standard_normal_log_prob(torch.ones(1, 1)).item() * -1)
    assert torch.autograd.grad(loss, params)[0].isfinite().all()


def test_a_block_is_taken_if_it_is_clearly_better() -> None:
    before = torch.zeros(100)
    assert is_better(before, before + 0.01)
    assert not is_better(before, before + 1e-4)
    assert not is_better(before, 0.005 + torch.linspace(-1, 1, 100))
    spoiled = torch.cat([torch.full((1,), -torch.inf), torch.ones(99)])
    assert not is_better(before, spoiled)
    assert is_better(spoiled, torch.cat([torch.zeros(1), torch.full((99,), 1.1)]))
    assert is_better(torch.full((2,), -torch.inf), torch.zeros(2))


def test_a_block_whose_solver_is_too_coarse_is_not_taken() -> None:
    x = 0.2 * torch.randn(2000, 1) + torch.randint(2, (2000, 1)) * 4 - 2
    mass, block = Mass(x, torch.zeros(2000)), Continuous(1, hidden_dims=(32,), num_steps=1)
    mover = Mover(standard_normal_log_prob, Steps(300, 256, 0.1, Engine.TRACED))
    with pytest.warns(InexactBlockWarning, match="block 1: its log-determinant is off by .* nats on average"):
        moved = mover.move([block], mass, mass, 10.0)
    assert not moved.arrived
    assert not moved.distances
    assert not block.net.head.any()


def test_exactness_is_that_of_the_log_determinant() -> None:
    x = torch.randn(50, 2)
    assert inexactness(perturbed(lambda: Planar(2), 0.5), x) == pytest.approx(0.0, abs=1e-12)
    assert inexactness(perturbed(lambda: Continuous(2, num_steps=1), 0.5), x) > 1e-6
    assert inexactness(Residual(2, log_det="series"), x) == 0


def test_a_block_that_is_not_kept_is_shown_to_be_tried_again() -> None:
    log, steps = io.StringIO(), Steps(num_steps=2, batch_size=8, engine=Engine.EAGER)
    with Progress(stream=log) as progress:
        mover = Mover(standard_normal_log_prob, steps, progress=progress, measure="log density")
        mover.move([LocScale(1)], gaussian(256, 1.0), gaussian(256, 1.0), 0.3)
    first, again = log.getvalue().splitlines()
    assert first.startswith("block 1, not kept: 2 steps, log density ")
    assert again.startswith("block 1 again, by a longer step, not kept: 2 steps, log density ")
