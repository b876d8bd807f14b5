"""The flows of the benchmark of 28 by 28 images, in pairs of equal numbers of parameters.

All end with a mean and a deviation for each pixel (on the logit scale), which start from the images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from benchmarks.fashion_data import DIM, SHAPE
from pyro_nflows import flows
from pyro_nflows.flows import num_params, widened
from pyro_nflows.layers import ActNorm
from pyro_nflows.layers.base import Chain, Exactness, Layer

#: Residual layers, or steps of Glow, of each of two levels, 14 x 14 and 7 x 7.
NUM_LAYERS = 3
WIDTH, INDEX_WIDTH = 24, 12
#: Terms of a log-determinant's series that are always taken, in training and in tests.
TRAIN_TERMS, TEST_TERMS = 2, 10


@dataclass
class Method:
    """How a flow is made, and trained.

    :param build: makes it; of residual layers, by ``log_det`` and ``num_terms``.
    :param rate: Adam's step size at its largest.
    """

    build: Callable[..., Layer]
    rate: float

    @property
    def is_estimated(self) -> bool:
        """Whether log-determinants are right on average only."""
        return self.build().exactness is Exactness.UNBIASED


def behind_pixels(flow: Layer) -> Layer:
    """Before each pixel's mean and deviation."""
    return Chain(*(flow if isinstance(flow, Chain) else [flow]), ActNorm(DIM))


def contractions(
    shape: tuple[int, int, int], width: int, log_det: str = "roulette", num_terms: int = TRAIN_TERMS
) -> Chain:
    """Convolutional residual layers, 3 x 3, 1 x 1 and 3 x 3, whose density is one pass."""
    widths = (width, width)
    return flows.residual_image(shape, 2, NUM_LAYERS, widths, 0.97, log_det, num_terms=num_terms, inverted=True)


def steps(shape: tuple[int, int, int], width: int) -> Chain:
    """Glow, of two levels."""
    return flows.glow_image(shape, 2, NUM_LAYERS, (width, width))


def indexed(inner: Callable[[tuple[int, int, int]], Layer]) -> Layer:
    """The flow with an index of one channel in each layer."""
    return behind_pixels(flows.cif_image(SHAPE, inner, 1, (INDEX_WIDTH,)))


def indexed_residual(log_det: str = "roulette", num_terms: int = TRAIN_TERMS) -> Layer:
    """The residual flow, indexed."""
    return indexed(partial(contractions, width=WIDTH, log_det=log_det, num_terms=num_terms))


def residual(log_det: str = "roulette", num_terms: int = TRAIN_TERMS) -> Layer:
    """As many residual layers, as wide as gives no fewer parameters."""
    return widened(
        lambda width: behind_pixels(contractions(SHAPE, width, log_det, num_terms)), num_params(indexed_residual())
    )


def indexed_glow() -> Layer:
    """Glow, indexed."""
    return indexed(partial(steps, width=WIDTH))


def glow() -> Layer:
    """As many steps, as wide as gives no fewer parameters."""
    return widened(lambda width: behind_pixels(steps(SHAPE, width)), num_params(indexed_glow()))


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


def patches() -> Layer:
    """Transformers over 49 patches of 4 by 4 pixels, in both directions in turn."""
    return behind_pixels(flows.tarflow(SHAPE, 4, 48, 2, 4, patch=4, inverted=True))


METHODS: dict[str, Method] = {
    "ResFlow": Method(residual, 3e-3),
    "CIF-ResFlow": Method(indexed_residual, 3e-3),
    "Glow": Method(glow, 2e-3),
    "CIF-Glow": Method(indexed_glow, 2e-3),
    "flowified convnet": Method(convolutional, 2e-3),
    "TarFlow": Method(patches, 1e-3),
}
#: A continuously indexed flow and its baseline.
PAIRS = (("CIF-ResFlow", "ResFlow"), ("CIF-Glow", "Glow"))
