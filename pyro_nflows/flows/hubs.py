"""Flows of a few latents that all others are tied to, such as variances and ranges, and of the others given them."""

from typing import cast

import torch
from torch import Tensor

from ..layers import Householder, Permutation, PlateCoupling, SparseShear, Split, TriangularAffine
from ..layers.base import Chain, Layer
from ..model.elimination import Elimination
from ..model.hierarchy import Hierarchy, Outline
from ..model.pattern import Pattern
from ..transformers import Affine, SinhArcsinh, Transformer
from .plates import AFFINE_STEP
from .vectors import Build, default

#: A precision of more numbers a latent than this has the same correlations whatever the hubs are: each draw would need
#: a matrix of its own.
MOST_NUMBERS = 16
#: Directions in which the curvature of the other latents changes most, whose correlations depend on the hubs too.
NUM_AXES = 16


class GivenHubs(Chain):
    """A flow of hubs, and of the others given them; :func:`on_hubs` makes it.

    :param layers: from base to posterior.
    """


def on_hubs(
    elimination: Elimination,
    hubs: Build = default,
    transformer: Transformer = Affine(),
    shape: Transformer = SinhArcsinh(),
) -> GivenHubs:
    r"""A flow of the latents that all others are tied to, the *hubs*, then the others given them.

    With :math:`g` the hubs and :math:`z` the others,

    .. math:: q(g, z) = q(g)\, q(z | g), \qquad z = M(g)\, \big(e^{s(g)} \odot (\tau(x; g) + t(g))\big)

    with :math:`M(g)` triangular, of the pattern that the log density ties the others in, and :math:`\tau` element-wise:
    but for :math:`\tau`, a Gaussian whose location, scales and correlations depend on the hubs by learned features that
    all latents share (:class:`~pyro_nflows.layers.PlateCoupling`, :class:`~pyro_nflows.layers.SparseShear`). A sparse
    affine end (:class:`~pyro_nflows.layers.SparseAffine`) behind it has what does not depend on the hubs. Time and
    memory are linear in the numbers of the pattern.

    :param elimination: of a pattern with hubs.
    :param hubs: the flow of the hubs.
    :param transformer: of the others; see :class:`~pyro_nflows.layers.PlateCoupling`.
    :param shape: of the others too, before that: what makes them other than a Gaussian given the hubs.
    :raises ValueError: if the pattern has no hubs, or nothing else.

    Example::

        >>> from pyro_nflows.model.pattern import Pattern
        >>> star = Pattern(4, torch.tensor([[0, 0, 0, 1, 1, 2, 2, 3], [1, 2, 3, 0, 2, 0, 1, 0]]), torch.tensor([0]))
        >>> on_hubs(Elimination.of(star)).input_dim
        4
    """
    pattern = elimination.pattern
    num_hubs, num_rest = len(pattern.hubs), pattern.dim - len(pattern.hubs)
    if not (num_hubs and num_rest):
        raise ValueError(f"on_hubs: expected hubs and other latents, got {num_hubs} of {pattern.dim}")
    order = _order(pattern.hubs, pattern.dim)
    rows = Hierarchy.of_outlines({"hubs": Outline((num_hubs,), {}), "rest": Outline((num_rest,), {"rest": 0})})
    affine = TriangularAffine(num_hubs)
    affine.step = AFFINE_STEP
    layers: list[Layer] = [
        Permutation(order),
        Split(Chain(affine, hubs(num_hubs)), pattern.dim),
        PlateCoupling(rows, shape),
        PlateCoupling(rows, transformer),
    ]
    among = Elimination.of(pattern.without_hubs())
    if 0 < among.size <= MOST_NUMBERS * num_rest:
        layers.append(SparseShear(among, num_hubs))
    return GivenHubs(*layers, Permutation(order.argsort()))


