r"""Residual layers for training on a GPU: log-determinants of shapes that do not change, and bounds made all together.

Russian roulette takes another number of terms for each image, and the longest series sets how many a step computes.
Here the images of a batch share the lengths out among themselves. Term :math:`n + j` of the series is computed for the
first :math:`m_j` of ``B`` images only, and weighs :math:`B / m_j` there,

.. math:: m_j = \max(8, \lfloor B / 2^{j - 1} \rfloor), \qquad j = 1, \ldots, J,

as many as roulette of probability 1/2 gives on average: a sum over a batch in random order is right on average, as if
every series had :math:`n + J` terms. No image's own log-determinant is; so this serves training alone. A step does the
work of about ``n + 2`` terms, its kernels are the same in each step, and its length is drawn by nobody.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from pyro_nflows.layers import Residual
from pyro_nflows.layers.base import Layer
from pyro_nflows.nets.conv_contraction import ConvContraction, LinearizedImage, convolution_bound

#: Terms beyond those always taken, and the fewest images that have one.
MOST_EXTRA, FEWEST = 10, 8


class InStrata(Residual):
    """A convolutional residual layer in training; see the module.

    ``kernels`` are those of its network, bounded, as :class:`Bounds` gives them before each step.
    """

    net: ConvContraction
    kernels: list[Tensor]

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        at = self.net.linearized(x, self.kernels)
        probe = 1 - 2 * (cast(Tensor, noise)[:, : self.input_dim] < 0).to(x)
        with torch.no_grad():
            value, neumann = self._shared_out(at, probe)
        slope = (at.pull(neumann) * probe).sum(-1)
        return x + at.value, value + slope - slope.detach()

    def _shared_out(self, at: LinearizedImage, probe: Tensor) -> tuple[Tensor, Tensor]:
        """The log-determinant's series, and the Neumann series times the probe."""
        size = len(probe)
        power, value, neumann = probe, torch.zeros_like(probe[:, 0]), torch.zeros_like(probe)
        for k in range(1, self.num_terms + MOST_EXTRA + 1):
            late = max(0, k - self.num_terms)
            num = min(size, max(FEWEST, size >> max(0, late - 1)))
            sign = (-1) ** (k + 1) * size / num
            if num < len(power):
                power, probe = power[:num], probe[:num]
                at = at._replace(slopes=[slope[:num] for slope in at.slopes])
            neumann[:num] += sign * power
            power = at.pull(power)
            value[:num] += sign / k * (power * probe).sum(-1)
        return value, neumann


class Bounds:
    """The bounded kernels of all convolutional residual layers, those of one shape in one go."""

    def __init__(self, layers: Sequence[InStrata]):
        self.layers = layers
        groups: dict[tuple[object, ...], list[tuple[InStrata, int]]] = {}
        for layer in layers:
            for number, convolution in enumerate(layer.net.hidden):
                shape = tuple(convolution.weight.shape)  # type: ignore[union-attr, operator]
                at = layer.net.shape[1:] if shape[-1] > 1 else ()  # a 1 x 1 kernel's does not depend on the image
                groups.setdefault((shape, at, layer.net.share), []).append((layer, number))
        self.groups = list(groups.values())

    def renew(self) -> None:
        """After the parameters have changed."""
        for layer in self.layers:
            layer.kernels = [torch.empty(0)] * len(layer.net.hidden)
        for group in self.groups:
            net = group[0][0].net
            raw = torch.stack([layer.net.hidden[i].weight for layer, i in group])  # type: ignore[misc]
            bound = torch.vmap(partial(convolution_bound, size=net.shape[1:]))(raw)
            scaled = raw * (net.share / bound.clamp(min=net.share))[:, None, None, None, None]
            for (layer, i), kernel in zip(group, scaled.unbind()):
                layer.kernels[i] = kernel


@contextmanager
def in_strata(flow: Layer) -> Iterator[Bounds]:
    """Within, the residual layers of the flow are such; parameters are the same ones."""
    layers = [part for part in flow.modules() if type(part) is Residual and isinstance(part.net, ConvContraction)]
    for layer in layers:
        layer.__class__ = InStrata
    try:
        yield Bounds([layer for layer in layers if isinstance(layer, InStrata)])
    finally:
        for layer in layers:
            layer.__class__ = Residual
            nn.Module.__delattr__(layer, "kernels")
