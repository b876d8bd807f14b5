r"""What each flow does to the plane: the picture of the page "The flows".

    python -m benchmarks.pictures [--out docs/the_flows.png]

Above, a polar grid of the base (circles at one, two and three standard deviations, and rays, the one to the right in
orange) after some layers; below, 20,000 draws of a standard normal after the same. The layers are random; the seed was
picked by eye.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_nflows.layers import (
    Autoregressive,
    Coupling,
    Elementwise,
    Householder,
    Indexed,
    LULinear,
    Mixture,
    Planar,
    Radial,
    Residual,
    Sylvester,
    TriangularAffine,
)
from pyro_nflows.layers.base import Chain, Inverse, Layer
from pyro_nflows.transformers import Affine, RationalQuadratic, Shift

Make = Callable[[], Layer]


def halves(transformer: Any) -> Layer:
    """Both halves moved in turn, twice."""
    return Chain(*(Coupling(2, transformer, flip=bool(i % 2), hidden_dims=(16,)) for i in range(4)))


#: Title, layers, how far parameters are moved from their start, and a seed.
PANELS: dict[str, tuple[Make, float, int]] = {
    "Planar, 1": (lambda: Planar(2), 2.0, 4),
    "Planar, 6": (lambda: Chain(*(Planar(2) for _ in range(6))), 0.9, 6),
    "Radial, 1": (lambda: Radial(2), 2.0, 5),
    "Radial, 6": (lambda: Chain(*(Radial(2) for _ in range(6))), 2.5, 7),
    "Sylvester, 3": (lambda: Chain(*(Sylvester(2) for _ in range(3))), 1.2, 1),
    "Householder": (lambda: Householder(2), 1.0, 0),
    "TriangularAffine": (lambda: TriangularAffine(2), 0.5, 1),
    "LULinear": (lambda: LULinear(2), 0.6, 3),
    "NICE, 4": (lambda: halves(Shift()), 0.6, 0),
    "RealNVP, 4": (lambda: halves(Affine()), 0.15, 2),
    "Spline coupling, 4": (lambda: halves(RationalQuadratic(6, 4.0)), 0.35, 1),
    "Elementwise": (lambda: Elementwise(2, RationalQuadratic(6, 4.0)), 1.2, 3),
    "IAF, 2": (lambda: Chain(Autoregressive(2), Autoregressive(2, reverse=True)), 0.5, 1),
    "MAF, 2": (lambda: Chain(Inverse(Autoregressive(2)), Inverse(Autoregressive(2, reverse=True))), 0.35, 2),
    "Residual, 6": (lambda: Chain(*(Residual(2, hidden_dims=(16,)) for _ in range(6))), 3.0, 2),
    "Mixture": (lambda: three(), 0.2, 4),
    "CIF, 2": (lambda: Chain(*(Indexed(Coupling(2, flip=bool(i)), 1) for i in range(2))), 0.7, 1),
}


def three() -> Mixture:
    """Three components apart."""
    layer = Mixture(2, 3)
    with torch.no_grad():
        layer.loc.copy_(torch.tensor([[[-2.0, 0.0], [2.0, 0.5], [0.0, 2.5]]]))
        layer.log_scale.sub_(0.7)
    return layer


def moved(make: Make, size: float, seed: int) -> Layer:
    """The layers, away from their start; matrices by less, for their products to be of one size."""
    torch.manual_seed(seed)
    layer = make().double().requires_grad_(False)
    for parameter in layer.parameters():
        columns = parameter.shape[-1] if parameter.dim() > 1 else 1
        parameter.add_(torch.randn_like(parameter), alpha=size / columns**0.5)
    return layer


def grid() -> list[Tensor]:
    """Circles and rays."""
    angle = torch.linspace(0, 2 * math.pi, 400, dtype=torch.float64)
    radius = torch.linspace(0, 3, 200, dtype=torch.float64)[:, None]
    circle = torch.stack([angle.cos(), angle.sin()], -1)
    return [r * circle for r in (1, 2, 3)] + [radius * direction for direction in circle[:-1:25]]


def draw(layer: Layer, title: str, above: Any, below: Any) -> None:
    """A column of two panels; the same noise for each point of the grid."""
    from pyro_nflows.plots.fits import BLUE, GREY, ORANGE

    x, noise = torch.randn(20_000, 2, dtype=torch.float64), torch.randn(20_000, layer.noise_dim, dtype=torch.float64)
    y = layer(x, noise if layer.noise_dim else None)[0]
    for i, line in enumerate(grid()):
        fixed = noise[:1].expand(len(line), -1) if layer.noise_dim else None
        color = BLUE if i < 3 else ORANGE if i == 3 else GREY
        above.plot(*layer(line, fixed)[0].T, color=color, lw=0.6 if color == GREY else 1.0)
    low, high = y.quantile(0.002, 0), y.quantile(0.998, 0)
    center, reach = (low + high) / 2, 0.55 * float((high - low).max())
    limits = [[float(c) - reach, float(c) + reach] for c in center]
    below.hist2d(*y.T, bins=40, range=limits, cmap="Blues", rasterized=True)
    for ax in (above, below):
        ax.set(xlim=limits[0], ylim=limits[1], aspect="equal", xticks=[], yticks=[])
    above.set_title(title, fontsize=9)


def save(figure: Any, file: str) -> None:
    """As a picture of 48 colours, which is a third of the size."""
    from PIL import Image

    figure.canvas.draw()
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
    image.quantize(48, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(file, optimize=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw all panels."""
    import matplotlib.pyplot as plt

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="docs/the_flows.png")
    options = parser.parse_args(argv)
    columns = 6
    rows = -(-len(PANELS) // columns)
    figure, axes = plt.subplots(2 * rows, columns, figsize=(1.6 * columns, 3.3 * rows), layout="constrained", dpi=75)
    for i, (title, panel) in enumerate(PANELS.items()):
        draw(moved(*panel), title, axes[2 * (i // columns), i % columns], axes[2 * (i // columns) + 1, i % columns])
    for ax in axes.flat:
        ax.set_axis_off() if not ax.has_data() else None
    save(figure, options.out)


if __name__ == "__main__":
    main()
