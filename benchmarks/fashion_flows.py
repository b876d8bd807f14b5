"""The flows of the benchmark of 28 by 28 images, in pairs of equal numbers of parameters.

All end with a mean and a deviation for each pixel (on the logit scale), which start from the images.
"""

import bisect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

from torch import nn

from benchmarks.fashion_data import DIM, SHAPE
from pyro_nflows import flows
from pyro_nflows.flows import num_params
from pyro_nflows.layers import ActNorm
from pyro_nflows.layers.base import Chain, Exactness, Layer

#: Terms of a log-determinant's series that are always taken, in training and in tests.
TRAIN_TERMS, TEST_TERMS = 2, 10
#: No network is wider.
WIDEST = 1024
#: A flow of images: their shape, and the networks' channels.
Build = Callable[[tuple[int, int, int], int], Layer]


@dataclass(frozen=True)
class Size:
    """How large the flows are.

    :param contractions: residual layers of each of two levels, 14 x 14 and 7 x 7.
    :param steps: of Glow, of each level.
    :param width: channels of the indexed flows' hidden layers.
    :param index_widths: channels of the networks of their indices, of the residual flow's and of Glow's.
    :param tarflow: layers, width, blocks and heads of the transformers, and the side of a patch.
    :param rate: step sizes in units of the small flows'.
    """

    contractions: int
    steps: int
    width: int
    index_widths: tuple[int, int]
    tarflow: tuple[int, int, int, int, int]
    rate: float = 1.0


#: For two cores; and for a GPU, whose indexed residual flow has the published one's 12 convolutional layers of 128
#: channels. With the indices' widths, those of the baselines are multiples of 8, as a GPU wants them.
SIZES = {
    "small": Size(3, 3, 24, (12, 12), (4, 48, 2, 4, 4)),
    "large": Size(6, 8, 128, (36, 32), (8, 192, 3, 6, 4), rate=0.5),
}


@dataclass
class Method:
    """How a flow is made, and trained.

    :param build: makes it; of residual layers, by ``log_det`` and ``num_terms``.
    :param rate: Adam's step size at its largest.
    """

    build: Callable[..., Layer]
    rate: float

    @cached_property
    def is_estimated(self) -> bool:
        """Whether log-determinants are right on average only."""
        return self.build().exactness is Exactness.UNBIASED


def behind_pixels(flow: Layer) -> Layer:
    """Before each pixel's mean and deviation."""
    return Chain(*(flow if isinstance(flow, Chain) else [flow]), ActNorm(DIM))


def contractions(
    shape: tuple[int, int, int],
    width: int,
    log_det: str = "roulette",
    num_terms: int = TRAIN_TERMS,
    num_layers: int = SIZES["small"].contractions,
) -> Chain:
    """Convolutional residual layers, 3 x 3, 1 x 1 and 3 x 3, whose density is one pass."""
    widths = (width, width)
    return flows.residual_image(shape, 2, num_layers, widths, 0.97, log_det, num_terms=num_terms, inverted=True)


def steps(shape: tuple[int, int, int], width: int, num_layers: int) -> Chain:
    """Glow, of two levels."""
    return flows.glow_image(shape, 2, num_layers, (width, width))


def indexed(build: Build, width: int, index_width: int) -> Layer:
    """The flow with an index of one channel in each layer."""
    return behind_pixels(flows.cif_image(SHAPE, partial(build, width=width), 1, (index_width,)))


class Matched:
    """As many layers as the indexed flow has, as wide as gives no fewer parameters."""

    def __init__(self, build: Callable[..., Layer], width: int, index_width: int):
        self.plain, self.indexed = build, partial(indexed, build, width, index_width)

    @cached_property
    def width(self) -> int:
        """By bisection: parameters grow with the width."""
        widths = range(1, WIDEST)
        wanted = num_params(self.indexed())
        return widths[bisect.bisect_left(widths, wanted, key=lambda width: num_params(self.of_width(width)))]

    def of_width(self, width: int, *args: object) -> Layer:
        """The flow, with other arguments of it."""
        return behind_pixels(self.plain(SHAPE, width, *args))

    def __call__(self, *args: object) -> Layer:
        return self.of_width(self.width, *args)


def residual_methods(size: Size) -> dict[str, Callable[..., Layer]]:
    """The residual flow and the indexed one; both take ``log_det`` and ``num_terms``."""
    widths = (size.width, size.index_widths[0])

    def build(
        shape: tuple[int, int, int], width: int, log_det: str = "roulette", num_terms: int = TRAIN_TERMS
    ) -> Layer:
        return contractions(shape, width, log_det, num_terms, size.contractions)

    def with_index(log_det: str = "roulette", num_terms: int = TRAIN_TERMS) -> Layer:
        return indexed(partial(build, log_det=log_det, num_terms=num_terms), *widths)

    return {"ResFlow": Matched(build, *widths), "CIF-ResFlow": with_index}


def glow_methods(size: Size) -> dict[str, Callable[..., Layer]]:
    """Glow and the indexed one."""
    build, widths = partial(steps, num_layers=size.steps), (size.width, size.index_widths[1])
    return {"Glow": Matched(build, *widths), "CIF-Glow": partial(indexed, build, *widths)}


def convolutional() -> Layer:
    """An ordinary convolutional network, by :func:`~pyro_nflows.flows.flowify`: 28, 14, 7, 4, 2 pixels a side.

    Its weights start orthogonal, without small singular values.
    """
    sizes = [(1, 4, 0), (4, 16, 0), (16, 48, 1), (48, 96, 0)]
    layers: list[nn.Module] = []
    for a, b, padding in sizes:
        convolution = nn.Conv2d(a, b, 2, 2, padding)
        nn.init.orthogonal_(convolution.weight)
        layers += [convolution, nn.PReLU(b)]
    return behind_pixels(flows.flowify(nn.Sequential(*layers[:-1]), SHAPE, hidden_dims=(32,), smoothness=1.0))


def patches(size: Size) -> Layer:
    """Transformers over patches, 49 of 4 by 4 pixels for two cores, in both directions in turn."""
    *sizes, patch = size.tarflow
    return behind_pixels(flows.tarflow(SHAPE, *sizes, patch=patch, inverted=True))


def methods(name: str) -> dict[str, Method]:
    """The flows of a size, ``"small"`` or ``"large"``."""
    size = SIZES[name]
    builds: dict[str, Callable[..., Layer]] = {
        **residual_methods(size),
        **glow_methods(size),
        "flowified convnet": convolutional,
        "TarFlow": partial(patches, size),
    }
    return {key: Method(build, size.rate * RATES[key]) for key, build in builds.items()}


#: Adam's step sizes of the small flows.
RATES = {
    "ResFlow": 3e-3,
    "CIF-ResFlow": 3e-3,
    "Glow": 2e-3,
    "CIF-Glow": 2e-3,
    "flowified convnet": 2e-3,
    "TarFlow": 1e-3,
}
METHODS = methods("small")
#: A continuously indexed flow and its baseline.
PAIRS = (("CIF-ResFlow", "ResFlow"), ("CIF-Glow", "Glow"))
