"""Flows of videos: what a frame reads, draws by what is kept, known densities, and clips of any length."""

import math

import pytest
import torch
from torch import Tensor

from pyro_nflows import FlowDistribution, flows
from pyro_nflows.layers import Coupling, LocScale, Positionwise, SequenceAutoregressive
from pyro_nflows.layers.base import Chain
from pyro_nflows.nets import FrameNet
from pyro_nflows.testing import perturbed

DIM, SLOPE, SCALE = 4, 0.8, 0.5


def small(num_frames: int, num_past: int = 2, dtype: torch.dtype = torch.float64) -> Chain:
    """Two levels of frames of 4 x 4."""
    make = lambda: flows.video((1, 4, 4), num_frames, 2, 1, (4,), num_past=num_past, prior_dims=(4,))  # noqa: E731
    return perturbed(make).to(dtype)


def autoregressive(num_frames: int) -> Chain:
    """A flow at the weights of four autoregressive processes of order one."""
    flow = flows.video((1, 2, 2), num_frames, 1, 1, (4,), num_past=1)
    (net,) = flow[0].layer.net.nets
    with torch.no_grad():
        net.skip[:DIM, :DIM] = -SLOPE * torch.eye(DIM)
        net.bias[DIM:] = 10 * math.atanh(-math.log(SCALE) / 10)  # log-scales are bounded by 10
    return flow


def exact(num_frames: int) -> torch.distributions.MultivariateNormal:
    """Its density, of the frames of a pixel."""
    steps = torch.eye(num_frames) - SLOPE * torch.eye(num_frames).roll(1, 0).tril(-1)
    factor = SCALE * torch.linalg.inv(steps)
    return torch.distributions.MultivariateNormal(torch.zeros(num_frames), factor @ factor.T)


def test_at_the_weights_of_an_autoregressive_process_the_density_is_its() -> None:
    clips = torch.randn(20, 5, DIM)
    expected = exact(5).log_prob(clips.mT).sum(-1)
    assert torch.allclose(FlowDistribution(autoregressive(5)).log_prob(clips.flatten(1)), expected, atol=1e-6)


