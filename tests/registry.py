"""Every layer of the package, by name: one line each, and every law is tested on it (``test_laws.py``)."""

from collections.abc import Callable

import pyro.distributions.transforms as pyro_transforms
import torch
from torch.distributions import transforms as torch_transforms

from pyro_nflows import recipes
from pyro_nflows.bridge import TransformLayer, as_layer
from pyro_nflows.layer import Chain, Inverse, Layer
from pyro_nflows.layers import (
    Autoregressive,
    Conditional,
    Coupling,
    Elementwise,
    Indexed,
    LocScale,
    Mixture,
    Permutation,
    Planar,
    Radial,
    TriangularAffine,
)
from pyro_nflows.transformers import Affine, RationalQuadratic, Shift

#: A random context, the same for all layers.
CONTEXT = torch.randn(2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

#: Layers that start at the identity.
AT_IDENTITY: dict[str, Callable[[], Layer]] = {
    "Planar(1)": lambda: Planar(1),
    "Planar(3)": lambda: Planar(3),
    "Radial(1)": lambda: Radial(1),
    "Radial(3)": lambda: Radial(3),
    "LocScale(1)": lambda: LocScale(1),
    "LocScale(3)": lambda: LocScale(3),
    "TriangularAffine(1)": lambda: TriangularAffine(1),
    "TriangularAffine(3)": lambda: TriangularAffine(3),
    "Coupling(1)": lambda: Coupling(1),
    "Coupling(2)": lambda: Coupling(2),
    "Coupling(3, flip)": lambda: Coupling(3, flip=True),
    "Coupling(1, flip)": lambda: Coupling(1, flip=True),
    "Coupling(3, no hidden layers)": lambda: Coupling(3, hidden_dims=()),
    "Coupling(3, Shift)": lambda: Coupling(3, Shift()),
    "Coupling(3, Affine(0.5))": lambda: Coupling(3, Affine(0.5)),
    "Coupling(1, RationalQuadratic)": lambda: Coupling(1, RationalQuadratic()),
    "Coupling(3, RationalQuadratic)": lambda: Coupling(3, RationalQuadratic(4, 3.0)),
    "Autoregressive(1)": lambda: Autoregressive(1),
    "Autoregressive(2)": lambda: Autoregressive(2),
    "Autoregressive(3, reverse)": lambda: Autoregressive(3, reverse=True),
    "Autoregressive(3, no hidden layers)": lambda: Autoregressive(3, hidden_dims=()),
    "Autoregressive(3, Shift)": lambda: Autoregressive(3, Shift()),
    "Autoregressive(3, RationalQuadratic)": lambda: Autoregressive(3, RationalQuadratic(4, 3.0)),
    "Inverse(Planar)": lambda: Inverse(Planar(2)),
    "Inverse(Radial)": lambda: Inverse(Radial(2)),
    "Inverse(Autoregressive)": lambda: Inverse(Autoregressive(3)),
    "Inverse(Inverse(Coupling))": lambda: Inverse(Inverse(Coupling(2))),
    "Inverse(Chain)": lambda: Inverse(Chain(Radial(2), LocScale(2))),
    "Inverse(Indexed)": lambda: Inverse(Indexed(Coupling(2))),
    "Chain(Planar)": lambda: Chain(Planar(2)),
    "Chain(Chain, Inverse)": lambda: Chain(
        Chain(Radial(2), Coupling(2)), Inverse(Autoregressive(2)), TriangularAffine(2)
    ),
    "Chain(Indexed, Indexed)": lambda: Chain(Indexed(Planar(2)), Coupling(2), Indexed(Coupling(2), 2), LocScale(2)),
    "Chain(Indexed, Inverse(Indexed))": lambda: Chain(Indexed(LocScale(2)), Inverse(Indexed(LocScale(2)))),
    "Indexed(Planar(1))": lambda: Indexed(Planar(1)),
    "Indexed(Planar, 2)": lambda: Indexed(Planar(2), 2),
    "Indexed(Radial)": lambda: Indexed(Radial(2)),
    "Indexed(LocScale)": lambda: Indexed(LocScale(2)),
    "Indexed(TriangularAffine)": lambda: Indexed(TriangularAffine(2)),
    "Indexed(Coupling, 3)": lambda: Indexed(Coupling(2), 3),
    "Indexed(Autoregressive)": lambda: Indexed(Autoregressive(3)),
    "Indexed(Chain)": lambda: Indexed(Chain(Coupling(3), Indexed(Planar(3)), Coupling(3, flip=True))),
    "Indexed(Inverse)": lambda: Indexed(Inverse(Autoregressive(2))),
    "Indexed(Indexed(Coupling))": lambda: Indexed(Indexed(Coupling(2)), 2),
    "Elementwise(1)": lambda: Elementwise(1),
    "Elementwise(3)": lambda: Elementwise(3, RationalQuadratic(4, 3.0)),
    "Indexed(Elementwise)": lambda: Indexed(Elementwise(2, Affine())),
    "Mixture(1, 3)": lambda: Mixture(1, 3),
    "Mixture(3, 2)": lambda: Mixture(3, 2),
    "Mixture(4, 2, 2)": lambda: Mixture(4, 2, 2),
    "Mixture(3, 3, 1)": lambda: Mixture(3, 3, 1),
    "Mixture(2, 4)": lambda: Mixture(2, 4),
    "Chain(Coupling, Mixture, Indexed)": lambda: Chain(Coupling(2), Mixture(2, 3), Indexed(Coupling(2))),
    "Inverse(Mixture)": lambda: Inverse(Mixture(2, 2)),
    "Indexed(Mixture)": lambda: Indexed(Mixture(2, 2)),
    "Conditional(Planar)": lambda: Conditional(Planar(3), 2).at(CONTEXT),
    "Conditional(Radial)": lambda: Conditional(Radial(3), 2).at(-CONTEXT),
    "Conditional(LocScale)": lambda: Conditional(LocScale(2), 2, hidden_dims=()).at(CONTEXT),
    "Conditional(TriangularAffine)": lambda: Conditional(TriangularAffine(2), 2).at(CONTEXT),
    "Conditional(Coupling)": lambda: Conditional(Coupling(2, hidden_dims=(5,)), 2).at(2 * CONTEXT),
    "Conditional(Coupling, RationalQuadratic)": lambda: Conditional(
        Coupling(2, RationalQuadratic(4, 3.0), hidden_dims=(5,)), 2, hidden_dims=(5,)
    ).at(CONTEXT),
    "Conditional(Autoregressive)": lambda: Conditional(Autoregressive(3, hidden_dims=(5,)), 2).at(CONTEXT),
    "Conditional(Indexed)": lambda: Conditional(Indexed(LocScale(2)), 2, hidden_dims=(4,)).at(CONTEXT),
    "Conditional(Chain)": lambda: Conditional(Chain(Planar(2), Inverse(Radial(2))), 2).at(CONTEXT),
    "Chain(Conditional, Planar, Conditional)": lambda: Chain(
        Conditional(Planar(2), 2), Planar(2), Inverse(Conditional(Radial(2), 2))
    ).at(CONTEXT),
    "Indexed(Conditional(Coupling))": lambda: Indexed(
        Conditional(Coupling(2, hidden_dims=(4,)), 2, hidden_dims=(4,)), context_dim=2
    ).at(CONTEXT),
    "Coupling(1, context)": lambda: Coupling(1, context_dim=2).at(CONTEXT),
    "Coupling(3, context)": lambda: Coupling(3, context_dim=2).at(CONTEXT),
    "Autoregressive(1, context)": lambda: Autoregressive(1, context_dim=2).at(CONTEXT),
    "Autoregressive(3, context)": lambda: Autoregressive(3, reverse=True, context_dim=2).at(CONTEXT),
    "Indexed(Planar, context)": lambda: Indexed(Planar(2), context_dim=2).at(CONTEXT),
    "planar(2)": lambda: recipes.planar(2, 4),
    "radial(2)": lambda: recipes.radial(2, 4),
    "iaf(1)": lambda: recipes.iaf(1, 2),
    "iaf(3)": lambda: recipes.iaf(3),
    "iaf(2, RationalQuadratic)": lambda: recipes.iaf(2, 2, transformer=RationalQuadratic()),
    "couplings(5)": lambda: recipes.couplings(5, 5),
    "realnvp(1)": lambda: recipes.realnvp(1, 2),
    "realnvp(2)": lambda: recipes.realnvp(2, 4),
    "nice(1)": lambda: recipes.nice(1, 2),
    "nice(4)": lambda: recipes.nice(4, 4),
    "spline(1)": lambda: recipes.spline(1, 2),
    "spline(3)": lambda: recipes.spline(3, 2),
    "spline(2, context)": lambda: recipes.spline(2, 2, context_dim=2).at(CONTEXT),
    "conditional(3)": lambda: recipes.conditional(3, 2, lambda dim: recipes.nice(dim, 2, (4,)), (4,)).at(CONTEXT),
    "default(1)": lambda: recipes.default(1),
    "default(2)": lambda: recipes.default(2),
    "cif(1)": lambda: recipes.cif(1, lambda dim: recipes.spline(dim, 2)),
    "cif(3)": lambda: recipes.cif(3, lambda dim: recipes.couplings(dim, 3)),
    "cif(2, nice)": lambda: recipes.cif(2, lambda dim: recipes.nice(dim, 2), index_dim=2),
}

#: Layers that do not, or need not.
ELSEWHERE: dict[str, Callable[[], Layer]] = {
    "LocScale(init)": lambda: LocScale(3, torch.arange(3.0), 0.1),
    "TriangularAffine(init)": lambda: TriangularAffine(3, torch.arange(3.0), 0.1),
    "Permutation(1)": lambda: Permutation([0]),
    "Permutation(3)": lambda: Permutation([2, 0, 1]),
    "Indexed(Permutation)": lambda: Indexed(Permutation([1, 0])),
    "TransformLayer(torch, element-wise)": lambda: TransformLayer(torch_transforms.AffineTransform(1.0, -2.0), 2),
    "TransformLayer(torch, cached)": lambda: TransformLayer(torch_transforms.AffineTransform(1.0, 2.0, 0, 1), 2),
    "TransformLayer(Pyro's affine coupling)": lambda: TransformLayer(pyro_transforms.affine_coupling(3), 3),
    "TransformLayer(Pyro's IAF)": lambda: TransformLayer(pyro_transforms.affine_autoregressive(2), 2),
    "TransformLayer(Pyro's Householder)": lambda: TransformLayer(pyro_transforms.householder(2), 2),
    "Indexed(TransformLayer)": lambda: Indexed(as_layer(pyro_transforms.affine_autoregressive(2), 2)),
}

LAYERS: dict[str, Callable[[], Layer]] = AT_IDENTITY | ELSEWHERE
