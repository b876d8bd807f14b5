r"""A flow that becomes a posterior: the moving picture of the front page, and the still one of the documentation.

    python -m benchmarks.becoming [--out docs]

``becoming.gif`` and ``becoming.png`` show draws of an ``AutoFlow`` in the course of a fit by ``SVI``, from the same
points of its base, over contours of the exact posterior that hold 50, 80 and 95% of its mass: the asymptote and the
rate of an exponential curve given six measurements of biochemical oxygen demand (Bates and Watts, 1988), the standard
deviation of a measurement taken to be 2.5.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from torch import Tensor

from pyro_nflows import ELBO, AutoFlow

DAY = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 7.0])
DEMAND = torch.tensor([8.3, 10.3, 19.0, 16.0, 15.6, 19.8])
NUM_STEPS = 600
#: The steps at which a frame is drawn, closer together at first, and those of the still picture.
FRAMES = sorted({round(NUM_STEPS * (i / 39) ** 2.5) for i in range(40)})
STILLS = (0, 12, 25, 100, NUM_STEPS)
NUM_DRAWS = 1500
LIMITS = (8.0, 38.0, -2.4, 1.4)


def demand(day: Tensor, measured: Tensor) -> None:
    """Oxygen that is used up, and comes close to an asymptote."""
    asymptote = pyro.sample("asymptote", dist.LogNormal(3.0, 1.0))
    rate = pyro.sample("rate", dist.LogNormal(-1.0, 1.5))
    with pyro.plate("measurement", len(day)):
        pyro.sample("demand", dist.Normal(asymptote * (1 - torch.exp(-rate * day)), 2.5), obs=measured)


def exact(num: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    """The posterior of the asymptote and the log rate on a grid, up to a constant."""
    asymptote = torch.linspace(LIMITS[0], LIMITS[1], num)
    log_rate = torch.linspace(LIMITS[2], LIMITS[3], num)
    a, r = torch.meshgrid(asymptote, log_rate, indexing="xy")
    curve = a[..., None] * (1 - torch.exp(-r.exp()[..., None] * DAY))
    log_prob = dist.Normal(curve, 2.5).log_prob(DEMAND).sum(-1)
    log_prob = log_prob + dist.LogNormal(3.0, 1.0).log_prob(a) + dist.Normal(-1.0, 1.5).log_prob(r)
    return asymptote, log_rate, (log_prob - log_prob.max()).exp()


def course(steps: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """Asymptotes and log rates drawn after so many steps of a fit."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoFlow(demand)
    guide(DAY, DEMAND)
    svi = SVI(demand, guide, guide.optimizer(lr=0.02, num_steps=NUM_STEPS), loss=ELBO(num_particles=32))
    for step in range(NUM_STEPS + 1):
        if step in steps:
            with torch.no_grad(), torch.random.fork_rng():
                torch.manual_seed(1)
                draws = guide.constrain(guide.get_posterior().sample((NUM_DRAWS,)))
            yield step, torch.stack([draws["asymptote"], draws["rate"].log()], -1)
        svi.step(DAY, DEMAND)


def levels(density: Tensor) -> list[float]:
    """The heights whose contours hold 95, 80 and 50% of the mass."""
    heights = density.flatten().sort(descending=True)[0]
    share = heights.cumsum(0) / heights.sum()
    return [float(heights[(share < mass).sum()]) for mass in (0.95, 0.8, 0.5)]


def draw(ax: Any, step: int, z: Tensor) -> None:
    """One frame."""
    from pyro_nflows.plots.fits import BLUE, ORANGE

    a, r, density = exact()
    ax.plot(*z.T.numpy(), ".", color=BLUE, ms=2.5, mec="none", alpha=0.6)
    ax.contour(a, r, density, levels(density), colors=ORANGE, linewidths=1.2)
    ticks = (0.1, 0.3, 1, 3)
    ax.set(xlim=LIMITS[:2], ylim=LIMITS[2:], xlabel="asymptote", title=f"step {step}")
    ax.set_yticks([math.log(tick) for tick in ticks], map(str, ticks))
    ax.spines[["top", "right"]].set_visible(False)


def becoming(out: Path) -> None:
    """The moving picture and the still one."""
    import matplotlib.pyplot as plt
    from PIL import Image

    frames = dict(course({*FRAMES, *STILLS}))
    images = []
    for step in FRAMES:
        figure, ax = plt.subplots(figsize=(4.2, 3.6), layout="constrained", dpi=100)
        draw(ax, step, frames[step])
        ax.set(ylabel="rate, per day", title=f"step {step} of {NUM_STEPS}")
        figure.canvas.draw()
        images.append(Image.fromarray(_pixels(figure)).quantize(32, dither=Image.Dither.NONE))
        plt.close(figure)
    times = [700, *[110] * (len(images) - 2), 2500]
    images[0].save(out / "becoming.gif", save_all=True, append_images=images[1:], duration=times, loop=0, optimize=True)
    figure, axes = plt.subplots(1, len(STILLS), figsize=(11, 2.7), layout="constrained", sharey=True, dpi=100)
    for ax, step in zip(axes, STILLS):
        draw(ax, step, frames[step])
    axes[0].set_ylabel("rate, per day")
    Image.fromarray(_pixels(figure)).quantize(64, dither=Image.Dither.NONE).save(out / "becoming.png", optimize=True)
    plt.close(figure)


def _pixels(figure: Any) -> Any:
    import numpy as np

    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def main(argv: Sequence[str] | None = None) -> None:
    """Draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="the folder")
    torch.set_num_threads(1)
    becoming(parser.parse_args(argv).out)


if __name__ == "__main__":
    main()
