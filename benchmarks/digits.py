r"""Densities of scikit-learn's digits: bits per dimension on held-out images.

    python -m benchmarks.digits [--methods NAME ...] [--steps 800] [--seeds 1] [--json FILE]

1,797 images of 8 by 8 pixels and 17 levels (0 to 16). Uniform noise is added to the levels, so that a density of
``[0, 17]^64`` bounds the probability of an image: :math:`-\log_2 p(x) / 64` is its bits per dimension, and a fair coin
for each level would need :math:`\log_2 17 = 4.09`. The images are split into 1,300 to train on, 200 to choose by (a
bandwidth, when to stop) and 297 to test, the same for all methods. The error is the standard error over test images.
A method is a function from images to a log density: add one to ``METHODS``.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import pyro
import torch
from torch import Tensor, nn

from pyro_nflows import FlowDistribution, recipes
from pyro_nflows.layer import Chain, Inverse, Layer
from pyro_nflows.layers import ActNorm, Elementwise, FlowifiedConv, FlowifiedLinear
from pyro_nflows.transformers import RationalQuadratic

DIM = 64
#: Images, ``(N, 64)``, to their log densities.
LogDensity = Callable[[Tensor], Tensor]


@dataclass
class Digits:
    """Levels of the pixels, ``(N, 64)``."""

    train: Tensor
    valid: Tensor
    test: Tensor


@dataclass
class Row:
    """One method on one split's test images."""

    method: str
    seed: int
    params: int
    bits: float
    error: float
    seconds: float

    def __str__(self) -> str:
        return f"{self.method:<28}{self.seed:>5}{self.params:>8}{self.bits:>8.3f}{self.error:>7.3f}{self.seconds:>9.0f}"


HEAD = f"{'method':<28}{'seed':>5}{'params':>8}{'bits':>8}{'s.e.':>7}{'seconds':>9}"


def load() -> Digits:
    """The images, always in the same split."""
    from sklearn.datasets import load_digits

    levels = torch.as_tensor(load_digits().data, dtype=torch.get_default_dtype())
    levels = levels[torch.randperm(len(levels), generator=torch.Generator().manual_seed(0))]
    return Digits(levels[:1300], levels[1300:1500], levels[1500:])


def dequantised(levels: Tensor, num_copies: int = 1) -> Tensor:
    """Levels with uniform noise, several times if asked."""
    levels = levels.repeat(num_copies, 1)
    return levels + torch.rand_like(levels)


def bits_per_dimension(log_prob: Tensor) -> Tensor:
    """Of each image."""
    return -log_prob / (DIM * math.log(2))


# ---- what needs no training -------------------------------------------------------------------------------------


def diagonal_gaussian(digits: Digits, steps: int) -> tuple[LogDensity, int]:
    """A normal distribution for each pixel."""
    scale, loc = torch.std_mean(dequantised(digits.train, 20), 0)
    return torch.distributions.Independent(torch.distributions.Normal(loc, scale), 1).log_prob, 2 * DIM


def gaussian(digits: Digits, steps: int) -> tuple[LogDensity, int]:
    """A normal distribution of all pixels."""
    x = dequantised(digits.train, 20)
    return torch.distributions.MultivariateNormal(x.mean(0), x.T.cov()).log_prob, DIM + DIM * (DIM + 1) // 2


def kernel_density(digits: Digits, steps: int) -> tuple[LogDensity, int]:
    """A normal kernel at each training image, 20 times dequantised, in pixels of unit deviation; the best bandwidth."""
    centres = dequantised(digits.train, 20)
    scale = centres.std(0)

    def log_density(x: Tensor, bandwidth: float) -> Tensor:
        squares = torch.cdist(x / scale, centres / scale).square() / bandwidth**2
        sizes = (scale.log().sum() + DIM * (math.log(bandwidth) + 0.5 * math.log(2 * math.pi)), math.log(len(centres)))
        return (-0.5 * squares).logsumexp(-1) - sum(sizes)

    valid = dequantised(digits.valid)
    best = max((0.4 + 0.05 * i for i in range(13)), key=lambda h: float(log_density(valid, h).mean()))
    return partial(log_density, bandwidth=best), 1


# ---- flows ------------------------------------------------------------------------------------------------------


