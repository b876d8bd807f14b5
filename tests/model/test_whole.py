"""The log joint over all rows of subsampled plates is that of the model without subsampling."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_nflows import AutoFlow
from pyro_nflows.engine import Trainer
from pyro_nflows.engine.density_gradient import DensityGradient
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.log_joint import LogJoint
from pyro_nflows.model.whole import IndivisibleError, WholeLogJoint, whole
from pyro_nflows.system.exclusive import seeded

N, M = 11, 7


@pytest.fixture(autouse=True)
def in_double():
    torch.set_default_dtype(torch.float64)
    with seeded(0):
        yield
    torch.set_default_dtype(torch.float32)


def joint_of(model, *args) -> LogJoint:
    guide = AutoFlow(model)
    guide.set_up(args, {})
    joint = LogJoint(BoundModel(guide.bare_model, args), guide.latents)
    joint.prepare()
    return joint


def whole_of(model, *args) -> WholeLogJoint:
    found = whole(joint_of(model, *args))
    assert found is not None
    return found


def regression(size):
    x = torch.linspace(-1, 1, N)
    y = x.sin() + 0.3

    def model():
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", N, subsample_size=size) as i:
            pyro.sample("y", dist.Normal(w[0] + w[1] * x[i], sigma), obs=y[i])

    return model


def scaled_and_masked(size):
    y, mask = torch.linspace(-2, 1, N), torch.arange(N) % 3 != 0
    weight = torch.linspace(0.5, 2.0, N)

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("outside", -(z**4))
        with pyro.plate("data", N, subsample_size=size) as i, poutine.scale(scale=1.7):
            with poutine.mask(mask=mask[i]):
                pyro.sample("y", dist.StudentT(3.0, z, 1.0), obs=y[i])
            with poutine.scale(scale=weight[i]):
                pyro.factor("inside", -(z * y[i]).cosh())

    return model


def side_by_side(size):
    a, b = torch.linspace(-2, 1, N), torch.linspace(0, 3, M)

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("as", N, subsample_size=size) as i:
            pyro.sample("a", dist.Normal(z, 1.0), obs=a[i])
        with pyro.plate("bs", M, subsample_size=size and size - 1) as j:
            pyro.sample("b", dist.Normal(-z, 2.0), obs=b[j])

    return model


def crossed(size):
    y, row = torch.randn(N, M, generator=torch.Generator().manual_seed(1)), torch.linspace(0, 1, N)

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", N, subsample_size=size, dim=-2) as i:
            pyro.sample("row", dist.Normal(z, 1.0), obs=row[i, None])
            with pyro.plate("columns", M, subsample_size=size and size - 1, dim=-1) as j:
                pyro.sample("y", dist.Normal(z, 1.0), obs=y[i][:, j])

    return model


def events(size):
    y = torch.randn(N, 3, generator=torch.Generator().manual_seed(1))

    def model():
        with pyro.plate("means", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N, subsample_size=size) as i:
            pyro.sample("y", dist.MultivariateNormal(z, torch.eye(3)), obs=y[i])

    return model


def mixture(size):
    y = torch.linspace(-2, 3, N)

    def model():
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", N, subsample_size=size) as i:
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(loc[k], 1.0), obs=y[i])

    return model


MODELS = [regression, scaled_and_masked, side_by_side, crossed, events, mixture]


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("size", [2, 4, 6])
def test_all_rows_are_counted_once(make, size):
    full, found = joint_of(make(None)), whole_of(make(size))
    z = torch.randn(5, full.latents.dim)
    torch.testing.assert_close(found(z), full(z), rtol=1e-12, atol=1e-12)


def test_values_do_not_depend_on_how_many_draws_go_together(monkeypatch):
    found, z = whole_of(regression(4)), torch.randn(40, 3)
    expected = found(z)
    monkeypatch.setattr("pyro_nflows.model.whole.WIDTH", 1)
    assert found.num_draws == 16
    torch.testing.assert_close(found(z), expected, rtol=1e-13, atol=1e-13)


def test_gradients_are_those_of_the_model_without_subsampling():
    full, found = joint_of(regression(None)), whole_of(regression(3))
    z = torch.randn(4, 3, requires_grad=True)
    expected, got = (torch.autograd.grad(joint(z).sum(), z)[0] for joint in (full, found))
    torch.testing.assert_close(got, expected)


def test_visits_cover_pairs_of_crossed_plates_and_no_pairs_of_separate_ones():
    assert whole_of(crossed(4)).num_visits == 3 * 3
    assert whole_of(side_by_side(4)).num_visits == 3 + 3
    assert whole_of(side_by_side(4)).num_rows == 3 * 4 + 3 * 3


def test_rows_that_do_not_count_may_be_impossible():
    y = torch.tensor([1.0, 2.0, 3.0])

    def model(size=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3, subsample_size=size) as i:
            pyro.sample("y", dist.Uniform(0.0, 1.5 + z.exp(), validate_args=False), obs=y[i])

    full, found = joint_of(model, None), whole_of(model, 2)
    z = torch.tensor([[0.0], [1.0]])
    assert found(z)[0] == -torch.inf
    torch.testing.assert_close(found(z), full(z))


def test_a_model_without_subsampling_has_no_other_log_joint():
    assert whole(joint_of(regression(None))) is None
    assert whole(joint_of(regression(N))) is None


def test_rows_that_are_arguments_cannot_be_chosen():
    y = torch.randn(N)

    def model(index):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N, subsample=index) as i:
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])

    with pytest.raises(IndivisibleError, match="plate 'data' its rows by subsample="):
        whole(joint_of(model, torch.tensor([1, 2])))


def test_data_of_one_minibatch_have_no_other_rows():
    def model(batch):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N, subsample_size=len(batch)):
            pyro.sample("y", dist.Normal(z, 1.0), obs=batch)

    with pytest.raises(IndivisibleError, match="rows of plate 'data' do not choose its data"):
        whole(joint_of(model, torch.randn(3)))


def test_what_depends_on_rows_must_be_in_their_plate():
    y = torch.randn(N)

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N, subsample_size=3) as i:
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])
        pyro.factor("more", -(y[i] - z).square().sum() * N / 3)

    with pytest.raises(IndivisibleError, match="outside of plate 'data' depends on the rows"):
        whole(joint_of(model))


def test_loops_over_rows_are_not_divided():
    y = torch.randn(N)

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", N, subsample_size=3):
            pyro.sample(f"y_{i}", dist.Normal(z, 1.0), obs=y[i])

    with pytest.raises(IndivisibleError, match="'data' is a loop"):
        whole(joint_of(model))


def test_gradients_and_curvature_over_all_rows_are_summed_visit_by_visit():
    """As those of the model with all its rows; also where the density itself is differentiated."""
    joint, right = joint_of(regression(4)), DensityGradient(joint_of(regression(N)))
    density = Trainer(joint, progress_bar=False, all_rows=whole(joint)).density
    z = torch.linspace(-0.5, 0.7, 3)
    points = torch.stack([z, -z])
    for name, given in (("value_and_grad", [z]), ("values_and_grads", [points]), ("hessian", [z])):
        torch.testing.assert_close(getattr(density, name)(*given), getattr(right, name)(*given))
    torch.testing.assert_close(density.products(z, points), right.products(z, points))
    leaf = points.clone().requires_grad_()
    (grads,) = torch.autograd.grad(density.log_joint(leaf).sum(), leaf)
    torch.testing.assert_close(grads, right.values_and_grads(points)[1])
