"""The benchmark of densities: its training loop, its floor, its comparisons; and a student of a teacher."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from benchmarks.densities import FAMILIES, baseline, difference, indexed, parsed
from benchmarks.kernels import SHARES, KernelDensity, fit_kernels
from benchmarks.lattices import INNER, TRAINED, as_large, cif
from benchmarks.likelihood import Likelihood, maximise
from pyro_nflows import VI, AutoIAF, FlowDistribution, flows
from pyro_nflows.engine.program import Inputs
from pyro_nflows.flows import num_params
from pyro_nflows.layers import Coupling, Indexed, LocScale
from pyro_nflows.testing import perturbed


def test_a_kernel_density_is_a_mixture_of_normals() -> None:
    data, x = torch.randn(30, 2), torch.randn(700, 2)
    mixture = dist.Normal(data, 0.3).to_event(1).log_prob(x[:, None]).logsumexp(-1) - torch.tensor(30.0).log()
    torch.testing.assert_close(KernelDensity(data, 0.3).log_prob(x), mixture)


def test_the_bandwidth_is_the_best_on_held_out_rows() -> None:
    data, held_out = torch.randn(400, 2), torch.randn(300, 2)
    scale = data.std(0).mean().item()
    shares = (*SHARES, 0.5, 1.0)
    found = fit_kernels(data, held_out, shares)
    others = [KernelDensity(data, share * scale).log_prob(held_out).mean() for share in shares]
    assert found.log_prob(held_out).mean() == max(others)
    assert shares[0] < found.bandwidth / scale < 1.0


def test_the_step_of_an_exact_flow_is_minus_the_mean_log_density() -> None:
    layer, y = perturbed(lambda: flows.maf(2, 2), 0.3), torch.randn(50, 2)
    program = Likelihood(layer, 50)
    one = torch.ones(())
    loss, value = program.loss(program.params(), Inputs(y, one, one, one))
    assert loss.item() == value.item() == pytest.approx(-FlowDistribution(layer).log_prob(y).mean().item())


def test_the_step_of_an_indexed_flow_is_the_bound_of_several_samples() -> None:
    layer, y = perturbed(lambda: Indexed(Coupling(2), 2), 0.5), torch.randn(50, 2)
    program = Likelihood(layer, 50, num_samples=3)
    noise, one = torch.randn(50, 6), torch.ones(())
    loss, _ = program.loss(program.params(), Inputs(torch.cat([y, noise], -1), one, one, one))
    parts = [layer.inverse(y, noise[:, 2 * i : 2 * i + 2]) for i in range(3)]
    terms = torch.stack([dist.Normal(0.0, 1.0).expand([2]).to_event(1).log_prob(x) - w for x, w in parts])
    assert loss.item() == pytest.approx(-(terms.logsumexp(0) - torch.tensor(3.0).log()).mean().item())


def test_maximum_likelihood_finds_mean_and_deviation_and_serves_a_second_flow() -> None:
    data = torch.tensor([2.0, -1.0]) + torch.tensor([0.5, 3.0]) * torch.randn(2000, 2)
    first, second = LocScale(2), LocScale(2, init_scale=2.0)
    runner = maximise(first, data, 600, batch_size=2000, rate=5e-2)
    maximise(second, data, 600, batch_size=2000, rate=5e-2, runner=runner)
    for layer in (first, second):
        assert layer.loc.tolist() == pytest.approx(data.mean(0).tolist(), abs=0.05)
        assert layer.log_scale.tolist() == pytest.approx(data.std(0).log().tolist(), abs=0.03)
    assert not torch.equal(first.loc, second.loc)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_baseline_has_no_fewer_parameters_and_hardly_more(name: str) -> None:
    options = parsed([])
    size = num_params(indexed(FAMILIES[name], options))
    assert size <= num_params(baseline(FAMILIES[name], options)) <= 1.1 * size


@pytest.mark.parametrize("inner", INNER)
def test_lattice_guides_have_equal_parameters_and_the_base_that_was_asked_for(inner: str) -> None:
    indexed, alone = cif(2, inner, ".1"), as_large(2, inner, ".1")
    assert num_params(indexed) <= num_params(alone) <= 1.15 * num_params(indexed)
    fixed, trained = as_large(2, inner, "10"), as_large(2, inner, TRAINED)
    assert fixed(torch.ones(1, 2))[0].tolist() == [pytest.approx([10.0, 10.0])]
    assert num_params(trained) == num_params(fixed) + 4


def test_a_difference_counts_seeds_and_points() -> None:
    ours = [torch.zeros(100), torch.ones(100)]
    assert difference(ours, [part + 1 for part in ours]) == (1.0, 0.0)
    mean, se = difference(ours, [torch.ones(100), torch.ones(100) * 4])
    assert (mean, se) == (2.0, pytest.approx(1.0))  # of 1 and 3, a standard deviation of sqrt 2 over sqrt 2
    points = torch.arange(100.0)
    _, se = difference([torch.zeros(100)], [points])
    assert se == pytest.approx(points.std().item() / 10)


def test_a_student_learns_its_teacher_by_a_latent_site() -> None:
    teacher = FlowDistribution(perturbed(lambda: flows.maf(2, 2, (8, 8)), 0.5))
    before = [p.clone() for p in teacher.layer.parameters()]
    fresh = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
    x = fresh.sample((5000,))
    apart = (fresh.log_prob(x) - teacher.log_prob(x)).mean()

    def model() -> None:
        pyro.sample("x", teacher)

    vi = VI(AutoIAF(model, hidden_dims=(16, 16)), num_steps=800, seed=0, progress_bar=False).run()
    student = FlowDistribution(vi.guide.layer)
    with torch.no_grad():
        x = student.sample((5000,))
        gap = student.log_prob(x) - teacher.log_prob(x)
    assert apart > 0.2
    assert gap.mean() < 0.01 + 5 * gap.std() / 5000**0.5
    assert vi.diagnostics()["elbo"] == pytest.approx(-gap.mean().item(), abs=5 * gap.std().item() / 5000**0.5 + 1e-3)
    assert all(p.equal(q) for p, q in zip(before, teacher.layer.parameters()))
