"""Flows that follow the plates of a model."""

from ..checks import check_functions
from ..layers import (
    Permutation,
    PlateCoupling,
    PlateFlow,
    PlateShear,
    RowCoupling,
    SharedAffine,
    Split,
    TriangularAffine,
)
from ..layers.base import Chain, Layer
from ..layers.shapes import need_hierarchy
from ..model.hierarchy import Hierarchy
from ..transformers import Affine, SinhArcsinh, Transformer
from .vectors import Build, default
from .wrapped import with_context

#: Correlations within a row of so many coordinates may depend on what is outside of plates.
MAX_ROW_DIM = 12
#: An optimiser hardly moves the affine layer of what is outside of plates, which is for fits that weigh their draws.
AFFINE_STEP = 1e-3
#: Couplings within rows go over a row so many times, and skew its coordinates by no more than this, which keeps the
#: tails of what they make within those of most posteriors.
NUM_SWEEPS, SHAPE_BOUND = 2, 1.0


def on_plates(
    hierarchy: Hierarchy,
    top: Build = default,
    transformer: Transformer = Affine(),
    shape: Transformer = SinhArcsinh(),
    rows: Build | None = None,
) -> Layer:
    """A flow of what is outside of plates, then rows that are transformed as it, and their outer rows, say.

    :param hierarchy: which coordinates are in which plates.
    :param top: the flow of the coordinates outside of plates.
    :param transformer: of the rows; see :class:`~pyro_nflows.layers.PlateCoupling`.
    :param shape: of the rows too, before that: what makes a row other than a Gaussian given what it is within.
    :param rows: a flow that all rows share, each with a code of its own (:class:`~pyro_nflows.layers.PlateFlow`), in
        the place of ``shape``.
    :raises TypeError: if an argument is of another kind.

    Example::

        >>> from pyro_nflows.model.hierarchy import Hierarchy, Outline
        >>> hierarchy = Hierarchy.of_outlines({"mu": Outline((2,), {}), "z": Outline((3,), {"groups": 0})})
        >>> on_plates(hierarchy).input_dim
        5
    """
    need_hierarchy("on_plates", hierarchy)
    check_functions("on_plates", top=top, **({} if rows is None else {"rows": rows}))
    first = PlateCoupling(hierarchy, shape) if rows is None else PlateFlow(hierarchy, with_context(rows))
    layers: list[Layer] = [first, PlateCoupling(hierarchy, transformer)]
    if len(hierarchy.top):
        if any(1 < block.row_dim <= MAX_ROW_DIM for block in hierarchy.blocks):
            layers.insert(1, PlateShear(hierarchy, MAX_ROW_DIM))
        # The affine layer can be moved without moving what rows make of its image. An optimiser would pull it in: the
        # noise in what rows take from above costs the more, the further out a draw is, and rows do not follow in time.
        affine = TriangularAffine(len(hierarchy.top))
        affine.step = AFFINE_STEP
        layers.insert(0, Split(Chain(affine, top(len(hierarchy.top))), hierarchy.dim))
    if hierarchy.shares:
        layers.insert(0, SharedAffine(hierarchy.dim, len(hierarchy.top)))
    return Chain(*layers)


def within_rows(hierarchy: Hierarchy, flow: Layer) -> Chain:
    """A flow of all latents at once, then couplings within the rows of plates.

    Rows that the data tie together are for a joint flow. What belongs to one row, such as a weight and its own
    scale, is tied more closely than the rest, and often not like a Gaussian: twice a pair of couplings for skewness and
    tails, then a pair of affine ones.

    :param hierarchy: which coordinates are in which plates.
    :param flow: of vectors as a flat latent holds them.

    Example::

        >>> from pyro_nflows.model.hierarchy import Hierarchy, Outline
        >>> plates = {"feature": 0}
        >>> hierarchy = Hierarchy.of_outlines({"scale": Outline((3,), plates), "weight": Outline((3,), plates)})
        >>> len(within_rows(hierarchy, default(6)))
        22
    """
    need_hierarchy("within_rows", hierarchy)
    shape, affine = SinhArcsinh(SHAPE_BOUND), Affine()
    sweep: list[tuple[Transformer, bool]] = [(shape, False), (shape, True), (affine, True), (affine, False)]
    couplings = [RowCoupling(hierarchy, transformer, flip=flip) for transformer, flip in NUM_SWEEPS * sweep]
    order = hierarchy.order
    layers = list(flow) if isinstance(flow, Chain) else [flow]
    return Chain(*layers, Permutation(order), *couplings, Permutation(order.argsort()))
