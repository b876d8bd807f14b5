r"""Densities of Fashion-MNIST, 28 by 28 pixels of 256 levels: bits per dimension of test images.

    python -m benchmarks.fashion [--data FOLDER] [--methods NAME ...] [--seeds 2] [--epochs 1 | --seconds 3600]
        [--images 60000] [--test 10000] [--device cpu] [--out FOLDER]

Uniform noise is added to the levels, and pixels go to the logit scale; bits per dimension are of the density on
``[0, 256]^784``, its Jacobian counted, so that a fair coin for each level needs 8. All flows of a seed see the same
batches. They are trained side by side, a step of each in turn, for so many epochs or until so many seconds have
passed; the step size grows for the first twentieth, and falls along a cosine to zero. "seconds" are of the processor
(of the clock on a GPU), of an epoch.

Log-determinants of residual layers are right on average, in training and for test images (ten terms of the series and
those that Russian roulette adds, so that a mean over images is right). Where a flow has an index, "bits" is its ELBO
bound, of one sample an image; "IWAE" the bound of ``--samples``. Since the latter is not right for estimated
determinants, it is computed with exact ones, for the first ``--exact`` test images, beside the ELBO bound of the
same ones. Differences of a pair, of equal numbers of parameters, are paired by image and seed.

The folder gets a table, ``rows.json``, each flow's state and each image's bits as they are known, and a picture of
draws. Flows whose state is there are not trained again, but tested.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.densities import difference
from benchmarks.fashion_data import Fashion, bits_per_dimension, dequantised, folder, load, to_pixels, to_reals
from benchmarks.fashion_flows import METHODS, PAIRS, TEST_TERMS, Method
from pyro_nflows import FlowDistribution
from pyro_nflows.flows import num_params
from pyro_nflows.layers.base import Layer

BATCH, NUM_START = 64, 500
#: Of training, in which the step size grows.
WARMUP = 0.05
#: Images in one pass of a test, and with exact determinants.
TEST_BATCH, EXACT_BATCH = 250, 5


@dataclass
class Fit:
    """A flow in training."""

    name: str
    seed: int
    flow: Layer
    optimizer: torch.optim.Optimizer
    num_steps: int = 0
    seconds: float = 0.0


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


# ---- training ---------------------------------------------------------------------------------------------------


def begun(name: str, seed: int, train: Tensor, device: torch.device) -> Fit:
    """A flow that has started from the first images."""
    torch.manual_seed(seed)
    method = METHODS[name]
    flow = method.build().to(device)
    reals, _ = to_reals(dequantised(train[:NUM_START].to(device)))
    flow.initialize(reals)
    return Fit(name, seed, flow, torch.optim.Adam(flow.parameters(), method.rate))


def batches(train: Tensor, seed: int) -> Iterator[Tensor]:
    """Levels, epoch after epoch, in an order of the seed's own."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(train), generator=generator)
        for index in order.split(BATCH):
            if len(index) == min(BATCH, len(train)):
                yield train[index]


def clock(device: torch.device) -> float:
    """Processor time; on a GPU, the time of day."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def step(fit: Fit, levels: Tensor, share: float) -> float:
    """One step of a flow, when a share of its training is done; bits per dimension of the batch."""
    device = levels.device
    began = clock(device)
    rate = METHODS[fit.name].rate * min(1.0, (share + 1e-3) / WARMUP) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    fit.optimizer.param_groups[0]["lr"] = rate
    bits = bits_per_dimension(log_density(fit.flow, dequantised(levels))).mean()
    fit.optimizer.zero_grad()
    bits.backward()
    norm = nn.utils.clip_grad_norm_(fit.flow.parameters(), 1.0)
    if norm.isfinite():
        fit.optimizer.step()
    fit.num_steps += 1
    fit.seconds += clock(device) - began
    return float(bits.detach())


def train(
    fits: Sequence[Fit],
    images: Tensor,
    share_done: Callable[[int], float],
    device: torch.device,
    keep: Callable[[], None],
) -> None:
    """Each flow in turn takes a step, until all is done; each seed's flows see the same batches."""
    seeds = sorted({fit.seed for fit in fits})
    streams = {seed: batches(images, seed) for seed in seeds}
    number = 0
    told = time.monotonic()
    while (share := share_done(number)) < 1:
        now = {seed: next(stream).to(device) for seed, stream in streams.items()}
        bits = [step(fit, now[fit.seed], share) for fit in fits]
        number += 1
        if time.monotonic() - told > 60:
            told = time.monotonic()
            each = ", ".join(f"{fit.name} {fit.seed}: {value:.3f}" for fit, value in zip(fits, bits))
            print(f"  step {number}, {share:.0%} done; {each}", flush=True)
            keep()
    keep()