class TurnedHubs(Chain):
    """A flow of hubs, and of the others given them, in directions that are found; :func:`on_turned` makes it.

    :param layers: from base to posterior; the last one turns.
    :param hubs: where the flat latent holds the hubs.
    :param num_axes: directions of the others that are found.
    """

    def __init__(self, *layers: Layer, hubs: tuple[int, ...], num_axes: int):
        super().__init__(*layers)
        self.hubs, self.num_axes = hubs, num_axes

    @property
    def turn(self) -> Householder:
        """The rotation behind all."""
        return cast(Householder, self[len(self) - 1])


def on_turned(
    latent_dim: int,
    hubs: tuple[int, ...],
    num_axes: int = NUM_AXES,
    flow: Build = default,
    transformer: Transformer = Affine(),
    shape: Transformer = SinhArcsinh(),
) -> TurnedHubs:
    r"""A flow of hubs, then of all others given them, where these are tied all to all.

    .. math:: (g, z) = Q\, (g', z'), \qquad q(g', z') = q(g')\, q(z' | g')

    with :math:`Q` orthogonal, in coordinates in which all latents together have mean zero and unit covariance. Its
    first columns span what the hubs are made of; the next ones are the directions in which the curvature of the others
    changes most with the hubs (:mod:`pyro_nflows.inference.turned`), and it is the identity until they are found. In
    these directions :math:`z'` is nearly independent given :math:`g'`: an element-wise map whose parameters depend on
    :math:`g'` is enough for most, and a triangular matrix that depends on it too for the first ``num_axes``. So a model
    that is written with standard normal numbers, such as a Gaussian process by the factor of its covariance, has what
    one with a sparse pattern has by :func:`on_hubs`. A draw costs :math:`O(D)` numbers here.

    It is for posteriors of which data say little, where the default couplings end with heavy weights. Where data say
    much of each of the others, as in a local level model with little noise, these are better: ESS 0.95 against 0.19.

    :param latent_dim: :math:`D`.
    :param hubs: where the flat latent holds them.
    :param num_axes: directions of the others, at most.
    :param flow: of the hubs.
    :param transformer: of the others; see :class:`~pyro_nflows.layers.PlateCoupling`.
    :param shape: of the others too, before that.
    :raises ValueError: if there are no hubs, or nothing else.

    Example::

        >>> len(on_turned(20, (0, 3), num_axes=6).turn.vectors)
        8
    """
    num_hubs, num_rest = len(hubs), latent_dim - len(hubs)
    if not (num_hubs and num_rest > 0):
        raise ValueError(f"on_turned: expected hubs and other latents, got {num_hubs} of {latent_dim}")
    num_axes = min(num_axes, num_rest)
    rows = Hierarchy.of_outlines({"hubs": Outline((num_hubs,), {}), "rest": Outline((num_rest,), {"rest": 0})})
    affine = TriangularAffine(num_hubs)
    affine.step = AFFINE_STEP
    layers: list[Layer] = [
        Split(Chain(affine, flow(num_hubs)), latent_dim),
        PlateCoupling(rows, shape),
        PlateCoupling(rows, transformer),
    ]
    if num_axes > 1:
        layers.append(SparseShear(Elimination.of(_all_tied(num_axes, num_rest)), num_hubs))
    turn = Householder(latent_dim, num_hubs + num_axes + (num_hubs + num_axes) % 2)
    turn.step = AFFINE_STEP
    return TurnedHubs(*layers, turn, hubs=tuple(hubs), num_axes=num_axes)


def _all_tied(num: int, dim: int) -> Pattern:
    """The first ones tied all to all, the others to none."""
    pairs = (~torch.eye(num, dtype=torch.bool)).nonzero().T
    return Pattern(dim, pairs, torch.zeros(0, dtype=torch.long))


def _order(hubs: Tensor, dim: int) -> Tensor:
    """The hubs first."""
    rest = torch.ones(dim, dtype=torch.bool)
    rest[hubs] = False
    return torch.cat([hubs, rest.nonzero()[:, 0]])
