r"""A guide's flow over some rows of a plate, each of which stands for several: its density in the bound of all rows."""

from collections.abc import Iterator

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
    :param factor: :math:`s`.

    Example::

        >>> from pyro_nflows.flows import on_plates
        >>> from pyro_nflows.model.hierarchy import Hierarchy, Outline
        >>> rows = Hierarchy.of_outlines({"mu": Outline((), {}), "z": Outline((3,), {"groups": 0})})
        >>> layer = Upweighted(Whitened(on_plates(rows), PlateAffine(rows)), factor=10.0)
        >>> log_q = torch.distributions.Normal(0.0, 1.0).log_prob(torch.ones(4))
        >>> (log_q.sum() - layer(torch.ones(4))[1]).isclose(log_q[0] + 10 * log_q[1:].sum())
        tensor(True)
    """

    def __init__(self, layer: Whitened | Chain, factor: float):
        super().__init__(layer.input_dim)
        self.layer, self.factor = layer, factor
        self.exactness = layer.exactness
        self.noise_dim = layer.noise_dim
        (end,) = (part for part in stages(layer) if isinstance(part, PlateAffine))
        self.num_top = len(end.hierarchy.top)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = (1 - self.factor) * standard_normal_log_prob(x[..., self.num_top :])
        for stage in stages(self.layer):
            x, log_weight = stage(x, noise if stage.noise_dim else None)
            total = total + self._counted(stage, log_weight)
        return x, total

    def _counted(self, stage: Layer, log_weight: Tensor) -> Tensor:
        """A part's log-weight, that of rows as often as it counts."""
        if isinstance(stage, PlateAffine):
            return self.factor * log_weight - (self.factor - 1) * stage.log_scale[stage.hierarchy.top].sum()
        return self.factor * log_weight if isinstance(stage, PlateCoupling | PlateFlow | PlateShear) else log_weight

    def scored(self, x: Tensor, noise: Tensor | None, score: Tensor, reverse: Tensor) -> Scored:
        total = (1 - self.factor) * standard_normal_log_prob(x[..., self.num_top :])
        outside = torch.zeros_like(x[..., : self.num_top])
        score = score - (self.factor - 1) * torch.cat([outside, x[..., self.num_top :].detach()], -1)
        sums: list[Tensor | float] = [total, 0.0, 0.0, 0.0]
        parts: list[Tensor | float]
        for stage in stages(self.layer):
            if isinstance(stage, PlateAffine | PlateCoupling | PlateFlow | PlateShear):
                y, log_weight = stage(x)
                with torch.no_grad():
                    score = stage.transport(x.detach(), y.detach(), score, self.factor).detach()
                x, parts = y, [self._counted(stage, log_weight), 0.0, 0.0, 0.0]
            else:
                step = stage.scored(x, noise if stage.noise_dim else None, score, reverse)
                x, score, reverse, parts = step.y, step.score, step.reverse, [step.log_weight, *step[4:]]
            sums = [a + b for a, b in zip(sums, parts)]
        return Scored(x, sums[0], score, reverse, *sums[1:])  # type: ignore[arg-type]


def stages(layer: Layer) -> Iterator[Layer]:
    """The parts of nested chains, one after the other."""
    if isinstance(layer, Chain):
        for part in layer:
            yield from stages(part)
    else:
        yield layer
