"""Many draws at once: compiled where that pays, and the same draws either way."""

import pytest
import torch

from pyro_nflows import flows
from pyro_nflows.engine import DensityGradient, Engine, Sampler, Trainer, sample
from pyro_nflows.engine import sampler as sampler_module
from pyro_nflows.engine.native import build
from pyro_nflows.engine.sampler import BATCH
from pyro_nflows.layers import LocScale, TriangularAffine
from pyro_nflows.layers.base import Chain
from pyro_nflows.objectives.draws import Draws, base_noise, even_noise

pytestmark = pytest.mark.on_devices

needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="no C compiler")


def log_joint(z):
    return -0.5 * (z - 1).square().sum(-1) - z[:, 0].cos()


def flow():
    return Chain(flows.realnvp(3, 2, (8,)), TriangularAffine(3))


@pytest.mark.parametrize("num_samples", [1, 249, 2300])
def test_chunks_make_no_difference(num_samples):
    layer = flow()
    torch.manual_seed(1)
    draws = sample(log_joint, layer, num_samples)
    torch.manual_seed(1)
    noise = even_noise(layer, num_samples)
    z, log_det = layer(noise)
    assert torch.allclose(draws.z, z)
    assert torch.allclose(draws.log_p, log_joint(z))
    assert torch.allclose(draws.log_q, torch.distributions.Normal(0, 1).log_prob(noise).sum(-1) - log_det)
    assert draws.log_p.dtype is torch.float64


def ready(function, layer):
    sampler = Sampler(function)
    sampler._begin(sampler._program(layer), torch.randn(BATCH, 3), seconds=1e9)
    if sampler.compiling is not None and sampler.compiling.scan is not None:
        sampler.compiling.scan.load()
    return sampler


@needs_compiler
@pytest.mark.parametrize("num_samples", [BATCH - 1, BATCH, 3 * BATCH + 17])
def test_compiled_draws_are_the_same(num_samples):
    layer = flow()
    sampler = ready(log_joint, layer)
    torch.manual_seed(1)
    expected = sample(log_joint, layer, num_samples)
    torch.manual_seed(1)
    draws = sampler.sample(layer, num_samples)
    assert sampler.compiling is not None
    assert torch.allclose(draws.z, expected.z)
    assert torch.allclose(draws.log_weight, expected.log_weight)


@needs_compiler
def test_the_layer_may_have_moved_since():
    layer = flow()
    sampler = ready(log_joint, layer)
    with torch.no_grad():
        layer[1].loc.add_(5.0)
    assert (sampler.sample(layer, 1000).z.mean(0) - 5).abs().max() < 0.3


@needs_compiler
def test_models_that_decide_anew_are_evaluated_by_themselves():
    scale = [1.0]
    sampler = ready(lambda z: scale[0] * log_joint(z), flow())
    assert sampler.compiling is not None
    scale[0] = 2.0
    layer = flow()
    draws = sampler.sample(layer, 300)
    assert sampler.compiling is None
    assert sampler.note.startswith("compiled draws: log p are ")
    assert torch.allclose(draws.log_p, 2 * log_joint(draws.z))
    assert ready(lambda z: log_joint(z) + torch.rand(len(z)), flow()).compiling is None


@needs_compiler
def test_why_draws_are_not_compiled_is_noted_and_they_are_not_tried_again(monkeypatch):
    monkeypatch.setattr(build, "compiler", lambda: None)
    sampler = ready(log_joint, flow())
    assert sampler.note == "compiled draws: no C compiler was found (cc, gcc or clang; set CC to name another)"
    sampler.expect(flow(), 10**9)
    assert sampler.compiling is None
    trainer = Trainer(log_joint, progress_bar=False)
    trainer.sampler = sampler
    trainer.close()
    trainer.close()
    assert trainer.history.engine_notes == [sampler.note]


