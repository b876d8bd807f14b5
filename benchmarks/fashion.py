r"""Densities of Fashion-MNIST, 28 by 28 pixels of 256 levels: bits per dimension of test images.

    python -m benchmarks.fashion [--data FOLDER] [--methods NAME ...] [--seeds 2] [--epochs 1 | --seconds 3600]
        [--size small] [--batch 64] [--images 60000] [--test 10000] [--device cpu] [--limit 9000] [--out FOLDER]

Uniform noise is added to the levels, and pixels go to the logit scale; bits per dimension are of the density on
``[0, 256]^784``, its Jacobian counted, so that a fair coin for each level needs 8. All flows of a seed see the same
batches. The step size grows for the first twentieth of the training, and falls along a cosine to zero.

On the processor flows are trained in turn, a step of each, for so many epochs or until so many seconds have passed:
all take equally many steps. "seconds" are of the processor, of an epoch. On a GPU they are trained side by side, see
:mod:`benchmarks.fashion_gpu`: flows of a pair take equally many steps; different pairs share the card for the same
time, and "seconds", of an epoch, are of the clock.

Log-determinants of residual layers are right on average, in training and for test images (ten terms of the series and
those that Russian roulette adds, so that a mean over images is right). Where a flow has an index, "bits" is its ELBO
bound, of one sample an image; "IWAE" the bound of ``--samples``. Since the latter is not right for estimated
determinants, it is computed with exact ones, for the first ``--exact`` test images, beside the ELBO bound of the
same ones ("some"). Differences of a pair, of equal numbers of parameters, are paired by image and seed.

The folder gets a table, ``rows.json``, each flow's state and each image's bits as they are known, and a picture of
draws. Flows whose state is there are not trained again, but tested. Exact determinants and IWAE come last, and only
until ``--limit`` seconds have passed since the start.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import fashion_gpu, fashion_training
from benchmarks.densities import difference
from benchmarks.fashion_data import Fashion, bits_per_dimension, dequantised, folder, load, to_pixels
from benchmarks.fashion_flows import METHODS, PAIRS, SIZES, TEST_TERMS, Method, methods
from benchmarks.fashion_training import BATCH, GPU_BATCH, Fit, begun, log_density
from pyro_nflows import FlowDistribution
from pyro_nflows.flows import num_params
from pyro_nflows.layers.base import Layer

#: Images in one pass of a test, and with exact determinants; on the processor, and on a GPU.
TEST_BATCH, EXACT_BATCH = {"cpu": 250, "cuda": 2000}, {"cpu": 5, "cuda": 25}


@dataclass
class Row:
    """One flow: its training, and its bits per dimension of test images."""

    method: str
    seed: int
    params: int
    epochs: float
    seconds: float
    bits: float
    error: float
    exact_bits: float | None = None
    iwae: float | None = None

    def __str__(self) -> str:
        more = "".join(
            f"{number:>9.3f}" if number is not None else f"{'':>9}" for number in (self.exact_bits, self.iwae)
        )
        return (
            f"{self.method:<19}{self.seed:>5}{self.params:>8}{self.epochs:>8.2f}{self.seconds:>9.0f}{self.bits:>8.3f}"
            f"{self.error:>7.3f}{more}"
        )


HEAD = f"{'method':<19}{'seed':>5}{'params':>8}{'epochs':>8}{'seconds':>9}{'bits':>8}{'s.e.':>7}{'some':>9}{'IWAE':>9}"


# ---- tests ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def bits_of(flow: Layer, pixels: Tensor, num_samples: int = 1, size: int = TEST_BATCH["cpu"]) -> Tensor:
    """Bits per dimension of each image, in batches."""
    parts = [log_density(flow, part, num_samples) for part in pixels.split(max(1, size // num_samples))]
    return bits_per_dimension(torch.cat(parts)).cpu()


def twin(method: Method, flow: Layer, *args: object) -> Layer:
    """The same flow, with its log-determinants computed in another way."""
    other = method.build(*args).to(next(flow.parameters()).device)
    other.load_state_dict(flow.state_dict())
    return other


def tested(fit: Fit, data: Fashion, options: argparse.Namespace) -> tuple[Row, Tensor]:
    """A flow's row, and its bits of each test image."""
    method, flow = fit.method, fit.flow
    flow = twin(method, flow, "roulette", TEST_TERMS) if method.is_estimated else flow
    bits = bits_of(flow, test_pixels(fit, data, options), 1, TEST_BATCH[options.device.type])
    epochs = fit.num_steps * options.batch / options.images
    error = float(bits.std() / len(bits) ** 0.5)
    seconds = fit.seconds / max(epochs, 1e-9)
    return Row(fit.name, fit.seed, num_params(flow), epochs, seconds, float(bits.mean()), error), bits


def test_pixels(fit: Fit, data: Fashion, options: argparse.Namespace) -> Tensor:
    """Of all test images, with the same noise for all methods."""
    torch.manual_seed(1000 + fit.seed)
    return dequantised(data.test[: options.test].to(options.device))


def sharpen(row: Row, fit: Fit, data: Fashion, options: argparse.Namespace) -> None:
    """Exact determinants and IWAE, where they say more."""
    method, flow, pixels = fit.method, fit.flow, test_pixels(fit, data, options)
    size = TEST_BATCH[options.device.type]
    if method.is_estimated:
        flow, pixels, size = twin(method, flow, "exact"), pixels[: options.exact], EXACT_BATCH[options.device.type]
        row.exact_bits = float(bits_of(flow, pixels, 1, size).mean()) if len(pixels) else None
    if flow.inverse_noise_dim and len(pixels):
        row.iwae = float(bits_of(flow, pixels, options.samples, size).mean())


