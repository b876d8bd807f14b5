r"""What the numbers of the indexed residual flow of 28 by 28 images are made of, from the states that a run has kept.

    python -m benchmarks.fashion_indices build/fashion [--size large] [--images 200] [--samples 5] [--seeds 2]

First, for each layer of CIF-ResFlow, from the pixels on, how much its index is used:

- "tells": :math:`E \log r(u | x') - E \log N(u)`, with the normal distribution that ``u`` has over all images: what the
  index tells of the image, in bits per dimension of the image;
- "KL": :math:`E[\log r(u | x') - \log q(u | x)]` in the same unit, the part of it that ``q`` does not know, which the
  bound pays for;
- "moves": the share of the variance of ``x`` that is left open by ``x'``, and which the index decides.

An idle index has zeros. Then, with exact log-determinants of the first test images, each flow's bits per dimension;
for the CIF the mean of ``--samples`` bounds (ELBO) and their IWAE; differences of the pair, image by image, with their
standard errors over images; the standard deviation of an image's log-weights, in nats; and the error of an image's
estimate by Russian roulette, mean and standard deviation.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.fashion_data import DIM, bits_per_dimension, dequantised, folder, load, to_reals
from benchmarks.fashion_flows import SIZES, TEST_TERMS, methods
from pyro_nflows.layers import Indexed, Residual
from pyro_nflows.layers.base import Layer
from pyro_nflows.numerics import standard_normal_log_prob

#: Images in one go.
AT_ONCE = 10
#: Nats of an image in a bit per dimension.
NATS = DIM * math.log(2)


class Watched(Indexed):
    """An indexed layer that notes how its index is used, on the way from images."""

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        eps, rest = self._shares(noise)
        x_prime, inner = self.inner.inverse(y, rest)
        u, log_r = self.reverse.draw(x_prime, eps)
        x, log_weight = self._retreat(x_prime, u)
        other, _ = self._retreat(x_prime, self.reverse.draw(x_prime, torch.randn_like(eps))[0])
        log_all = torch.distributions.Normal(u.mean(0), u.std(0)).log_prob(u).sum(-1)
        told, paid = ((log_r - log_b).mean() / NATS for log_b in (log_all, self.index.log_prob(x, u)))
        moves = 0.5 * (x - other).square().mean() / x.var(0).mean()
        self.noted = (float(told), float(paid), float(moves))
        return x, inner + log_weight + log_r


class Exact(Residual):
    """A residual layer that takes its noise, but has an exact log-determinant, and notes the estimate's error."""

    def _log_weight(self, at: object, noise: Tensor | None) -> Tensor:
        exact = super()._log_weight(at, None)  # type: ignore[arg-type]
        self.noted = super()._log_weight(at, noise) - exact  # type: ignore[arg-type]
        return exact


@contextmanager
def turned(flow: Layer, kind: type[Layer], into: type[Layer]) -> Iterator[list[Layer]]:
    """Within, the flow's layers of a kind are of another one."""
    layers = [part for part in flow.modules() if type(part) is kind]
    for layer in layers:
        layer.__class__ = into
    try:
        yield layers
    finally:
        for layer in layers:
            layer.__class__ = kind


def use_of_indices(flow: Layer, pixels: Tensor) -> None:
    """Print it, layer by layer."""
    reals, _ = to_reals(pixels)
    with turned(flow, Indexed, Watched) as layers:
        flow.inverse(reals, torch.randn(len(reals), flow.inverse_noise_dim))
    print(f"{'layer':>5}{'tells':>8}{'KL':>8}{'moves':>8}")
    for number, layer in enumerate(reversed(layers)):
        print(f"{number:>5}" + "".join(f"{value:>8.3f}" for value in layer.noted))


def bits_and_errors(flow: Layer, pixels: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    """Bits per dimension ``(num_samples, N)`` by exact log-determinants, and the first estimates' errors ``(N,)``."""
    reals, log_det = to_reals(pixels)
    bits, errors = [], torch.zeros(0)
    with turned(flow, Residual, Exact) as layers:
        for number in range(num_samples):
            x, log_weight = flow.inverse(reals, torch.randn(len(reals), flow.inverse_noise_dim))
            bits.append(bits_per_dimension(standard_normal_log_prob(x) - log_weight + log_det))
            if number == 0:
                errors = sum(-layer.noted for layer in layers) / NATS
    return torch.stack(bits), errors


def told(name: str, values: Tensor) -> None:
    """A mean over images, with its standard error and the images' standard deviation."""
    print(
        f"{name:<28}{values.mean():>9.4f} +- {values.std() / len(values) ** 0.5:.4f}, sd {values.std():.4f}", flush=True
    )


def state(options: argparse.Namespace, name: str, seed: int) -> Layer:
    """A flow as it was kept."""
    flow = methods(options.size)[name].build("roulette", TEST_TERMS)
    flow.load_state_dict(torch.load(options.folder / f"{name}-{seed}.pt", map_location="cpu")["flow"])
    return flow


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the states")
    parser.add_argument("--data", type=Path, help="folder of the images; or the environment variable FASHION")
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args(argv)
    levels = load(folder(options.data)).test
    for seed in range(options.seeds):
        torch.manual_seed(1000 + seed)
        pixels = dequantised(levels)
        plain, indexed = (state(options, name, seed) for name in ("ResFlow", "CIF-ResFlow"))
        print(f"seed {seed}")
        use_of_indices(indexed, pixels[: 2 * options.images])
        found: list[list[Tensor]] = []
        for start in range(0, options.images, AT_ONCE):
            batch, parts = pixels[start : min(start + AT_ONCE, options.images)], []
            for flow, num_samples in ((plain, 1), (indexed, options.samples)):
                torch.manual_seed(10 * start + seed)
                parts += bits_and_errors(flow, batch, num_samples)
            found.append(parts)
        first, first_errors, second, second_errors = (torch.cat(parts, -1).double() for parts in zip(*found))
        iwae = -((-second * NATS).logsumexp(0) - math.log(len(second))) / NATS
        told("ResFlow", first[0])
        told("CIF-ResFlow, ELBO", second.mean(0))
        told("CIF-ResFlow, IWAE", iwae)
        told("IWAE - ELBO", iwae - second.mean(0))
        told("ELBO - ResFlow", second.mean(0) - first[0])
        told("IWAE - ResFlow", iwae - first[0])
        print(f"log-weights of an image, sd {second.var(0).mean().sqrt() * NATS:.1f} nats")
        told("roulette's error, ResFlow", first_errors)
        told("roulette's, CIF-ResFlow", second_errors)


if __name__ == "__main__":
    main()
