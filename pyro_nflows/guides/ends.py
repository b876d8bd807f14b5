r"""The affine end of a joint guide: full, sparse, of low rank, or diagonal; which one pays, and why.

A full matrix has :math:`D (D - 1) / 2` numbers. Where the log density ties each latent to a few others only, its
precision has few, whatever the order in which the model draws them (:mod:`pyro_nflows.model.pattern`), and a sparse
end has as many as its Cholesky factor. Where there is no such pattern, as with non-centered Gaussian processes, many
latents have enough in a scale for each of them and a few directions that the data say more of.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pyro import poutine
from torch import Tensor

from ..layers import LocScale, LowRankAffine, SparseAffine, TriangularAffine
from ..model.bound import BoundModel
from ..model.elimination import Elimination
from ..model.latents import Latents
from ..model.log_joint import LogJoint
from ..model.pattern import pattern_of
from ..system.exclusive import validation
from ..system.randomness import forked
from .joint import looked

#: What a guide may be asked for.
Ends = Literal["auto", "full", "sparse", "low_rank", "diagonal"]
#: Up to so many latents, a full matrix costs too little to look for anything else.
MAX_DENSE = 64
#: Above this many dimensions the end is full only where that is asked for.
MAX_FULL_RANK = 2048
#: A sparse end pays with at most this share of a full one's numbers.
WORTH = 0.5
#: Directions of an end of low rank.
RANK = 32


@dataclass(frozen=True)
class End:
    """The affine end of a joint guide.

    :param kind: which one.
    :param elimination: of a sparse one.
    :param why: in words, where it was chosen.

    Example::

        >>> End("diagonal").made(torch.zeros(3), 0.1)
        LocScale(3)
    """

    kind: Ends
    elimination: Elimination | None = None
    why: str = ""

    def made(self, loc: Tensor, init_scale: float) -> LocScale | TriangularAffine | SparseAffine | LowRankAffine:
        """The layer, at its start."""
        dim = loc.numel()
        if self.elimination is not None:
            return SparseAffine(self.elimination, loc, init_scale)
        if self.kind == "low_rank":
            with forked(0):
                return LowRankAffine(dim, RANK, loc, init_scale)
        return (TriangularAffine if self.kind == "full" else LocScale)(dim, loc, init_scale)

    def listed(self) -> list[Any]:
        """As plain values, for a state; :meth:`unlisted` reads them."""
        return [self.kind, self.elimination and self.elimination.listed(), self.why]

    @staticmethod
    def unlisted(listed: list[Any]) -> "End":
        """What :meth:`listed` was made of."""
        kind, elimination, why = listed
        return End(kind, elimination and Elimination.unlisted(elimination), why)


def end_in(name: str, asked: Ends, latents: Latents, is_free: bool, bound: BoundModel) -> tuple[End, Latents]:
    """The end of a joint guide, with the latents in the coordinates that it is for.

    Coordinates informed by the prior tie each latent of a chain to all before it. Where they are left to be chosen, and
    only the latents as they are have a sparse pattern, those are taken.

    :param is_free: whether coordinates are to be chosen.
    :param bound: the model with its arguments.
    """

    def on(latents: Latents) -> Callable[[], LogJoint]:
        return lambda: looked(LogJoint(bound, latents))

    may_differ = is_free and bool(latents.centering) and asked in ("auto", "sparse") and latents.dim > MAX_DENSE
    end = chosen_end(name, "auto" if may_differ else asked, latents.dim, on(latents))
    if not may_differ:
        return end, latents
    plain = latents.centered({})
    other = chosen_end(name, asked if end.kind != "sparse" else "auto", latents.dim, on(plain))
    return (other, plain) if _has_fewer(other, end) else (end, latents)


def chosen_end(name: str, asked: Ends, dim: int, joint: Callable[[], LogJoint]) -> End:
    """The end that is asked for; of those that may be, the one with the fewest numbers that loses nothing.

    :param name: of the guide's class, for errors.
    :param asked: what is asked for.
    :param dim: number of latents.
    :param joint: makes the log joint, by which a pattern is found.
    :raises ValueError: if a sparse end is asked for, and there is no pattern.
    """
    if asked not in ("auto", "sparse"):
        return End(asked, None, "as asked for")
    if asked == "auto" and dim <= MAX_DENSE:
        return End("full")
    elimination, full = _elimination(joint), dim * (dim + 1) // 2
    if elimination is not None and (asked == "sparse" or elimination.size <= WORTH * full):
        return End("sparse", elimination, f"{elimination.size + dim:,} numbers, of {full:,} of a full matrix")
    if asked == "sparse":
        raise ValueError(
            f'{name}: end="sparse" needs a log density that ties each latent to a few others, and this one ties most '
            'to most; in a centered parameterisation (centering=None) it may not. Or take end="low_rank" or "full"'
        )
    why = "the log density ties most latents to most others"
    return End("full", None, why) if dim <= MAX_FULL_RANK else End("low_rank", None, f"rank {RANK}: {why}")


def _has_fewer(other: End, end: End) -> bool:
    """Whether another end is sparse, with fewer numbers: near where an autoregression has no memory all look sparse."""
    if other.elimination is None:
        return False
    return end.elimination is None or other.elimination.size < end.elimination.size


def _elimination(joint: Callable[[], LogJoint]) -> Elimination | None:
    with poutine.block(), forked(), validation(False):
        density = joint()
        near = density.latents.init_loc()
        try:
            density.gather(near)
            pattern = pattern_of(lambda z: density.row(z[0])[None], near)
        except (RuntimeError, ValueError):  # the model cannot be evaluated there, or not differentiated twice
            return None
    return None if pattern is None else Elimination.of(pattern)