def by(options: argparse.Namespace) -> Callable[[int], float]:
    """The share of training that is done after so many steps: by seconds if those were given, else by epochs."""
    if options.seconds is not None:
        began = time.monotonic()
        return lambda number: (time.monotonic() - began) / options.seconds
    num_steps = max(1, round(options.epochs * options.images / BATCH))
    return lambda number: number / num_steps


# ---- tests ------------------------------------------------------------------------------------------------------


def log_density(flow: Layer, pixels: Tensor, num_samples: int = 1) -> Tensor:
    """Of pixels in ``[0, 256]^784``, or a bound of it."""
    reals, log_det = to_reals(pixels)
    return FlowDistribution(flow).log_prob(reals, num_samples) + log_det


@torch.no_grad()
def bits_of(flow: Layer, pixels: Tensor, num_samples: int = 1, size: int = TEST_BATCH) -> Tensor:
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
    method, flow = METHODS[fit.name], fit.flow
    torch.manual_seed(1000 + fit.seed)  # the same noise for all methods
    pixels = dequantised(data.test[: options.test].to(options.device))
    bits = bits_of(twin(method, flow, "roulette", TEST_TERMS) if method.is_estimated else flow, pixels)
    epochs = fit.num_steps * BATCH / options.images
    row = Row(
        fit.name,
        fit.seed,
        num_params(flow),
        epochs,
        fit.seconds / max(epochs, 1e-9),
        float(bits.mean()),
        float(bits.std() / len(bits) ** 0.5),
    )
    if method.is_estimated:
        flow, pixels, size = twin(method, flow, "exact"), pixels[: options.exact], EXACT_BATCH
        row.exact_bits = float(bits_of(flow, pixels, 1, size).mean()) if len(pixels) else None
    else:
        size = TEST_BATCH
    if flow.inverse_noise_dim and len(pixels):
        row.iwae = float(bits_of(flow, pixels, options.samples, size).mean())
    return row, bits


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
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, help="of the clock, for all training together; in place of --epochs")
    parser.add_argument("--images", type=int, default=60_000, help="to train on")
    parser.add_argument("--test", type=int, default=10_000, help="test images")
    parser.add_argument("--exact", type=int, default=50, help="of these, with exact determinants and IWAE")
    parser.add_argument("--samples", type=int, default=5, help="of the IWAE bound")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--out", type=Path, default=Path("build/fashion"), help="folder of results")
    return parser.parse_args(argv)


def trained(options: argparse.Namespace, data: Fashion) -> list[Fit]:
    """All flows, those whose states are in the folder as they are there."""
    images = data.train[: options.images]
    fits = [begun(name, seed, images, options.device) for seed in range(options.seeds) for name in options.methods]
    new = [fit for fit in fits if not state_path(options, fit).exists()]
    for fit in fits:
        if fit not in new:
            saved = torch.load(state_path(options, fit), map_location=options.device)
            fit.flow.load_state_dict(saved["flow"])
            fit.num_steps, fit.seconds = saved["num_steps"], saved["seconds"]
    if new:
        torch.manual_seed(0)
        train(new, images, by(options), options.device, partial(kept, options, new))
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
        (options.out / "rows.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print(*compared(bits, options.seeds), sep="\n", flush=True)
    picture(fits, data, options.out / "draws.png")
    return rows


if __name__ == "__main__":
    main()
