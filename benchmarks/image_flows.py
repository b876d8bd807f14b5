"""The flows of the digits' benchmark, and how they are trained: by Adam on the likelihood, or on a bound of it.

A *start* is a function from dequantised images to a flow that is ready to be trained on them.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.images import DIM, NUM_CLASSES, Digits, Images, LogDensity, batches, dequantised
from pyro_nflows import FlowDistribution, flows
from pyro_nflows.flows import num_params, widened
from pyro_nflows.layers import ActNorm, Conditional, Elementwise, FlowifiedConv, FlowifiedLinear, LocScale
from pyro_nflows.layers.base import Chain, Inverse, Layer
from pyro_nflows.transformers import RationalQuadratic

SHAPE = (1, 8, 8)
#: Of the estimate for test images where a flow has auxiliary variables.
NUM_SAMPLES = 20
#: Steps in which the step size grows.
WARMUP = 60
#: Steps between looks at the validation images.
EVERY = 50
Start = Callable[[Images], Layer]


# ---- training ---------------------------------------------------------------------------------------------------


def at(flow: Layer, images: Images) -> Layer:
    """The flow for images of these digits, if it takes a context."""
    return flow.at(images.classes) if any(getattr(part, "context_dim", 0) for part in flow.modules()) else flow


def log_density(flow: Layer, images: Images, num_samples: int = 1) -> Tensor:
    """Log densities, or their estimates by so many samples, in parts that fit into memory."""
    num_samples = num_samples if flow.inverse_noise_dim else 1
    parts = [Images(*pair) for pair in zip(*(tensor.split(2000 // num_samples) for tensor in images))]
    return torch.cat([FlowDistribution(at(flow, part)).log_prob(part.levels, num_samples) for part in parts])


@torch.no_grad()
def held_out(flow: Layer, images: Images) -> float:
    """Mean log density of images that are not trained on; of a flow with auxiliary variables, its bound."""
    return float(log_density(flow, dequantised(images, 3)).mean())


def share_of_rate(i: int, steps: int) -> float:
    """The step size grows for 60 steps, and falls along a cosine to zero."""
    return min(1.0, (i + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * i / steps))


def maximised(flow: Layer, digits: Digits, steps: int, rate: float, size: int, trainee: Layer | None = None) -> float:
    """Train a flow by Adam and leave it as it was best for the validation images.

    :param trainee: a flow of the same parameters, with a cheaper log-determinant, that is trained in its place.
    :return: its value for them.
    """
    trainee = flow if trainee is None else trainee
    trainee.load_state_dict(flow.state_dict())
    best, state = -math.inf, copy.deepcopy(flow.state_dict())
    for i in ascended(trainee, digits.train, steps, rate, size):
        if (i + 1) % EVERY == 0 or i + 1 == steps:
            flow.load_state_dict(trainee.state_dict())
            if (value := held_out(flow, digits.valid)) > best:
                best, state = value, copy.deepcopy(flow.state_dict())
    flow.load_state_dict(state)
    return best


def ascended(flow: Layer, train: Images, steps: int, rate: float, size: int) -> Iterator[int]:
    """The numbers of the steps, after each of them."""
    optimizer = torch.optim.Adam(flow.parameters(), rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(share_of_rate, steps=steps))
    for i, images in enumerate(batches(train, steps, size)):
        optimizer.zero_grad()
        (-log_density(flow, images).mean()).backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        yield i


def trained(
    start: Start,
    digits: Digits,
    steps: int,
    rate: float = 3e-3,
    size: int = 128,
    trainee: Callable[[], Layer] | None = None,
) -> tuple[LogDensity, int]:
    """A flow's log density and its number of parameters."""
    flow = start(dequantised(digits.train))
    maximised(flow, digits, steps, rate, size, None if trainee is None else trainee())
    return partial(log_density, flow, num_samples=NUM_SAMPLES), num_params(flow)


