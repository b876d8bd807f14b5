"""A Gaussian with a sparse precision, to start from and to climb in the coordinates of."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.density_gradient import DensityGradient
from ..layers import SparseAffine
from ..triangles import log_scale_and_lower
from .layer_gaussian import LayerGaussian
from .sparse_curvature import Nodes, SparseCurvature, moments


@dataclass(frozen=True)
class SparseGaussian(LayerGaussian):
    """A Gaussian in which latents depend on those that its precision ties them to.

    :param end: the layer.
    :param curvature: reads and factors a Hessian of its pattern; made unless it is given.
    """

    end: SparseAffine
    curvature: SparseCurvature | None = None

    @property
    def known(self) -> SparseCurvature:
        """Its curvature."""
        return self.curvature or SparseCurvature(self.end.elimination)

    def around(self, point: Tensor, width: float) -> "SparseGaussian":
        """One of the same form, of equal widths."""
        return SparseGaussian(SparseAffine(self.end.elimination, point, width).to(point), self.curvature)

    def laplace(self, density: DensityGradient, point: Tensor) -> "SparseGaussian":
        """That of the curvature at a point; typical widths along directions that are not convex; or else this one."""
        known = self.known
        products = density.products(point, known.probes().to(point)).double().cpu()
        if not torch.isfinite(products).all():
            return self
        return self._of(point, known, known.factors(known.read(-products)))

    def through(self, z: Tensor) -> "SparseGaussian":
        """One of the moments of draws ``(N, D)``: each latent is regressed on those that it depends on."""
        return self._of(z.mean(0), self.known, moments(self.end.elimination, z))

    def _of(self, point: Tensor, known: SparseCurvature, nodes: Nodes) -> "SparseGaussian":
        new = SparseGaussian(self.around(point, 1.0).end, known)
        put_nodes(new.end, nodes)
        finite = all(bool(torch.isfinite(parameter).all()) for parameter in new.end.parameters())
        return new if finite else self


@torch.no_grad()
def put_nodes(end: SparseAffine, nodes: Nodes) -> None:
    """Set the scales and matrices of a layer.

    :param nodes: for each group, lower factors of its nodes, and how they depend on what is above them.
    """
    scale = torch.ones(end.input_dim + 1, dtype=torch.double)
    for number, (group, (root, slope)) in enumerate(zip(end.elimination.groups, nodes)):
        log_scale, lower = log_scale_and_lower(root)
        scale[group.columns] = log_scale.exp()
        scale[-1] = 1.0
        if str(number) in end.within:
            end.within[str(number)].copy_(lower)
        if str(number) in end.above:
            turned = slope * scale[group.above][:, None] / scale[group.columns][..., None]
            pads = (group.columns == end.input_dim)[..., None] | (group.above == end.input_dim)[:, None]
            end.above[str(number)].copy_(turned.masked_fill(pads, 0.0))
    end.log_scale.copy_(scale[:-1].log())
