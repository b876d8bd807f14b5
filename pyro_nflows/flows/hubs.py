"""Flows of a few latents that all others are tied to, such as variances and ranges, and of the others given them."""

import torch

from ..checks import check_functions
from ..layers import Permutation, PlateCoupling, SparseShear, Split, TriangularAffine
from ..layers.base import Chain, Layer
from ..layers.shapes import need_elimination
from ..model.elimination import Elimination
from ..model.hierarchy import Hierarchy, Outline
from ..transformers import Affine, SinhArcsinh, Transformer
from .plates import AFFINE_STEP
from .vectors import Build, default

#: A precision of more numbers a latent than this has the same correlations whatever the hubs are: each draw would need
#: a matrix of its own.
MOST_NUMBERS = 16


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
    :raises TypeError: if an argument is of another kind.
    :raises ValueError: if the pattern has no hubs, or nothing else.

    Example::

        >>> from pyro_nflows.model.pattern import Pattern
        >>> star = Pattern(4, torch.tensor([[0, 0, 0, 1, 1, 2, 2, 3], [1, 2, 3, 0, 2, 0, 1, 0]]), torch.tensor([0]))
        >>> on_hubs(Elimination.of(star)).input_dim
        4
    """
    pattern = need_elimination("on_hubs", elimination).pattern
    check_functions("on_hubs", hubs=hubs)
    num_hubs, num_rest = len(pattern.hubs), pattern.dim - len(pattern.hubs)
    if not (num_hubs and num_rest):
        raise ValueError(f"on_hubs: expected hubs and other latents, got {num_hubs} of {pattern.dim}")
    order = torch.cat([pattern.hubs, pattern.others])
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
