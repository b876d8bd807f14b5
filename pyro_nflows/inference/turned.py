r"""The directions in which a flow given hubs works: those in which the curvature changes most with the hubs.

Behind a Gaussian of factor :math:`L`, the log joint has in whitened coordinates :math:`x` the curvature
:math:`-L^\top H L`, about the identity on average. The hubs are :math:`L_g x`, so the QR decomposition of
:math:`L_g^\top` has the directions that they are made of. One standard deviation along each, and one back, give the
change :math:`C_k` of the curvature of what is orthogonal to them; the eigenvectors of :math:`\sum_k C_k^2` with the
largest eigenvalues are the directions in which the others depend most on the hubs. If the :math:`C_k` commute, as for
a scale of whitened latents, the others are independent in them given the hubs, to second order.
"""

import torch
from torch import Tensor

from ..engine import DensityGradient, Trainer
from ..flows import TurnedHubs
from ..flows.whitened import Whitened
from ..layers import TriangularAffine


def turn(trainer: Trainer, layer: Whitened) -> None:
    """Turn a fresh flow given hubs to the directions of the curvature behind its end; other flows stay.

    :param trainer: has the model.
    :param layer: its end is a Gaussian near to the posterior.
    """
    flow, end = layer.flow, layer.end
    if not (isinstance(flow, TurnedHubs) and isinstance(end, TriangularAffine)):
        return
    with torch.no_grad():

        def find() -> tuple[Tensor, ...]:
            return (directions(trainer.density, end.loc, end.scale_tril(), flow.hubs, flow.num_axes),)

        flow.turn.put(trainer.journal.step("turn", find)[0])


def directions(density: DensityGradient, loc: Tensor, scale_tril: Tensor, hubs: tuple[int, ...], num: int) -> Tensor:
    """Orthonormal rows in whitened coordinates: what the hubs are made of, then ``num`` others.

    :param density: the log joint.
    :param loc: of a Gaussian, with ``scale_tril``.
    :param hubs: where the flat latent holds the hubs.
    :param num: how many of the others; fewer, where the curvature cannot be had.

    Example::

        >>> density = DensityGradient(lambda z: -0.5 * ((1 + z[:, 0].exp()) * z[:, 2].square() + z.square().sum(-1)))
        >>> directions(density, torch.zeros(3), torch.eye(3), (0,), 1).abs()
        tensor([[1., 0., 0.],
                [0., 0., 1.]])
    """
    factor = scale_tril.double()
    top = torch.linalg.qr(factor[list(hubs)].T)[0]
    squares = torch.zeros_like(factor)
    for column in top.T:
        ahead, back = (_curvature(density, loc, factor, sign * column) for sign in (1.0, -1.0))
        change = 0.5 * (ahead - back)
        change = change - top @ (top.T @ change)
        change = change - (change @ top) @ top.T
        if bool(torch.isfinite(change).all()):
            squares += change @ change.T
    values, vectors = torch.linalg.eigh(squares)
    num = min(num, int((values > 0).sum()), len(loc) - len(hubs))
    return torch.cat([top, vectors.flip(1)[:, :num]], 1).T.to(loc)


def _curvature(density: DensityGradient, loc: Tensor, factor: Tensor, x: Tensor) -> Tensor:
    hessian = density.hessian((loc.double() + factor @ x).to(loc)).double()
    return factor.T @ hessian @ factor
