r"""Densities of scikit-learn's digits: bits per dimension on held-out images.

    python -m benchmarks.digits [--methods NAME ...] [--steps 600] [--seeds 3] [--json FILE]

1,797 images of 8 by 8 pixels and 17 levels (0 to 16). Uniform noise is added to the levels, so that a density of
``[0, 17]^64`` bounds the probability of an image: :math:`-\log_2 p(x) / 64` is its bits per dimension, and a fair coin
for each level would need :math:`\log_2 17 = 4.09`. The images are split into 1,300 to train on, 200 to choose by (a
bandwidth, a start, when to stop) and 297 to test; each seed has a split of its own, the same for all methods, and its
own test images. The error is the standard error over them, each dequantised four times; "seconds" are of the processor.
Where a flow has auxiliary variables, its density is the estimate of 20 samples, on average too low. The CIF's
difference to its baseline, which has no fewer layers and parameters and the same number of steps, is paired by test
image and seed; its error counts both.

A method is a function from images to a log density: add one to ``METHODS``.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pyro
import torch
from torch import Tensor

from benchmarks.densities import difference
from benchmarks.image_flows import (
    behind_pixels,
    both_starts,
    by_roulette,
    chosen,
    conditional_glow,
    convolutional,
    convolutional_with_splines,
    from_data,
    glow,
    indexed_residual,
    masked,
    perceptron,
    perceptron_with_splines,
    residual,
    trained,
)
from benchmarks.images import DIM, Digits, LogDensity, bits_per_dimension, dequantised, load


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


# ---- what needs no training -------------------------------------------------------------------------------------


def of_levels(log_prob: Callable[[Tensor], Tensor]) -> LogDensity:
    """A density that does not look at the classes."""
    return lambda images: log_prob(images.levels)


def diagonal_gaussian(digits: Digits, steps: int) -> tuple[LogDensity, int]:
    """A normal distribution for each pixel."""
    scale, loc = torch.std_mean(dequantised(digits.train, 20).levels, 0)
    return of_levels(torch.distributions.Independent(torch.distributions.Normal(loc, scale), 1).log_prob), 2 * DIM


def gaussian(digits: Digits, steps: int) -> tuple[LogDensity, int]:
    """A normal distribution of all pixels."""
    x = dequantised(digits.train, 20).levels
    normal = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov())
    return of_levels(normal.log_prob), DIM + DIM * (DIM + 1) // 2


def kernel_density(digits: Digits, steps: int) -> tuple[LogDensity, int]:
    """A normal kernel at each training image, 20 times dequantised, in pixels of unit deviation; the best bandwidth."""
    centres = dequantised(digits.train, 20).levels
    scale = centres.std(0)

    def log_density(x: Tensor, bandwidth: float) -> Tensor:
        squares = torch.cdist(x / scale, centres / scale).square() / bandwidth**2
        sizes = (scale.log().sum() + DIM * (math.log(bandwidth) + 0.5 * math.log(2 * math.pi)), math.log(len(centres)))
        return (-0.5 * squares).logsumexp(-1) - sum(sizes)

    valid = dequantised(digits.valid).levels
    best = max((0.4 + 0.05 * i for i in range(13)), key=lambda h: float(log_density(valid, h).mean()))
    return of_levels(partial(log_density, bandwidth=best)), 1


METHODS: dict[str, Callable[[Digits, int], tuple[LogDensity, int]]] = {
    "diagonal Gaussian": diagonal_gaussian,
    "Gaussian": gaussian,
    "kernel density": kernel_density,
    "MAF": partial(trained, from_data(masked)),
    "Glow": partial(trained, from_data(glow)),
    "c-Glow, given the class": partial(trained, from_data(conditional_glow)),
    "ResFlow": partial(by_roulette, residual),
    "CIF-ResFlow": partial(by_roulette, indexed_residual),
    "flowified MLP": partial(chosen, both_starts(perceptron)),
    "flowified convnet": partial(chosen, both_starts(convolutional)),
    "flowified MLP, splines": partial(trained, behind_pixels(perceptron_with_splines)),
    "flowified convnet, splines": partial(trained, behind_pixels(convolutional_with_splines)),
}
"""Each method, given the images and the number of training steps, gives a log density and its number of parameters."""


#: A continuously indexed flow and its baseline.
PAIR = ("CIF-ResFlow", "ResFlow")


def run(method: str, digits: Digits, seed: int, steps: int) -> tuple[Row, Tensor]:
    """Fit one method to a split and test it: its row, and the bits per dimension of each test image."""
    pyro.set_rng_seed(seed)
    began = time.process_time()
    log_density, num_params = METHODS[method](digits, steps)
    seconds = time.process_time() - began
    torch.manual_seed(1000 + seed)  # the same noise for all methods
    with torch.no_grad():
        bits = bits_per_dimension(log_density(dequantised(digits.test, 4))).view(4, -1).mean(0)
    return Row(method, seed, num_params, float(bits.mean()), float(bits.std() / len(bits) ** 0.5), seconds), bits


def compare(bits: dict[str, list[Tensor]]) -> str:
    """The indexed flow's bits minus its baseline's."""
    first, second = PAIR
    mean, error = difference(bits[second], bits[first])
    better = first if mean < -2 * error else second if mean > 2 * error else "neither"
    nats = DIM * math.log(2)
    return (
        f"{first} - {second}: {mean:+.4f} +- {error:.4f} bits per dimension, "
        f"{-nats * mean:+.2f} +- {nats * error:.2f} nats of an image's log-likelihood; better: {better}"
    )


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the rows here")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Print the table."""
    options = parsed(argv)
    rows: list[Row] = []
    bits: dict[str, list[Tensor]] = {method: [] for method in options.methods}
    print(HEAD, flush=True)
    for method in options.methods:
        for seed in range(options.seeds):
            row, values = run(method, load(seed), seed, options.steps)
            rows.append(row)
            bits[method].append(values)
            print(row, flush=True)
            if options.json:
                options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    if set(PAIR) <= set(bits):
        print(compare(bits), flush=True)
    return rows


if __name__ == "__main__":
    main()