def test_what_follows_given_frames_has_their_conditional_distribution() -> None:
    flow, given = autoregressive(3), torch.tensor([1.0, -2.0, 0.5, 3.0])
    x, _ = flow.inverse(torch.cat([given, torch.zeros(2 * DIM)]).expand(4000, -1))
    x[:, DIM:] = torch.randn(4000, 2 * DIM)
    clips, _ = flow(x)
    assert torch.allclose(clips[:, :DIM], given.expand(4000, -1), atol=1e-7)
    last, sd = clips[:, 2 * DIM :], SCALE * (1 + SLOPE**2) ** 0.5
    assert ((last.mean(0) - SLOPE**2 * given).abs() < 5 * sd / 4000**0.5).all()
    assert ((last.std(0) / sd - 1).abs() < 5 / 8000**0.5).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_draws_by_what_is_kept_equal_draws_without(dtype: torch.dtype, tolerance: float) -> None:
    """Without: a fixed point, each round of which is a pass over all frames and fixes one more part of one more."""
    prior = small(4, dtype=dtype)[0].layer
    base = torch.randn(10, 64, dtype=dtype)
    kept, log_weight = prior.inverse(base)
    x = torch.zeros_like(base)
    for _ in range(8):
        params = prior.net(x.view(10, 4, 16))
        x = prior.transformer.inverse(base.view(10, 4, 16), params)[0].flatten(1)
    assert torch.allclose(kept, x, rtol=tolerance, atol=tolerance)
    assert torch.allclose(prior(kept)[1], log_weight, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("num_past", [1, 2])
def test_a_frames_latents_read_the_last_frames_and_smaller_scales(num_past: int) -> None:
    layer = small(4, num_past)[0].layer
    jacobian = torch.func.jacrev(lambda x: layer(x)[0])(torch.randn(64)).view(4, 16, 4, 16).movedim(1, 2)
    for t in range(4):
        for s in range(4):
            reads = jacobian[t, s].any()
            assert reads == (0 <= t - s <= num_past)
    now = jacobian[2, 2]
    assert now[8:, :8].any()  # what is large reads what is small,
    assert not now[:8, 8:].any()  # not the other way round,
    assert not (now - torch.diag(now.diagonal()))[8:, 8:].any()  # nor itself
    past = jacobian[2, 1]
    assert past[8:, 8:].any()
    assert not past[:8, 8:].any()


def test_a_draw_takes_one_pass_of_each_network_for_each_frame() -> None:
    flow, calls = small(6), []
    for net in flow[0].layer.net.nets:
        net.register_forward_hook(lambda *args: calls.append(1))
    FlowDistribution(flow).sample(torch.Size([3]))
    assert len(calls) == 2 * 6


def test_longer_clips_have_the_same_parameters_and_shorter_ones_end() -> None:
    short, long = small(3), flows.video((1, 4, 4), 7, 2, 1, (4,), prior_dims=(4,)).double()
    long.load_state_dict(short.state_dict())
    clip = torch.randn(5, 7 * 16)
    expected = FlowDistribution(short).log_prob(clip[:, : 3 * 16])
    ended = FlowDistribution(flows.up_to(long, torch.tensor([3, 7, 3, 3, 3])), event_shape=(7, 16))
    got = ended.log_prob(clip.view(5, 7, 16))
    assert torch.allclose(got[[0, 2, 3, 4]], expected[[0, 2, 3, 4]])
    assert torch.allclose(got[1], FlowDistribution(long).log_prob(clip[1]))
    draws = ended.sample()
    assert (draws[0, 3:] == 0).all()
    assert (draws[1] != 0).all()


def test_each_position_has_the_same_map_and_starts_from_all() -> None:
    layer = perturbed(lambda: Positionwise(Coupling(2, hidden_dims=(4,)), 3))
    x = torch.randn(5, 6)
    y, log_weight = layer(x)
    each = [layer.layer(x[:, 2 * t : 2 * t + 2]) for t in range(3)]
    assert torch.allclose(y, torch.cat([point for point, _ in each], -1))
    assert torch.allclose(log_weight, torch.stack([weight for _, weight in each]).sum(0))
    flow = flows.video((1, 4, 4), 3, 1, 1, (4,))
    data = 5 + 3 * torch.randn(100, 48)
    started = flow.initialize(data)
    assert started.mean().abs() < 0.1
    assert abs(started.std() - 1) < 0.1


def test_a_moving_square_is_learnt_from_the_last_frame() -> None:
    """A pixel that moves right by one in a frame: the clip is known from its first frame."""

    def clips(number: int) -> Tensor:
        start = torch.randint(0, 4, (number,))
        at = (start[:, None] + torch.arange(4)) % 4
        frames = torch.nn.functional.one_hot(at, 4).double()[:, :, None, :].expand(-1, -1, 4, -1)
        return (frames + 0.3 * torch.randn(number, 4, 4, 4)).flatten(1)

    torch.manual_seed(0)
    flow = flows.video((1, 4, 4), 4, 1, 2, (8,), num_past=1, prior_dims=(16,))
    flow.initialize(clips(200))
    optimizer = torch.optim.Adam(flow.parameters(), 2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        (-FlowDistribution(flow).log_prob(clips(64)).mean()).backward()
        optimizer.step()
    test = clips(300)
    moved, still = test, test.view(300, 4, 16)[:, :1].repeat(1, 4, 1).flatten(1)
    with torch.no_grad():
        difference = FlowDistribution(flow).log_prob(moved) - FlowDistribution(flow).log_prob(still)
    assert difference.mean() > 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flows.video((1, 4, 4), 0), "video: num_frames must be a positive integer, got 0"),
        (lambda: flows.video((1, 6, 6), 2), "even height and width"),
        (lambda: FrameNet((2, 5), 2, [(1, 2, 2)]), "expected images of 5 coordinates in all"),
        (lambda: FrameNet((2, 13), 2, [(1, 2, 2), (1, 3, 3)]), "each image to be a multiple of the one before it"),
        (lambda: FrameNet((2, 4), 2, [(1, 2, 2)], context_dim=1), "takes no context"),
        (lambda: Positionwise(LocScale(2), 0), "Positionwise: num_positions must be a positive integer, got 0"),
        (lambda: Positionwise(Coupling(2, context_dim=1), 3), "expected a layer without a context"),
        (lambda: SequenceAutoregressive((1, 2)), "expected at least two positions"),
    ],
)
def test_a_mistake_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
