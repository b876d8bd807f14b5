"""Every layer of the package, by name: one line each, and every law is tested on it (``test_laws.py``)."""

import functools
from collections.abc import Callable

import pyro.distributions.transforms as pyro_transforms
import torch
from torch import Tensor, nn
from torch.distributions import transforms as torch_transforms

from pyro_nflows import flows
from pyro_nflows.flows.transforms import TransformLayer, as_layer
from pyro_nflows.flows.wrapped import with_context
from pyro_nflows.layers import (
    ActNorm,
    Autoregressive,
    Conditional,
    Continuous,
    Coupling,
    Elementwise,
    FlowifiedActivation,
    FlowifiedConv,
    FlowifiedLinear,
    Hamiltonian,
    Householder,
    Indexed,
    Langevin,
    LocScale,
    LowRankAffine,
    LULinear,
    Mixture,
    Permutation,
    Planar,
    PlateAffine,
    PlateCoupling,
    PlateFlow,
    PlateShear,
    Positionwise,
    Radial,
    Rescaled,
    Residual,
    RowCoupling,
    SequenceAutoregressive,
    SharedAffine,
    SparseAffine,
    SparseShear,
    Split,
    Squeeze,
    Sylvester,
    TriangularAffine,
)
from pyro_nflows.layers.base import Chain, Inverse, Layer
from pyro_nflows.model.elimination import Elimination
from pyro_nflows.model.hierarchy import Hierarchy, Outline
from pyro_nflows.model.pattern import Pattern, pattern_of
from pyro_nflows.nets import CausalConvNet, CausalTransformer, FrameNet
from pyro_nflows.transformers import Affine, RationalQuadratic, Shift, SinhArcsinh