@needs_compiler
@pytest.mark.parametrize(
    ("engine", "compiles"), [(None, True), ("compiled", True), ("traced", False), ("eager", False)]
)
def test_draws_are_compiled_only_where_steps_may_be(engine, compiles):
    trainer = Trainer(log_joint, engine=None if engine is None else Engine(engine), progress_bar=False)
    trainer.sampler.expect(flow(), 10**9)
    assert (trainer.sampler.compiling is not None) is compiles
    trainer.close()


@needs_compiler
@pytest.mark.parametrize("which", [0, 1, 2])
def test_any_part_of_compiled_draws_that_differs_is_noticed(which):
    right = Draws(torch.ones(5, 2), torch.zeros(5), torch.ones(5))
    assert sampler_module._difference(right, right) is None
    parts = [part.clone() for part in (right.z, right.log_p, right.log_q)]
    parts[which][3] += 0.1
    assert " where they should be " in sampler_module._difference(Draws(*parts), right)


@needs_compiler
def test_a_compiler_that_was_stopped_may_be_started_again(monkeypatch):
    layer = flow()
    sampler = ready(log_joint, layer)
    monkeypatch.setattr(sampler.compiling.scan, "finish", lambda: False)  # not done when the first fit was
    sampler.cancel()
    assert sampler.note is None
    sampler.expect(layer, 10**9)
    assert sampler.compiling is not None
    assert sampler.compiling.scan is not None
    sampler.cancel()


def test_few_and_quick_draws_are_not_compiled():
    sampler = Sampler(log_joint)
    sampler.expect(flow(), 1000)
    assert sampler.compiling is None


def test_slopes_and_curvatures_are_autograds():
    calls = [0]

    def counted(z):
        calls[0] += 1
        return log_joint(z)

    density = DensityGradient(counted)
    for z in torch.randn(4, 3):
        value, grad = density.value_and_grad(z)
        assert torch.allclose(value, log_joint(z[None])[0])
        assert torch.allclose(grad, torch.func.grad(lambda t: log_joint(t[None])[0])(z))
        assert torch.allclose(density.hessian(z), torch.autograd.functional.hessian(lambda t: log_joint(t[None])[0], z))
    assert calls[0] == 4  # recorded and compared, for either


def test_slopes_of_models_that_cannot_be_recorded_are_right_too():
    def branching(z):
        return log_joint(z) if float(z[0, 0]) > 0 else 2 * log_joint(z)

    density = DensityGradient(branching)
    for sign in (1.0, -1.0):
        z = torch.tensor([sign, 0.5, 0.2])
        assert torch.allclose(density.value_and_grad(z)[0], branching(z[None])[0])


def test_means_of_draws_are_closer_than_those_of_independent_ones_and_any_part_is_a_fair_sample():
    layer = flow()
    torch.manual_seed(0)
    noise = torch.stack([even_noise(layer, 1000) for _ in range(50)])
    assert (noise.mean(1).std(0) < 0.1 / 1000**0.5).all()
    chance = 5 * (1 / 50000) ** 0.5
    assert (noise.mean((0, 1)).abs() < chance).all()
    assert torch.allclose(noise.flatten(0, 1).T.cov(), torch.eye(3), atol=0.01)
    part = noise[:, :20]  # in random order, few of them are as good as independent
    assert (part.mean(1).std(0) - 20**-0.5).abs().max() < 5 * (1 / 20 / 100) ** 0.5
    uniform = torch.special.ndtr(noise[0]).sort(0).values
    assert (uniform - (torch.arange(1000)[:, None] + 0.5) / 1000).abs().max() < 0.01


def test_even_noise_repeats_with_the_seed_and_gives_way_in_enormous_dimensions():
    layer = flow()
    first, second = [], []
    for kept in (first, second):
        torch.manual_seed(3)
        kept.extend([even_noise(layer, 64), even_noise(layer, 64)])
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], first[1])
    wide = LocScale(torch.quasirandom.SobolEngine.MAXDIM + 1)
    torch.manual_seed(0)
    expected = base_noise(wide, 2)
    torch.manual_seed(0)
    assert torch.equal(even_noise(wide, 2), expected)