def by_roulette(make: Callable[..., Layer], digits: Digits, steps: int) -> tuple[LogDensity, int]:
    """Residual layers: trained on log-determinants by Russian roulette, chosen and tested with exact ones.

    Such steps are cheap, and contractions learn slowly: there are two and a half times as many.
    """
    return trained(from_data(make), digits, 5 * steps // 2, 2e-2, 64, partial(make, "roulette"))


def chosen(
    starts: Sequence[Start], digits: Digits, steps: int, rate: float = 3e-3, size: int = 128
) -> tuple[LogDensity, int]:
    """The same, from the start that is ahead on the validation images after an eighth of the steps."""

    def value(start: Start) -> float:
        return maximised(start(dequantised(digits.train)), digits, max(1, steps // 8), rate, size)

    return trained(max(starts, key=value), digits, steps, rate, size)


# ---- exact flows, and a continuously indexed one -----------------------------------------------------------------


def from_data(make: Callable[[], Layer]) -> Start:
    """A flow whose every layer starts from the images."""

    def start(images: Images) -> Layer:
        flow = make()
        at(flow, images).initialize(images.levels)
        return flow

    return start


def masked() -> Layer:
    """A MAF."""
    return Chain(flows.maf(DIM, 4, (128, 128)), ActNorm(DIM))


def glow(context_dim: int = 0) -> Layer:
    """Glow, of two scales, behind each pixel's mean and deviation."""
    return Chain(flows.glow_image(SHAPE, 2, 4, (32, 32), context_dim=context_dim), ActNorm(DIM))


def conditional_glow() -> Layer:
    """Glow whose networks read the class, as do the mean and deviation of its base."""
    return Chain(Conditional(LocScale(DIM), NUM_CLASSES, hidden_dims=()), *glow(NUM_CLASSES))  # type: ignore[misc]


def contractions(num_layers: int, width: int, log_det: str) -> flows.Build:
    """Residual layers whose density is one pass."""
    return partial(flows.residual, num_layers=num_layers, hidden_dims=(width,), log_det=log_det, inverted=True)


def indexed_residual(log_det: str = "exact") -> Layer:
    """A CIF of two residual layers."""
    return flows.cif(DIM, contractions(2, 64, log_det), 16, (64,), skip=True)


def residual(log_det: str = "exact") -> Layer:
    """A residual flow of twice as many layers, and of no fewer parameters."""
    return widened(lambda width: contractions(4, width, log_det)(DIM), num_params(indexed_residual()))


# ---- flowified networks -----------------------------------------------------------------------------------------


def behind_pixels(make: Callable[[], Layer]) -> Start:
    """A flow behind each pixel's mean and deviation."""

    def start(images: Images) -> Layer:
        flow = Chain(make(), ActNorm(DIM))
        flow[-1].initialize(images.levels)
        return flow

    return start


def flowified(network: nn.Sequential, channels: int, orthogonal: bool) -> Layer:
    """A network's flow, from its own start or from orthogonal weights, which have no small singular values."""
    for module in network if orthogonal else ():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.orthogonal_(module.weight)
    return flows.flowify(network, SHAPE, hidden_dims=(channels,), smoothness=1.0)


def perceptron(orthogonal: bool = True) -> Layer:
    """An ordinary network, by :func:`~pyro_nflows.flows.flowify`."""
    widths = [(64, 64), (64, 48), (48, 32), (32, 16)]
    hidden = [module for a, b in widths for module in (nn.Linear(a, b), nn.PReLU(b))]
    return flowified(nn.Sequential(nn.Flatten(), *hidden, nn.Linear(16, 8)), 64, orthogonal)


def convolutional(orthogonal: bool = True) -> Layer:
    """An ordinary convolutional network."""
    sizes = [(1, 4), (4, 12), (12, 32)]
    convolutions = [module for a, b in sizes for module in (nn.Conv2d(a, b, 2, 2), nn.PReLU(b))]
    dense = [nn.Flatten(), nn.Linear(32, 16), nn.PReLU(16), nn.Linear(16, 8)]
    return flowified(nn.Sequential(*convolutions, *dense), 32, orthogonal)


def both_starts(make: Callable[[bool], Layer]) -> list[Start]:
    """A network from its own start, and from orthogonal weights."""
    return [behind_pixels(partial(make, orthogonal)) for orthogonal in (False, True)]


def spline(dim: int) -> Layer:
    """The activation of the paper's experiments, for each coordinate its own."""
    return Elementwise(dim, RationalQuadratic(10, 3.0))


def dense_splines(*widths: int) -> list[Layer]:
    """Dense layers, a spline behind each."""
    pairs = zip(widths, widths[1:])
    return [layer for a, b in pairs for layer in (FlowifiedLinear(a, b, hidden_dims=(64,)), spline(b))]


def perceptron_with_splines() -> Layer:
    """Dense layers and splines, the first spline on the pixels."""
    return Inverse(Chain(spline(DIM), *dense_splines(64, 64, 48, 32, 16, 8)))


def convolutional_with_splines() -> Layer:
    """Convolutions and splines, the first spline on the pixels."""
    layers: list[Layer] = [spline(DIM)]
    shape = SHAPE
    for channels in (4, 12, 32):
        layer = FlowifiedConv(shape, channels, 2, hidden_dims=(32,))
        layers += [layer, spline(layer.output_dim)]
        shape = layer.output_shape
    return Inverse(Chain(*layers, *dense_splines(32, 16, 8)))