def trained(make: Callable[[], Layer], digits: Digits, steps: int, rate: float = 3e-3) -> tuple[LogDensity, int]:
    """A flow behind each pixel's mean and deviation, by Adam; as it was best for the validation images."""
    flow = Chain(make(), ActNorm(DIM))
    flow[-1].initialize(dequantised(digits.train))
    optimizer = torch.optim.Adam(flow.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best, state = -math.inf, flow.state_dict()
    for i, levels in enumerate(batches(digits.train, steps)):
        optimizer.zero_grad()
        (-FlowDistribution(flow).log_prob(dequantised(levels)).mean()).backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 100.0)
        optimizer.step()
        schedule.step()
        if (i + 1) % 50 == 0:
            value = held_out(flow, digits.valid)
            best, state = max((best, state), (value, copy.deepcopy(flow.state_dict())), key=lambda pair: pair[0])
    flow.load_state_dict(state)
    return partial(FlowDistribution(flow).log_prob, num_samples=20), sum(p.numel() for p in flow.parameters())


def batches(levels: Tensor, steps: int, size: int = 128) -> Iterator[Tensor]:
    """So many batches, at random."""
    for _ in range(steps):
        yield levels[torch.randint(len(levels), (size,))]


@torch.no_grad()
def held_out(flow: Layer, levels: Tensor) -> float:
    """Mean log density of images that are not trained on."""
    return float(FlowDistribution(flow).log_prob(dequantised(levels, 5)).mean())


def flowified(network: nn.Sequential, channels: int) -> Layer:
    """A network's flow, from orthogonal weights: small singular values would be a bad start for a likelihood."""
    for module in network:
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.orthogonal_(module.weight)
    return recipes.flowify(network, (1, 8, 8), hidden_dims=(channels,), smoothness=1.0)


def perceptron() -> Layer:
    """An ordinary network, by :func:`~pyro_nflows.recipes.flowify`."""
    widths = [(64, 64), (64, 48), (48, 32), (32, 16)]
    hidden = [module for a, b in widths for module in (nn.Linear(a, b), nn.PReLU(b))]
    return flowified(nn.Sequential(nn.Flatten(), *hidden, nn.Linear(16, 8)), 64)


def convolutional() -> Layer:
    """An ordinary convolutional network."""
    sizes = [(1, 4), (4, 12), (12, 32)]
    convolutions = [module for a, b in sizes for module in (nn.Conv2d(a, b, 2, 2), nn.PReLU(b))]
    dense = [nn.Flatten(), nn.Linear(32, 16), nn.PReLU(16), nn.Linear(16, 8)]
    return flowified(nn.Sequential(*convolutions, *dense), 32)


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
    shape = (1, 8, 8)
    for channels in (4, 12, 32):
        layer = FlowifiedConv(shape, channels, 2, hidden_dims=(32,))
        layers += [layer, spline(layer.output_dim)]
        shape = layer.output_shape
    return Inverse(Chain(*layers, *dense_splines(32, 16, 8)))


METHODS: dict[str, Callable[[Digits, int], tuple[LogDensity, int]]] = {
    "diagonal Gaussian": diagonal_gaussian,
    "Gaussian": gaussian,
    "kernel density": kernel_density,
    "flowified MLP": partial(trained, perceptron),
    "flowified convnet": partial(trained, convolutional),
    "flowified MLP, splines": partial(trained, perceptron_with_splines),
    "flowified convnet, splines": partial(trained, convolutional_with_splines),
}
"""Each method, given the images and the number of training steps, gives a log density and its number of parameters."""


def run(method: str, digits: Digits, seed: int, steps: int) -> Row:
    """Fit one method and test it, averaged over four dequantisations."""
    pyro.set_rng_seed(seed)
    began = time.perf_counter()
    log_density, num_params = METHODS[method](digits, steps)
    seconds = time.perf_counter() - began
    with torch.no_grad():
        bits = torch.stack([bits_per_dimension(log_density(dequantised(digits.test))) for _ in range(4)]).mean(0)
    return Row(method, seed, num_params, float(bits.mean()), float(bits.std() / len(bits) ** 0.5), seconds)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", help="write the rows here")
    options = parser.parse_args(argv)
    digits, rows = load(), []
    print(HEAD, flush=True)
    for seed in range(options.seeds):
        for method in options.methods:
            rows.append(run(method, digits, seed, options.steps))
            print(rows[-1], flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump([asdict(row) for row in rows], file, indent=1)
    return rows


if __name__ == "__main__":
    main()