#: A random context, the same for all layers.
CONTEXT = torch.randn(2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


#: A network that reads the last two positions, and small transformers.
NEAR = functools.partial(CausalConvNet, width=4, dilations=(1,), per_position=True)
FRAMES = functools.partial(FrameNet, shapes=[(1, 1, 1), (1, 1, 1)], num_past=1, hidden_dims=(4,))
ATTENTION = functools.partial(CausalTransformer, width=4, num_blocks=1, num_heads=1, per_position=True)

#: Of rows: an index for a coupling.
INDEXED_ROWS = functools.partial(
    flows.cif, inner=functools.partial(flows.realnvp, num_layers=1, hidden_dims=(3,)), hidden_dims=(3,)
)

#: Two rows of one coordinate in a plate, a plate alone, a row of three, and a plate within another one.
GROUPS = Hierarchy.of_outlines({"mu": Outline((), {}), "z": Outline((2,), {"groups": 0})})
ROWS = Hierarchy.of_outlines({"z": Outline((1, 2), {"groups": 0})})
PAIRS = Hierarchy.of_outlines({"z": Outline((1, 3), {"groups": 0}), "mu": Outline((), {})})
#: Rows of two, and a row of one that they are within.
NESTED_PAIRS = Hierarchy.of_outlines(
    {"inner": Outline((2, 1, 2), {"inner": 0, "outer": 1}), "outer": Outline((1, 1), {"outer": 0})}
)
NESTED = Hierarchy.of_outlines(
    {"inner": Outline((2, 1), {"inner": 0, "outer": 1}), "outer": Outline((1, 1), {"outer": 0}), "mu": Outline((), {})}
)


def chain_elimination(dim: int) -> Elimination:
    """The order of a random walk, all of whose steps have the last latent as their scale."""
    walk = lambda z: -((z[:, 1:-1] - z[:, :-2]).square().sum(-1) * z[:, -1].exp())  # noqa: E731
    return Elimination.of(pattern_of(walk, torch.ones(dim)))


def hub_elimination(dim: int) -> Elimination:
    """The order of a random walk, all of whose steps have the second latent as their scale: a hub."""
    found = chain_elimination(dim).pattern
    turned = torch.tensor([dim - 2, dim - 1, *range(dim - 2)], device="cpu").argsort()  # the hub is second
    pairs = turned[found.pairs]
    pairs = pairs[:, (dim * pairs[0] + pairs[1]).argsort()]
    return Elimination.of(Pattern(dim, pairs, turned[dim - 1 :]))


def pair_elimination(dim: int) -> Elimination:
    """The order of a random walk."""
    return Elimination.of(pattern_of(lambda z: -(z[:, 1:] - z[:, :-1]).square().sum(-1), torch.zeros(dim)))


def banana(z: Tensor) -> Tensor:
    """A log density of any number of coordinates, the first of which bends the others."""
    bent = z[..., 1:] - 0.3 * z[..., :1].square()
    return -0.5 * ((z[..., 0] - 0.5).square() + 2 * bent.square().sum(-1))


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
    "SparseAffine(3)": lambda: SparseAffine(chain_elimination(3)),
    "SparseAffine(6)": lambda: SparseAffine(chain_elimination(6)),
    "SparseShear(3)": lambda: SparseShear(pair_elimination(2), 1, num_features=2, hidden_dims=(4,)),
    "SparseShear(6)": lambda: SparseShear(pair_elimination(4), 2, num_features=2, hidden_dims=(4,)),
    "LowRankAffine(1)": lambda: LowRankAffine(1),
    "LowRankAffine(4, 2)": lambda: LowRankAffine(4, 2),
    "ActNorm(1)": lambda: ActNorm(1),
    "ActNorm(3)": lambda: ActNorm(3),
    "ActNorm(image)": lambda: ActNorm((2, 1, 2)),
    "LULinear(1)": lambda: LULinear(1),
    "LULinear(3)": lambda: LULinear(3),
    "LULinear(image)": lambda: LULinear((2, 1, 2)),
    "Householder(1)": lambda: Householder(1),
    "Householder(3)": lambda: Householder(3, 4),
    "Sylvester(1)": lambda: Sylvester(1),
    "Sylvester(3)": lambda: Sylvester(3),
    "Sylvester(4, 2)": lambda: Sylvester(4, 2),
    "Residual(1)": lambda: Residual(1, hidden_dims=(8,)),
    "Residual(3)": lambda: Residual(3, hidden_dims=(8, 8)),
    "Residual(2, no hidden layers)": lambda: Residual(2, hidden_dims=()),
    "Residual(2, roulette)": lambda: Residual(2, hidden_dims=(4,), lipschitz=0.5, log_det="roulette"),
    "Residual(2, series)": lambda: Residual(2, hidden_dims=(4,), lipschitz=0.5, log_det="series", num_terms=30),
    "Residual(image)": lambda: Residual((2, 1, 2), hidden_dims=(3, 3)),
    "Residual(image, context)": lambda: Residual((1, 2, 2), hidden_dims=(2,), context_dim=2).at(CONTEXT),
    "Residual(image, no hidden layers)": lambda: Residual((1, 2, 2), hidden_dims=()),
    "Residual(image, roulette)": lambda: Residual((1, 1, 2), hidden_dims=(3,), lipschitz=0.5, log_det="roulette"),
    "Inverse(Residual)": lambda: Inverse(Residual(2, hidden_dims=(4,), lipschitz=0.3)),
    "Inverse(Residual, roulette)": lambda: Inverse(
        Residual(2, hidden_dims=(4,), lipschitz=0.3, log_det="roulette", keep=0.3)
    ),
    "Hamiltonian(1, 1 step)": lambda: Hamiltonian(1, banana, 1),
    "Hamiltonian(2)": lambda: Hamiltonian(2, banana, 2),
    "Hamiltonian(1, trajectories)": lambda: Hamiltonian(1, banana, 3, num_leapfrog=2, damping=0.5),
    "Langevin(2)": lambda: Langevin(2, banana, 2),
    "Inverse(Hamiltonian)": lambda: Inverse(Hamiltonian(1, banana, 2)),
    "Indexed(Hamiltonian)": lambda: Indexed(Hamiltonian(1, banana, 2)),
    "Chain(Planar, Langevin, Coupling)": lambda: Chain(Planar(2), Langevin(2, banana, 1), Coupling(2)),
    "Continuous(1)": lambda: Continuous(1, hidden_dims=(3,), num_steps=16),
    "Continuous(2, context)": lambda: Continuous(2, hidden_dims=(), num_steps=12, context_dim=2).at(CONTEXT),
    "Continuous(2, hutchinson)": lambda: Continuous(2, hidden_dims=(), num_steps=16, trace="hutchinson"),
    "Inverse(Continuous)": lambda: Inverse(Continuous(2, hidden_dims=(), num_steps=12)),
    "Split(Coupling)": lambda: Split(Coupling(2), 3),
    "Split(Indexed)": lambda: Split(Indexed(Coupling(2)), 3),
    "Split(Planar, all)": lambda: Split(Planar(2), 2),
    "Positionwise(Coupling)": lambda: Positionwise(Coupling(2, hidden_dims=(4,)), 2),
    "Positionwise(Indexed)": lambda: Positionwise(Indexed(Coupling(2, hidden_dims=(4,)), hidden_dims=(4,)), 2),
    "SequenceAutoregressive(frames)": lambda: SequenceAutoregressive((3, 2), net=FRAMES),
    "PlateAffine(groups)": lambda: PlateAffine(GROUPS),
    "PlateAffine(rows)": lambda: PlateAffine(ROWS),
    "Chain(SharedAffine, PlateAffine)": lambda: Chain(SharedAffine(3, 1), PlateAffine(GROUPS)),
    "PlateCoupling(groups)": lambda: PlateCoupling(GROUPS, hidden_dims=(4,)),
    "PlateCoupling(rows)": lambda: PlateCoupling(ROWS),
    "PlateCoupling(nested)": lambda: PlateCoupling(NESTED, num_features=2, hidden_dims=(4,)),
    "PlateCoupling(groups, RationalQuadratic)": lambda: PlateCoupling(
        GROUPS, RationalQuadratic(4, 3.0), num_features=1, hidden_dims=(3,)
    ),
    "PlateCoupling(groups, SinhArcsinh)": lambda: PlateCoupling(
        GROUPS, SinhArcsinh(), num_features=1, hidden_dims=(3,)
    ),
    "Coupling(3, SinhArcsinh)": lambda: Coupling(3, SinhArcsinh()),
    "PlateFlow(groups, iaf)": lambda: PlateFlow(
        GROUPS, with_context(functools.partial(flows.iaf, num_layers=1, hidden_dims=(3,))), code_dim=2, num_features=1
    ),
    "PlateFlow(nested, planar)": lambda: PlateFlow(
        NESTED, with_context(functools.partial(flows.planar, num_layers=1)), code_dim=1, num_features=1
    ),
    "PlateFlow(rows, CIF)": lambda: PlateFlow(ROWS, with_context(INDEXED_ROWS), code_dim=2),
    "PlateAffine(rows, diagonal)": lambda: PlateAffine(ROWS, within=False),
    "PlateShear(rows)": lambda: PlateShear(ROWS),
    "PlateShear(pairs)": lambda: PlateShear(PAIRS, num_features=2, hidden_dims=(4,)),
    "Indexed(PlateAffine)": lambda: Indexed(PlateAffine(GROUPS)),
    "RowCoupling(pairs)": lambda: RowCoupling(PAIRS, hidden_dim=3),
    "RowCoupling(nested)": lambda: RowCoupling(NESTED_PAIRS, hidden_dim=2),
    "RowCoupling(rows, flip)": lambda: RowCoupling(ROWS, SinhArcsinh(), flip=True, hidden_dim=3),
    "Indexed(PlateCoupling)": lambda: Indexed(PlateCoupling(GROUPS, num_features=2, hidden_dims=(3,))),
    "Coupling(1)": lambda: Coupling(1),
    "Coupling(2)": lambda: Coupling(2),
    "Coupling(3, flip)": lambda: Coupling(3, flip=True),
    "Coupling(1, flip)": lambda: Coupling(1, flip=True),
    "Coupling(3, no hidden layers)": lambda: Coupling(3, hidden_dims=()),
    "Coupling(3, Shift)": lambda: Coupling(3, Shift()),
    "Coupling(3, Affine(0.5))": lambda: Coupling(3, Affine(0.5)),
    "Coupling(1, RationalQuadratic)": lambda: Coupling(1, RationalQuadratic()),
    "Coupling(3, RationalQuadratic)": lambda: Coupling(3, RationalQuadratic(4, 3.0)),
    "Coupling(image)": lambda: Coupling((2, 1, 2)),
    "Coupling(image, flip)": lambda: Coupling((3, 1, 1), flip=True, hidden_dims=(4,)),
    "Coupling(image, RationalQuadratic)": lambda: Coupling((2, 2, 1), RationalQuadratic(4, 3.0), hidden_dims=()),
    "Autoregressive(1)": lambda: Autoregressive(1),
    "Autoregressive(2)": lambda: Autoregressive(2),
    "Autoregressive(3, reverse)": lambda: Autoregressive(3, reverse=True),
    "Autoregressive(3, no hidden layers)": lambda: Autoregressive(3, hidden_dims=()),
    "Autoregressive(3, Shift)": lambda: Autoregressive(3, Shift()),
    "Autoregressive(3, RationalQuadratic)": lambda: Autoregressive(3, RationalQuadratic(4, 3.0)),
    "SequenceAutoregressive(3, 1)": lambda: SequenceAutoregressive((3, 1)),
    "SequenceAutoregressive(2, 2, reverse)": lambda: SequenceAutoregressive((2, 2), reverse=True),
    "SequenceAutoregressive(4, 1, near)": lambda: SequenceAutoregressive((4, 1), Shift(), net=NEAR),
    "SequenceAutoregressive(4, 1, context)": lambda: SequenceAutoregressive((4, 1), net=NEAR, context_dim=1).at(
        torch.cat([CONTEXT, -CONTEXT])
    ),
    "up_to(SequenceAutoregressive)": lambda: flows.up_to(
        SequenceAutoregressive((3, 1), RationalQuadratic(4, 3.0), reverse=True), torch.tensor(2)
    ),
    "SequenceAutoregressive(3, 1, transformer)": lambda: SequenceAutoregressive((3, 1), net=ATTENTION),
    "SequenceAutoregressive(2, 2, transformer)": lambda: SequenceAutoregressive(
        (2, 2), reverse=True, net=ATTENTION, context_dim=1
    ).at(CONTEXT),
    "Inverse(SequenceAutoregressive)": lambda: Inverse(SequenceAutoregressive((2, 2), net=NEAR)),
    "Conditional(SequenceAutoregressive)": lambda: Conditional(
        SequenceAutoregressive((3, 1), net=NEAR), 2, hidden_dims=(4,)
    ).at(CONTEXT),
    "Indexed(SequenceAutoregressive)": lambda: Indexed(SequenceAutoregressive((2, 1), net=NEAR)),
    "Inverse(Planar)": lambda: Inverse(Planar(2)),
    "Inverse(Radial)": lambda: Inverse(Radial(2)),
    "Inverse(Autoregressive)": lambda: Inverse(Autoregressive(3)),
    "Inverse(Inverse(Coupling))": lambda: Inverse(Inverse(Coupling(2))),
    "Rescaled(Coupling)": lambda: Rescaled(Coupling(3, hidden_dims=(5,))),
    "Rescaled(Chain)": lambda: Rescaled(Chain(Planar(2), Autoregressive(2, hidden_dims=(5,)), LocScale(2)), "layers.2"),
    "Rescaled(Indexed)": lambda: Rescaled(Indexed(Coupling(2, hidden_dims=(5,)))),
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
    "Indexed(Planar, spline)": lambda: Indexed(Planar(2), transformer=RationalQuadratic(4, 3.0)),
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
    "Coupling(image, context)": lambda: Coupling((2, 1, 2), hidden_dims=(4,), context_dim=2).at(CONTEXT),
    "Conditional(Coupling, image)": lambda: Conditional(Coupling((2, 1, 2), hidden_dims=(4,)), 2, hidden_dims=(3,)).at(
        CONTEXT
    ),
    "Conditional(ActNorm)": lambda: Conditional(ActNorm(3), 2).at(CONTEXT),
    "Conditional(LULinear)": lambda: Conditional(LULinear(3), 2).at(CONTEXT),
    "Conditional(Householder)": lambda: Conditional(Householder(3), 2).at(CONTEXT),
    "Conditional(Sylvester)": lambda: Conditional(Sylvester(2), 2).at(CONTEXT),
    "Conditional(Split)": lambda: Conditional(Split(Planar(2), 3), 2).at(CONTEXT),
    "Indexed(Sylvester)": lambda: Indexed(Sylvester(2)),
    "Indexed(LULinear)": lambda: Indexed(LULinear(2)),
    "Indexed(Coupling, index is an image)": lambda: Indexed(
        Coupling((2, 1, 2), hidden_dims=(4,)), hidden_dims=(3,), shape=(2, 1, 2), skip=True
    ),
    "Indexed(image, context, RationalQuadratic)": lambda: Indexed(
        Coupling((2, 1, 1), hidden_dims=(4,)),
        2,
        hidden_dims=(3,),
        shape=(2, 1, 1),
        context_dim=2,
        transformer=RationalQuadratic(3, 3.0),
    ).at(CONTEXT),
    "Indexed(Coupling, image)": lambda: Indexed(Coupling((2, 1, 1), hidden_dims=(4,))),
    "Residual(2, context)": lambda: Residual(2, hidden_dims=(4,), context_dim=2).at(CONTEXT),
    "Conditional(Residual)": lambda: Conditional(Residual(2, hidden_dims=(4,)), 2, hidden_dims=(4,)).at(CONTEXT),
    "Indexed(Residual)": lambda: Indexed(Residual(2, hidden_dims=(4,))),
    "Indexed(Residual, roulette)": lambda: Indexed(Residual(2, hidden_dims=(4,), lipschitz=0.5, log_det="roulette")),
    "Indexed(Planar, context)": lambda: Indexed(Planar(2), context_dim=2).at(CONTEXT),
    "FlowifiedLinear(1)": lambda: FlowifiedLinear(1),
    "FlowifiedLinear(3)": lambda: FlowifiedLinear(3),
    "FlowifiedActivation(3)": lambda: FlowifiedActivation(3),
    "FlowifiedActivation(image)": lambda: FlowifiedActivation((2, 1, 2)),
    "Chain(FlowifiedLinear, up and down)": lambda: Chain(
        FlowifiedLinear(2, 4), FlowifiedActivation(4), FlowifiedLinear(4, 2, hidden_dims=(4,))
    ),
    "Conditional(FlowifiedLinear)": lambda: Conditional(FlowifiedLinear(2), 2, hidden_dims=(4,)).at(CONTEXT),
    "Indexed(FlowifiedLinear)": lambda: Indexed(FlowifiedLinear(2)),
    "planar(2)": lambda: flows.planar(2, 4),
    "radial(2)": lambda: flows.radial(2, 4),
    "iaf(1)": lambda: flows.iaf(1, 2),
    "iaf(3)": lambda: flows.iaf(3),
    "iaf(2, RationalQuadratic)": lambda: flows.iaf(2, 2, transformer=RationalQuadratic()),
    "maf(3)": lambda: flows.maf(3, 2),
    "maf(2, context)": lambda: flows.maf(2, 2, context_dim=2).at(CONTEXT),
    "spline_autoregressive(2)": lambda: flows.spline_autoregressive(2, 2, num_bins=4),
    "glow(1)": lambda: flows.glow(1, 2),
    "glow(3)": lambda: flows.glow(3, 4),
    "glow(2, conditional)": lambda: flows.conditional(2, 2, lambda dim: flows.glow(dim, 2, (4,)), (4,)).at(CONTEXT),
    "cif(2, glow)": lambda: flows.cif(2, lambda dim: flows.glow(dim, 2, (4,))),
    "wavenet(1)": lambda: flows.wavenet(1, 1),
    "wavenet(3)": lambda: flows.wavenet(3, 2, 4),
    "wavenet(3, 1, inverted)": lambda: flows.wavenet((3, 1), 2, 4, (1,), inverted=True),
    "tarflow(2, 2)": lambda: flows.tarflow((2, 2), 2, 4, 1, 1),
    "tarflow(image, context)": lambda: flows.tarflow((1, 2, 2), 1, 4, 1, 1, patch=(1, 2), context_dim=1).at(CONTEXT),
    "cnf(2)": lambda: flows.cnf(2, 2, (), num_steps=8),
    "jko(2)": lambda: flows.jko(2, 2, (), 8),
    "jko(2, inverted)": lambda: flows.jko(2, 2, build=lambda dim: flows.spline(dim, 2, (4,), 3), inverted=True),
    "residual(2)": lambda: flows.residual(2, 2, (4,)),
    "residual(2, inverted)": lambda: flows.residual(2, 1, (4,), 0.5, inverted=True),
    "flowified(1)": lambda: flows.flowified(1, 1, 1, (4,)),
    "flowified(2)": lambda: flows.flowified(2, 2, 1, (4,)),
    "flowified(3, bijective)": lambda: flows.flowified(3, 2, 0),
    "couplings(5)": lambda: flows.couplings(5, 5),
    "realnvp(1)": lambda: flows.realnvp(1, 2),
    "realnvp(2)": lambda: flows.realnvp(2, 4),
    "nice(1)": lambda: flows.nice(1, 2),
    "nice(4)": lambda: flows.nice(4, 4),
    "spline(1)": lambda: flows.spline(1, 2),
    "spline(3)": lambda: flows.spline(3, 2),
    "spline(3, inverted)": lambda: flows.spline(3, 4, (4,), 3, inverted=True),
    "spline(2, context)": lambda: flows.spline(2, 2, context_dim=2).at(CONTEXT),
    "on_plates(groups)": lambda: flows.on_plates(GROUPS, lambda dim: flows.nice(dim, 2, (4,))),
    "on_hubs(4)": lambda: flows.on_hubs(hub_elimination(4), lambda dim: flows.spline(dim, 2, (4,), 3)),
    "within_rows(pairs)": lambda: flows.within_rows(PAIRS, flows.nice(4, 2, (4,))),
    "on_plates(pairs)": lambda: flows.on_plates(PAIRS, lambda dim: flows.nice(dim, 2, (4,))),
    "conditional(3)": lambda: flows.conditional(3, 2, lambda dim: flows.nice(dim, 2, (4,)), (4,)).at(CONTEXT),
    "on_mixture(2)": lambda: flows.on_mixture(2, lambda dim: flows.couplings(dim, 2, (4,)), 3),
    "gaussians(2)": lambda: flows.gaussians(2, 3),
    "on_modes(2)": lambda: flows.on_modes(2, lambda dim: flows.couplings(dim, 2, (4,)), 2, 1),
    "default(1)": lambda: flows.default(1),
    "default(2)": lambda: flows.default(2),
    "cif(1)": lambda: flows.cif(1, lambda dim: flows.spline(dim, 2)),
    "cif(3)": lambda: flows.cif(3, lambda dim: flows.couplings(dim, 3)),
    "cif(2, nice)": lambda: flows.cif(2, lambda dim: flows.nice(dim, 2), index_dim=2),
}