def compared(bits: dict[tuple[str, int], Tensor], seeds: int) -> Iterator[str]:
    """An indexed flow's bits minus its baseline's."""
    for first, second in PAIRS:
        ours, theirs = ([bits[name, seed] for seed in range(seeds) if (name, seed) in bits] for name in (first, second))
        if ours and len(ours) == len(theirs):
            mean, error = difference(theirs, ours)
            better = first if mean < -2 * error else second if mean > 2 * error else "neither"
            yield (
                f"{first} - {second}: {mean:+.4f} +- {error:.4f} bits per dimension, of {len(ours)} seeds; "
                f"better: {better}"
            )


def picture(fits: Sequence[Fit], data: Fashion, path: Path) -> None:
    """Ten test images, and ten draws of each flow."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = {"test images": data.test[:10].double()}
    for fit in fits:
        if fit.seed == 0:
            torch.manual_seed(0)
            rows[fit.name] = to_pixels(FlowDistribution(fit.flow).sample(torch.Size([10]))).cpu()
    fig, axes = pyplot.subplots(len(rows), 1, figsize=(8, 0.95 * len(rows)), squeeze=False, layout="constrained")
    for axis, (name, images) in zip(axes[:, 0], rows.items()):
        strip = images.view(10, 28, 28).permute(1, 0, 2).reshape(28, 280)
        axis.imshow(strip.nan_to_num().numpy(), cmap="gray", vmin=0, vmax=255)
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.set(xticks=[], yticks=[])
    fig.savefig(path, dpi=110)
    pyplot.close(fig)


# ---- the table --------------------------------------------------------------------------------------------------


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the files; or the environment variable FASHION")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--once", nargs="+", choices=METHODS, default=[], metavar="NAME", help="of one seed only")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, help="of the clock, for all training together; in place of --epochs")
    parser.add_argument("--size", choices=SIZES, default="small", help="of the flows: for two cores, or for a GPU")
    parser.add_argument("--batch", type=int, help="images of a step; 64 on the processor, 256 on a GPU")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds; see above")
    parser.add_argument("--images", type=int, default=60_000, help="to train on")
    parser.add_argument("--test", type=int, default=10_000, help="test images")
    parser.add_argument("--exact", type=int, default=50, help="of these, with exact determinants and IWAE")
    parser.add_argument("--samples", type=int, default=5, help="of the IWAE bound")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--out", type=Path, default=Path("build/fashion"), help="folder of results")
    options = parser.parse_args(argv)
    options.batch = options.batch or (BATCH if options.device.type == "cpu" else GPU_BATCH)
    return options


def by(options: argparse.Namespace) -> Callable[[int], float]:
    """The share of training that is done after so many steps: by seconds if those were given, else by epochs."""
    if options.seconds is not None:
        began = time.monotonic()
        return lambda number: (time.monotonic() - began) / options.seconds
    num_steps = max(1, round(options.epochs * options.images / options.batch))
    return lambda number: number / num_steps


def trained(options: argparse.Namespace, data: Fashion) -> list[Fit]:
    """All flows, those whose states are in the folder as they are there."""
    images, ways = data.train[: options.images], methods(options.size)
    fits = [
        begun(name, ways[name], seed, images, options.device)
        for seed in range(options.seeds)
        for name in options.methods
        if seed == 0 or name not in options.once
    ]
    new = [fit for fit in fits if not state_path(options, fit).exists()]
    for fit in fits:
        if fit not in new:
            saved = torch.load(state_path(options, fit), map_location=options.device)
            fit.flow.load_state_dict(saved["flow"])
            fit.num_steps, fit.seconds = saved["num_steps"], saved["seconds"]
    torch.manual_seed(0)
    keep = partial(kept, options)
    if new and options.device.type == "cuda":
        fashion_gpu.train(new, images.to(options.device), options.batch, partial(by, options), keep)
    elif new:
        fashion_training.train(new, images, options.batch, by(options), keep)
    return fits


def kept(options: argparse.Namespace, fits: Sequence[Fit]) -> None:
    """Write the flows' states."""
    for fit in fits:
        state = {"flow": fit.flow.state_dict(), "num_steps": fit.num_steps, "seconds": fit.seconds}
        torch.save(state, state_path(options, fit))


def state_path(options: argparse.Namespace, fit: Fit) -> Path:
    """Where a flow's state is kept."""
    path: Path = options.out / f"{fit.name}-{fit.seed}.pt"
    return path


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Train, and print the table."""
    began = time.monotonic()
    options = parsed(argv)
    data = load(folder(options.data))
    options.images = min(options.images, len(data.train))
    options.out.mkdir(parents=True, exist_ok=True)
    fits = trained(options, data)
    rows: list[Row] = []
    bits: dict[tuple[str, int], Tensor] = {}
    print(HEAD, flush=True)
    for fit in fits:
        row, bits[fit.name, fit.seed] = tested(fit, data, options)
        rows.append(row)
        print(row, flush=True)
        torch.save(bits, options.out / "bits.pt")
        written(rows, options)
    print(*compared(bits, options.seeds), sep="\n", flush=True)
    picture(fits, data, options.out / "draws.png")
    for row, fit in zip(rows, fits):
        if time.monotonic() - began < options.limit:
            sharpen(row, fit, data, options)
            written(rows, options)
    print(HEAD, *rows, sep="\n", flush=True)
    return rows


def written(rows: Sequence[Row], options: argparse.Namespace) -> None:
    """The rows, as they are known."""
    (options.out / "rows.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
