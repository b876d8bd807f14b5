r"""Densities of clips of a moving disc: what the last frames tell of the next one.

    python -m benchmarks.moving [--steps 1500] [--seeds 1] [--frames 3] [--picture FILE]

A disc moves through 16 by 16 pixels, by up to one pixel a frame in each direction, and comes back from the edges.
Every step of training sees new clips, so nothing is overfitted. Nats are of a clip's log density, per pixel; the noise
alone, of standard deviation 0.1, would have 0.884, which no flow can exceed.

The flow of frames that are told of the last ones is compared with Glow for each frame alone, of no fewer parameters.
"""

import argparse
import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pyro_nflows import FlowDistribution, flows
from pyro_nflows.flows import num_params, widened
from pyro_nflows.layers import Positionwise
from pyro_nflows.layers.base import Chain, Layer

SIDE, SIZE, NOISE = 16, 6, 0.1
DIM = SIDE * SIDE
BATCH, NUM_START, NUM_TEST = 32, 300, 500
#: Of the picture: frames that are given, and all of them.
GIVEN, SHOWN = 2, 8


def disc() -> Tensor:
    """A disc with soft edges, ``(6, 6)``."""
    at = torch.arange(SIZE) - (SIZE - 1) / 2
    return (3.2 - (at[:, None].square() + at.square()).sqrt()).clamp(0, 1)


def clips(number: int, num_frames: int) -> Tensor:
    """Clips, ``(N, T 256)``."""
    free = SIDE - SIZE
    start, velocity = torch.randint(free + 1, (number, 2)), torch.randint(-1, 2, (number, 2))
    frames = torch.zeros(number, num_frames, SIDE, SIDE)
    rows, image = torch.arange(number), torch.arange(SIZE)
    for t in range(num_frames):
        at = (start + t * velocity).remainder(2 * free)
        at = torch.where(at > free, 2 * free - at, at)
        down, across = (at[:, i, None] + image for i in (0, 1))
        frames[rows[:, None, None], t, down[:, :, None], across[:, None, :]] = disc()
    return (frames + NOISE * torch.randn_like(frames)).flatten(1)


def told(num_frames: int) -> Layer:
    """Each frame's latents given those of the last two frames."""
    return flows.video((1, SIDE, SIDE), num_frames, 3, 2, (24, 24), num_past=2, prior_dims=(64, 64))


def alone(num_frames: int) -> Layer:
    """Each frame by itself."""

    def build(width: int) -> Layer:
        return Chain(Positionwise(flows.glow_image((1, SIDE, SIDE), 3, 2, (width, width)), num_frames))

    return widened(build, num_params(told(num_frames)))


FLOWS: dict[str, Callable[[int], Layer]] = {"given the last two": told, "each frame alone": alone}


def fit(flow: Layer, num_frames: int, num_steps: int) -> None:
    """Maximum likelihood, the step size falling to zero."""
    flow.initialize(clips(NUM_START, num_frames))
    optimizer = torch.optim.Adam(flow.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, functools.partial(share_of_rate, num_steps=num_steps))
    for i in range(num_steps):
        loss = -FlowDistribution(flow).log_prob(clips(BATCH, num_frames)).mean() / (num_frames * DIM)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (i + 1) % 100 == 0:
            print(f"  step {i + 1}: {-float(loss.detach()):.4f}", flush=True)


def share_of_rate(i: int, num_steps: int) -> float:
    """The step size grows for 30 steps, and falls along a cosine to zero."""
    return min(1.0, (i + 1) / 30) * 0.5 * (1 + math.cos(math.pi * i / num_steps))


def longer(flow: Layer, build: Callable[[int], Layer], num_frames: int) -> Layer:
    """The same flow for clips of another length: no parameter depends on it."""
    other = build(num_frames)
    other.load_state_dict(flow.state_dict())
    return other


@torch.no_grad()
def continued(flow: Layer, given: Tensor) -> Tensor:
    """Clips whose first frames are given, and the others drawn from what follows them."""
    x, _ = flow.inverse(torch.cat([given, given.new_zeros(len(given), flow.output_dim - given.shape[-1])], -1))
    x[:, given.shape[-1] :] = torch.randn_like(x[:, given.shape[-1] :])
    return flow(x)[0]


def picture(flow: Layer, path: Path) -> None:
    """Two clips, three continuations of each one's first frames, and two draws."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    torch.manual_seed(5)
    long = longer(flow, told, SHOWN)
    strips: list[tuple[str, Tensor]] = []
    for clip in clips(2, SHOWN):
        strips.append(("a clip", clip))
        strips += [("continued", row) for row in continued(long, clip[: GIVEN * DIM].expand(2, -1))]
    strips += [("drawn", row) for row in FlowDistribution(long).sample(torch.Size([2]))]
    fig, axes = pyplot.subplots(len(strips), 1, figsize=(8, 1.05 * len(strips)), layout="constrained")
    for axis, (name, strip) in zip(axes, strips):
        frames = torch.nn.functional.pad(strip.view(SHOWN, SIDE, SIDE), (0, 1), value=1.0)
        axis.imshow(frames.movedim(0, 1).flatten(1).numpy(), cmap="gray", vmin=-0.2, vmax=1.1)
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        if name == "continued":
            axis.axvline(GIVEN * (SIDE + 1) - 1, color="tab:orange", lw=2)
    fig.savefig(path, dpi=100)
    pyplot.close(fig)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--picture", type=Path, help="draw clips of the first seed")
    options = parser.parse_args(argv)
    print(f"{'flow':<20}{'seed':>5}{'params':>8}{'nats':>9}{'s.e.':>8}{'seconds':>9}", flush=True)
    for seed in range(options.seeds):
        values = []
        for name, build in FLOWS.items():
            torch.manual_seed(seed)
            flow, began = build(options.frames), time.process_time()
            fit(flow, options.frames, options.steps)
            seconds = time.process_time() - began
            torch.manual_seed(1000 + seed)
            with torch.no_grad():
                log_prob = FlowDistribution(flow).log_prob(clips(NUM_TEST, options.frames))
            values.append(log_prob / (options.frames * DIM))
            row = (name, seed, num_params(flow), values[-1].mean(), values[-1].std() / NUM_TEST**0.5, seconds)
            print("{:<20}{:>5}{:>8}{:>9.4f}{:>8.4f}{:>9.0f}".format(*row), flush=True)
            if options.picture and build is told and seed == 0:
                picture(flow, options.picture)
        gap = (values[0] - values[1]) * DIM
        print(
            f"The last frames are worth {gap.mean():.1f} (s.e. {gap.std() / NUM_TEST**0.5:.1f}) nats a frame",
            flush=True,
        )


if __name__ == "__main__":
    main()
