"""Sequences as values: their shape, their context, their ends."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_nflows import AutoFlow, FlowDistribution, flows
from pyro_nflows.layers import LocScale
from pyro_nflows.layers.base import Chain
from pyro_nflows.testing import perturbed


def wavenet(context_dim=0):
    return perturbed(lambda: flows.wavenet((4, 2), 2, 4, (1, 2), context_dim=context_dim, inverted=True))


def test_a_value_has_the_shape_of_a_sequence():
    flow = wavenet()
    series, flat = FlowDistribution(flow, event_shape=(4, 2)), FlowDistribution(flow)
    value = series.sample((3,))
    assert (series.event_shape, series.support.event_dim, value.shape) == ((4, 2), 2, (3, 4, 2))
    remembered, computed = series.log_prob(value), series.log_prob(value.clone())
    torch.testing.assert_close(remembered, computed)
    torch.testing.assert_close(computed, flat.log_prob(value.flatten(1)))
    assert series.expand((5, 3)).sample().shape == (5, 3, 4, 2)
    assert series.support.check(value).all()


def test_rows_of_a_plate_have_contexts_and_lengths_of_their_own():
    flow, context, lengths = wavenet(3), torch.randn(5, 12, dtype=torch.float64), torch.tensor([1, 4, 2, 4, 3])

    def model(y=None):
        with pyro.plate("rows", 5):
            layer = flows.up_to(flow.at(context), lengths)
            return pyro.sample("y", FlowDistribution(layer, event_shape=(4, 2)), obs=y)

    value = model()
    total = poutine.trace(model).get_trace(value).log_prob_sum()
    each = [
        FlowDistribution(flows.up_to(flow.at(c), n), event_shape=(4, 2)).log_prob(v)
        for c, n, v in zip(context, lengths, value)
    ]
    torch.testing.assert_close(total, torch.stack(each).sum())


def test_what_is_behind_the_end_does_not_count():
    flow = perturbed(lambda: flows.wavenet((3, 1), 2, 4, (1,), inverted=True))
    lengths = torch.tensor([1, 3])
    series = FlowDistribution(flows.up_to(flow, lengths), event_shape=(3, 1))
    value = series.sample((4,))
    assert (value[:, 0, 1:] == 0).all()
    assert (value[:, 0, 0] != 0).all()
    assert (value[:, 1] != 0).all()
    log_prob = series.log_prob(value)
    torch.testing.assert_close(series.log_prob(value.clone()), log_prob)
    other = value.clone()
    other[:, 0, 1:] = 7.0
    torch.testing.assert_close(series.log_prob(other), log_prob)
    line = torch.linspace(-30, 30, 20001, dtype=torch.float64)
    points = torch.zeros(20001, 3, 1, dtype=torch.float64)
    points[:, 0, 0] = line
    one = FlowDistribution(flows.up_to(flow, torch.tensor(1)), event_shape=(3, 1)).log_prob(points)
    assert torch.trapezoid(one.exp(), line).item() == pytest.approx(1.0, abs=1e-6)


def test_draws_have_the_density():
    """Of the last of three positions, given the first two, by quadrature."""
    flow = perturbed(lambda: flows.tarflow((3, 1), 1, 4, 1, 1, inverted=True))
    line = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    series = FlowDistribution(flow, event_shape=(3, 1))
    base = torch.randn(2000, 3, dtype=torch.float64)
    base[:, :2] = base[:1, :2]  # so that the first two positions are those of one draw
    draws, _ = flow(base)
    assert draws[:, :2].std(0).max() < 1e-9
    points = torch.cat([draws[:1, :2].expand(4001, 2), line[:, None]], 1)[..., None]
    density = series.log_prob(points).exp()
    density = density / torch.trapezoid(density, line)
    mean = torch.trapezoid(density * line, line)
    sd = torch.trapezoid(density * (line - mean).square(), line).sqrt()
    assert abs(draws[:, 2].mean() - mean) < 5 * sd / 2000**0.5
    assert abs(draws[:, 2].std() - sd) < 5 * sd / 4000**0.5


def test_a_guide_of_a_path_trains_by_plain_steps():
    def model():
        path = pyro.sample("path", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
        pyro.sample("y", dist.Normal(path.cumsum(-1), 0.5).to_event(1), obs=torch.ones(4))

    guide = AutoFlow(model, flows.wavenet)
    svi = pyro.infer.SVI(guide.bare_model, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    losses = torch.tensor([svi.step() for _ in range(3)])
    assert losses.isfinite().all()
    assert "SequenceAutoregressive" in repr(guide.layer)


def test_mistakes_are_named():
    flow = wavenet()
    with pytest.raises(ValueError, match=r"event_shape of 8 elements.*got \(4, 3\)"):
        FlowDistribution(flow, event_shape=(4, 3))
    with pytest.raises(ValueError, match=r"expected a value of shape \(..., 4, 2\), got \(8,\)"):
        FlowDistribution(flow, event_shape=(4, 2)).log_prob(torch.zeros(8))
    with pytest.raises(ValueError, match=r"its LocScale knows no lengths"):
        FlowDistribution(flows.up_to(Chain(flow, LocScale(8)), torch.tensor(2)))
    with pytest.raises(ValueError, match=r"takes no base_dist"):
        FlowDistribution(flows.up_to(flow, torch.tensor(2)), dist.Normal(torch.zeros(8), 1.0).to_event(1))
