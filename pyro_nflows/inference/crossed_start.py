r"""Where the rows of several plates start: at a joint mode, and how they follow what is outside of plates there.

Rows of one block are independent given all else, so Newton's method takes one block after the other at first, each row
by its own curvature. Blocks that cross are tied by what all of their rows share, such as a constant that may be in
either, along which such sweeps are slow; so Newton's method for all latents goes on from there. Its steps, and
the slopes :math:`S = -\Lambda_{rr}^{-1} \Lambda_{rg}` of rows in what is outside of plates, :math:`g`, are found by
conjugate gradients with the blocks' curvatures as preconditioner: each iteration is one product with the Hessian
:math:`-\Lambda`, over all data, minibatch after minibatch. With :math:`V = (I, S)`, :math:`V^\top \Lambda V` is then
the precision of :math:`g` with all rows integrated out.

The mode may be far from the middle: with many factors, that of a noise's scale is too small by many of its widths. So a
few steps follow for the mean of the Gaussian with this curvature, by gradients that are averaged over its draws, which
end where its ELBO is largest [1]: of rows by their blocks' curvature, and of what is outside along :math:`V`.

**References**

[1] M. Opper, C. Archambeau (2009). The Variational Gaussian Approximation Revisited.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..layers import PlateAffine
from ..model.crossed_terms import CrossedTerms
from ..model.row_owners import SeveralRowsError
from ..model.rows import Rows
from ..modes.gaussians import put_rows, put_top
from ..modes.plate_curvature import root_of
from ..numerics import in_pairs
from .crossed_derivatives import CrossedDerivatives, RowPlaces

#: Sweeps over the blocks, Newton steps of all latents after these, and halvings of a step that leads downhill.
NUM_SWEEPS, NUM_NEWTON, NUM_HALVINGS = 40, 8, 10
#: The share of the log joint that a sweep has to gain, if another one is to follow.
GAIN = 1e-3
#: Steps for the mean of a Gaussian, of which rows take a share, since all of them do at once; and draws of it for the
#: gradient and for the curvature, in pairs.
NUM_SETTLING, SHARE, NUM_DRAWS, NUM_CURVED = 6, 0.5, 8, 2
#: Iterations of conjugate gradients at most, and the shares of the residual at which they end, of steps and of slopes:
#: an error of slopes along what rows share is as many times as large as its variance is.
NUM_ITERATIONS, SOLVED, SLOPES_SOLVED = 60, 1e-3, 1e-6
#: A step, in units of widths given all else, that is none any more; and the longest of a row.
SETTLED, LONGEST = 0.02, 1000.0
#: What is known at a point.
STATE = "value", "phase", "number", "roots", "slopes", "top_root"


class CrossedStart:
    """The mode of all rows, and the curvature there.

    :param terms: the model.
    :param loc: where it begins, a flat latent of all rows.
    """

    def __init__(self, terms: CrossedTerms, loc: Tensor):
        self.terms, self.z, self.top = terms, loc.clone(), terms.whole.top
        self.columns = [*([self.top[None]] if len(self.top) else []), *(b.columns for b in terms.whole.blocks)]
        self.rows, self.model = [RowPlaces(at) for at in self.columns], CrossedDerivatives(terms)
        self.roots = [torch.zeros(*at.shape, at.shape[1], dtype=torch.float64) for at in self.columns]
        self.slopes = torch.zeros(len(self.top), len(loc), dtype=torch.float64)
        self.top_root = torch.zeros(len(self.top), len(self.top), dtype=torch.float64)
        self.offsets = torch.zeros_like(loc)[None]
        self.value, self.phase, self.number = -math.inf, 0, 0

    def go_to(self, loc: Tensor) -> None:
        """Begin elsewhere."""
        self.z, self.value = loc.clone(), self._value(loc)

    def _look_at_rows(self) -> None:
        """Tell apart rows of a block that are not independent of each other, whose curvatures would be mixed up."""
        with contextlib.suppress(SeveralRowsError):
            colours = self.terms.reads_at(self.z).colours
            num_top = bool(len(self.top))
            found = [
                RowPlaces(at, colour if colour.any() else None) for at, colour in zip(self.columns[num_top:], colours)
            ]
            self.rows = [*self.rows[:num_top], *found]

    @torch.no_grad()
    def run(
        self,
        end: PlateAffine,
        is_over: Callable[[], bool] = lambda: False,
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        """Go to the mode, and from there to the mean of a Gaussian whose ELBO is largest; place an affine end there.

        :param end: what is placed.
        :param is_over: whether somebody is waiting.
        :param moved: is called after each of its moves, between which :meth:`where` says all that there is to know.
        """
        self._look_at_rows()
        phases: list[tuple[int, Callable[[], bool]]] = [
            # or rows would make up for what is outside of plates
            (NUM_SWEEPS * bool(len(self.top)), lambda: self._block(0) < 1),
            (NUM_SWEEPS, self._sweep),
            (NUM_NEWTON, lambda: self._newton() < SETTLED),
            (1, lambda: self._placed(end)),
            (NUM_SETTLING, lambda: self._settled(end)),
        ]
        while self.phase < len(phases):
            most, move = phases[self.phase]
            is_left = self.number < most and not (is_over() and most > 1)
            if is_left and not move():
                self.number += 1
            else:
                self.phase, self.number = self.phase + 1, 0
            if is_left:
                moved()

    def where(self) -> dict[str, Any]:
        """How far it has come: tensors and plain values."""
        return {name: getattr(self, name) for name in ("z", *STATE)}

    def take(self, where: dict[str, Any]) -> None:
        """Go on from :meth:`where`."""
        for name in ("z", *STATE):
            setattr(self, name, where[name])

    def _sweep(self) -> bool:
        """A step of each block; whether that is enough of them."""
        before = self.value
        longest = max([self._block(number) for number in range(len(self.columns))])
        return longest < SETTLED or self.value - before < GAIN * abs(before)

    def _placed(self, end: PlateAffine) -> bool:
        if len(self.top):
            self._follow()
        self.place(end)
        return True

    def _settled(self, end: PlateAffine) -> bool:
        """A step of the mean of a Gaussian, with draws of it; whether it is none."""
        self.offsets = end.scaled(in_pairs(torch.randn(NUM_DRAWS, len(self.z)).to(self.z)))
        self.value = self._value(self.z)
        step = self._mean_step()
        self.offsets = torch.zeros_like(self.z)[None]
        return self._placed(end) and step < SETTLED

    @torch.no_grad()
    def place(self, end: PlateAffine) -> None:
        """Start an affine end there."""
        end.loc.copy_(self.z)
        put_top(end, self.top_root)
        rows, own = [], self.roots[len(self.roots) - len(end.hierarchy.blocks) :]
        for root, block in zip(own, end.hierarchy.blocks):
            taken = root.new_zeros(block.num_rows, block.row_dim, end.hierarchy.width_above(block))
            taken[..., : len(self.top)] = self.slopes[:, block.columns].movedim(0, -1) @ self.top_root
            rows.append((root, taken))
        put_rows(end, Rows.of(end.hierarchy, {}), rows)

    def _block(self, number: int) -> float:
        """A step of a block's rows given all else; the length of the longest."""
        at = self.columns[number]
        grad, products = self._derivatives(self.rows[number].vectors(self.z))
        self.roots[number] = self.rows[number].roots(products)
        white = self._shortened((self.roots[number].mT @ grad[at][..., None])[..., 0])
        step = torch.zeros_like(grad)
        step[at] = (self.roots[number] @ white[..., None])[..., 0]
        return float(white.norm(dim=-1).max()) * self._go(step)

    def _newton(self) -> float:
        """A step of all latents; the length of the longest of a row, in units of widths given all else."""
        grad = self._curved()
        step = self._solved(grad[None], torch.ones_like(grad, dtype=torch.bool))[0]
        longest = max(float(self._shortened(self._white(step, n)).norm(dim=-1).max()) for n in range(len(self.columns)))
        return longest * self._go(step)

    def _mean_step(self) -> float:
        """A step of the mean of a Gaussian; the length of the longest of a row."""
        grad, step, longest = self._curved(), torch.zeros(len(self.z), dtype=torch.float64), 0.0
        for root, at in list(zip(self.roots, self.columns))[bool(len(self.top)) :]:
            white = SHARE * self._shortened((root.mT @ grad[at][..., None])[..., 0])
            step[at] = (root @ white[..., None])[..., 0]
            longest = max(longest, float(white.norm(dim=-1).max()))
        if len(self.top):
            along = RowPlaces(self.top[None]).vectors(self.z).double() + self.slopes
            white = self._shortened(self.top_root.T @ (along @ grad))
            step += (self.top_root @ white) @ along
            longest = max(longest, float(white.norm()))
        return longest * self._go(step)

    def _curved(self) -> Tensor:
        """The gradient, averaged over draws, with the blocks' curvature taken."""
        vectors, num = torch.cat([rows.vectors(self.z) for rows in self.rows]), len(self.offsets)
        curved = range(num)[:: max(1, num // NUM_CURVED)]
        found = [self._derivatives(vectors if n in curved else vectors[:1], self.offsets[n]) for n in range(num)]
        products = torch.stack([found[n][1] for n in curved]).mean(0)
        parts = products.split([rows.num for rows in self.rows])
        self.roots = [rows.roots(part) for rows, part in zip(self.rows, parts)]
        return torch.stack([part for part, _ in found]).mean(0)

    def _follow(self) -> None:
        """How rows follow what is outside of plates, and the width of that with all rows integrated out."""
        units = RowPlaces(self.top[None]).vectors(self.z)
        products = self._derivatives(units)[1]
        in_rows = torch.ones_like(products[0], dtype=torch.bool)
        in_rows[self.top] = False
        self.slopes = self._solved(products * in_rows, in_rows, SLOPES_SOLVED)
        along = units.double() + self.slopes
        precision = -(self._derivatives(along.to(self.z))[1] @ along.T)
        self.top_root = root_of(0.5 * (precision + precision.T)[None])[0]

    # ---- parts ------------------------------------------------------------------------------------------------

    def _white(self, step: Tensor, number: int) -> Tensor:
        """A block's part of a step in units of widths."""
        return torch.linalg.solve_triangular(self.roots[number], step[self.columns[number]][..., None], upper=False)[
            ..., 0
        ]

    @staticmethod
    def _shortened(white: Tensor) -> Tensor:
        return white * (LONGEST / white.norm(dim=-1, keepdim=True).clamp(min=LONGEST))

    def _preconditioned(self, residual: Tensor, where: Tensor) -> Tensor:
        found = torch.zeros_like(residual)
        for root, at in zip(self.roots, self.columns):
            found[:, at] = (root @ (root.mT @ residual[:, at][..., None]))[..., 0]
        return found * where

    def _solved(self, right: Tensor, where: Tensor, until: float = SOLVED) -> Tensor:
        """Solutions of the precision by conjugate gradients, for several right-hand sides.

        :param right: ``(num, D)``.
        :param where: the coordinates that are not held fixed.
        :param until: the share of the residual at which it ends.
        """
        found, rest = torch.zeros_like(right), right.clone()
        direction = ahead = self._preconditioned(rest, where)
        size = first = (rest * ahead).sum(-1)
        for _ in range(NUM_ITERATIONS):
            product = -self._derivatives(direction.to(self.z))[1] * where
            curvature = (direction * product).sum(-1)
            goes = (curvature > 0) & (size > until**2 * first)
            if not bool(goes.any()):  # solved; or not convex, where the way so far is taken, or that of the blocks
                stuck = (found == 0).all(-1) & (first > 0)
                return torch.where(stuck[:, None], direction, found)
            length = torch.where(goes, size / curvature, 0.0)[:, None]
            found, rest = found + length * direction, rest - length * product
            ahead = self._preconditioned(rest, where)
            before, size = size, torch.where(goes, (rest * ahead).sum(-1), size)
            direction = torch.where(goes[:, None], ahead + (size / before)[:, None] * direction, direction)
        return found

    def _go(self, step: Tensor) -> float:
        """Take as much of a step as does not lead downhill: the share of it."""
        share = 1.0
        for _ in range(NUM_HALVINGS):
            z = (self.z + share * step).to(self.z)
            value = self._value(z)
            if value >= self.value - 1e-7 * abs(self.value):
                self.z, self.value = z, value
                return share
            share *= 0.5
        return 0.0

    def _value(self, z: Tensor) -> float:
        """The mean over the offsets."""
        return sum(self.model.value(z + offset) for offset in self.offsets) / len(self.offsets)

    def _derivatives(self, vectors: Tensor, offset: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        return self.model.at(self.z + offset, vectors)
