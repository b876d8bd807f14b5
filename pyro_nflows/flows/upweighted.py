r"""A guide's flow over some rows of a plate, each of which stands for several: its density in the bound of all rows."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..layers import PlateAffine, PlateCoupling, PlateFlow, PlateShear
from ..layers.base import Chain, Layer, Scored
from ..numerics import standard_normal_log_prob
from .whitened import Whitened


class Upweighted(Layer):
    r"""The flow of what is outside of plates and of some rows, with the density that the bound of all rows has in it.

    .. math:: \log \tilde q(g, z) = \log q(g) + s \sum_{i \in \mathrm{rows}} \log q(z_i | g)

    is no density of these rows, but its mean over random rows is :math:`\log q` of all, if each stands for :math:`s` of
    them. So a gradient of :math:`\log \tilde p - \log \tilde q` is, in mean, that of the ELBO of all rows.

    :param layer: over the rows; its parameters are shared.
    :param factor: :math:`s`; or one for each block of rows, where these are in different plates.

    Example::

        >>> from pyro_nflows.flows import on_plates
        >>> from pyro_nflows.model.hierarchy import Hierarchy, Outline
        >>> rows = Hierarchy.of_outlines({"mu": Outline((), {}), "z": Outline((3,), {"groups": 0})})
        >>> layer = Upweighted(Whitened(on_plates(rows), PlateAffine(rows)), factor=10.0)
        >>> log_q = torch.distributions.Normal(0.0, 1.0).log_prob(torch.ones(4))
        >>> (log_q.sum() - layer(torch.ones(4))[1]).isclose(log_q[0] + 10 * log_q[1:].sum())
        tensor(True)
    """

    def __init__(self, layer: Whitened | Chain, factor: float | Sequence[float]):
        super().__init__(layer.input_dim)
        self.layer, self.factor = layer, factor
        self.exactness = layer.exactness
        self.noise_dim = layer.noise_dim
        (end,) = (part for part in stages(layer) if isinstance(part, PlateAffine))
        self.num_top, *self.sizes = end.hierarchy.sizes()

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = self._base(x)
        for stage in stages(self.layer):
            if isinstance(stage, PlateAffine | PlateCoupling | PlateFlow | PlateShear):
                x, log_weight = self._moved(stage, x)
            else:
                x, log_weight = stage(x, noise if stage.noise_dim else None)
            total = total + log_weight
        return x, total

    def _base(self, x: Tensor) -> Tensor:
        """What the density of the base is to be less, where rows count more than once."""
        if isinstance(self.factor, float | int):
            return (1 - self.factor) * standard_normal_log_prob(x[..., self.num_top :])
        parts = zip(self.factor, x[..., self.num_top :].split(self.sizes, -1))
        return torch.stack([(1 - factor) * standard_normal_log_prob(part) for factor, part in parts]).sum(0)

    def _moved(self, stage: Layer, x: Tensor) -> tuple[Tensor, Tensor]:
        """A part that moves rows: the image, and its log-weight, that of rows as often as they count."""
        if isinstance(self.factor, float | int):
            y, log_weight = stage(x)
            once = stage.log_scale[stage.hierarchy.top].sum() if isinstance(stage, PlateAffine) else 0.0
            return y, self.factor * log_weight - (self.factor - 1) * once
        y, rows = stage.by_row(x)  # type: ignore[operator]
        total = torch.stack([factor * part.sum(-1) for factor, part in zip(self.factor, rows)]).sum(0)
        if isinstance(stage, PlateAffine):
            total = total + stage.log_scale[stage.hierarchy.top].sum()
        return y, total

    def scored(self, x: Tensor, noise: Tensor | None, score: Tensor, reverse: Tensor) -> Scored:
        outside, rows = x.detach().split([self.num_top, sum(self.sizes)], -1)
        score = score - torch.cat([torch.zeros_like(outside), self._less_one(rows)], -1)
        sums: list[Tensor | float] = [self._base(x), 0.0, 0.0, 0.0]
        parts: list[Tensor | float]
        for stage in stages(self.layer):
            if isinstance(stage, PlateAffine | PlateCoupling | PlateFlow | PlateShear):
                y, log_weight = self._moved(stage, x)
                with torch.no_grad():
                    score = stage.transport(x.detach(), y.detach(), score, self.factor).detach()
                x, parts = y, [log_weight, 0.0, 0.0, 0.0]
            else:
                step = stage.scored(x, noise if stage.noise_dim else None, score, reverse)
                x, score, reverse, parts = step.y, step.score, step.reverse, [step.log_weight, *step[4:]]
            sums = [a + b for a, b in zip(sums, parts)]
        return Scored(x, sums[0], score, reverse, *sums[1:])  # type: ignore[arg-type]

    def _less_one(self, rows: Tensor) -> Tensor:
        """Rows, each as many times as it counts more than once."""
        if isinstance(self.factor, float | int):
            return (self.factor - 1) * rows
        return torch.cat([(factor - 1) * part for factor, part in zip(self.factor, rows.split(self.sizes, -1))], -1)


def stages(layer: Layer) -> Iterator[Layer]:
    """The parts of nested chains, one after the other."""
    if isinstance(layer, Chain):
        for part in layer:
            yield from stages(part)
    else:
        yield layer