#: Layers that do not, or need not.
ELSEWHERE: dict[str, Callable[[], Layer]] = {
    "LocScale(init)": lambda: LocScale(3, torch.arange(3.0), 0.1),
    "PlateAffine(nested)": lambda: PlateAffine(NESTED, torch.arange(4.0), 0.5),
    "TriangularAffine(init)": lambda: TriangularAffine(3, torch.arange(3.0), 0.1),
    "LULinear(3, permutation)": lambda: LULinear(3, [2, 0, 1]),
    "LULinear(image, permutation)": lambda: LULinear((2, 1, 2), [1, 0]),
    "Squeeze(1, 2, 2)": lambda: Squeeze((1, 2, 2)),
    "Squeeze(1, 2, 4)": lambda: Squeeze((1, 2, 4)),
    "Inverse(Squeeze)": lambda: Inverse(Squeeze((1, 2, 2))),
    "glow_image(1, 2, 2)": lambda: flows.glow_image((1, 2, 2), 1, 2, (4,)),
    "glow_image(1, 2, 4, context)": lambda: flows.glow_image((1, 2, 2), 1, 2, (4,), context_dim=2).at(CONTEXT),
    "video(1, 2, 2)": lambda: flows.video((1, 2, 2), 2, 1, 1, (4,), num_past=1, prior_dims=(4,)),
    "Positionwise(FlowifiedLinear(2, 1))": lambda: Positionwise(FlowifiedLinear(2, 1, hidden_dims=(4,)), 2),
    "residual_image(1, 2, 2)": lambda: flows.residual_image((1, 2, 2), 1, 1, (2,), log_det="exact"),
    "residual_image(1, 2, 2, inverted)": lambda: flows.residual_image(
        (1, 2, 2), 1, 1, (2,), 0.3, "exact", context_dim=2, inverted=True
    ).at(CONTEXT),
    "cif_image(1, 2, 2)": lambda: flows.cif_image(
        (1, 2, 2), lambda shape: flows.glow_image(shape, 1, 2, (4,)), 1, (3,)
    ),
    "cif_image(1, 2, 2, residual)": lambda: flows.cif_image(
        (1, 2, 2), lambda shape: flows.residual_image(shape, 1, 1, (2,), log_det="exact"), 1, (3,), skip=False
    ),
    "FlowifiedLinear(1, 3)": lambda: FlowifiedLinear(1, 3),
    "FlowifiedLinear(2, 3)": lambda: FlowifiedLinear(2, 3),
    "FlowifiedLinear(3, 2)": lambda: FlowifiedLinear(3, 2, hidden_dims=(4,)),
    "FlowifiedLinear(3, 1)": lambda: FlowifiedLinear(3, 1, hidden_dims=()),
    "Inverse(FlowifiedLinear(2, 3))": lambda: Inverse(FlowifiedLinear(2, 3)),
    "Inverse(FlowifiedLinear(3, 2))": lambda: Inverse(FlowifiedLinear(3, 2, hidden_dims=(4,))),
    "Conditional(FlowifiedLinear(2, 3))": lambda: Conditional(FlowifiedLinear(2, 3), 2, hidden_dims=(4,)).at(CONTEXT),
    "Chain(FlowifiedLinear, down and up)": lambda: Chain(
        FlowifiedLinear(3, 2, hidden_dims=(4,)), FlowifiedActivation(2, 0.5), FlowifiedLinear(2, 3)
    ),
    "FlowifiedActivation(smooth)": lambda: FlowifiedActivation(3, 0.3, smoothness=0.5),
    "FlowifiedActivation(fixed)": lambda: FlowifiedActivation(3, 0.2, trained=False),
    "FlowifiedConv(tiles)": lambda: FlowifiedConv((1, 2, 2), 4, 2),
    "FlowifiedConv(channels)": lambda: FlowifiedConv((2, 1, 2), 2, 1),
    "FlowifiedConv(up)": lambda: FlowifiedConv((1, 1, 2), 2, 1),
    "FlowifiedConv(down)": lambda: FlowifiedConv((1, 2, 2), 3, 2, hidden_dims=(4,)),
    "FlowifiedConv(overlap)": lambda: FlowifiedConv((1, 2, 3), 2, 2, 1, hidden_dims=(), noise_scale=1.0),
    "FlowifiedConv(padding, down)": lambda: FlowifiedConv((1, 2, 1), 1, 2, 2, 1, hidden_dims=(2,), noise_scale=1.0),
    "Inverse(FlowifiedConv)": lambda: Inverse(FlowifiedConv((1, 2, 3), 3, 2, 1, hidden_dims=(), noise_scale=1.0)),
    "flowify(3)": lambda: flows.flowify(
        nn.Sequential(nn.Linear(3, 2), nn.LeakyReLU(0.5), nn.Linear(2, 1)), hidden_dims=(4,)
    ),
    "flowify(image)": lambda: flows.flowify(
        nn.Sequential(nn.Conv2d(1, 2, 1), nn.PReLU(), nn.Flatten(), nn.Linear(4, 2)),
        (1, 1, 2),
        hidden_dims=(4,),
        noise_scale=1.0,
    ),
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

#: Of eight dimensions or more, in which integrals cannot be told by a few thousand draws; their parts are above.
LARGE = {"video(1, 2, 2)"}
