"""Many numbers as functions of a few: regressed on learned features, whose network is fitted to what they share."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..modes.lbfgs import climb
from ..nets.features import Features

#: Iterations for a network, the steps that they remember, and the gain, as a share, that is none.
NUM_ITERATIONS, MEMORY, LEVEL = 1500, 50, 1e-9
#: What coefficients of learned features cost, so that they are not huge for nothing; and those of the hubs themselves.
RIDGE, LINEAR = 1e-6, 1e-12


@torch.no_grad()
def regressed(
    features: Features, x: Tensor, y: Tensor, weight: Tensor, check: Callable[[], None] = lambda: None
) -> Tensor:
    r"""Coefficients of features for many numbers, with the features' network fitted to what needs it most.

    What of :math:`y` is not linear in :math:`x` has a few directions in which most of it is (principal components of
    the residuals): the network is fitted to these, and :math:`y` is regressed on its outputs and on :math:`x`.

    :param features: of :math:`x`; their network is fitted in place.
    :param x: ``(N, num_hubs)``.
    :param y: ``(N, M)``.
    :param weight: how much each point matters, ``(N,)``.
    :param check: called now and then; it may raise an error where there is no time left.
    :return: the coefficients, the constant first, ``(1 + num_features, M)``.

    Example::

        >>> x = torch.linspace(-1, 1, 64, dtype=torch.double)[:, None]
        >>> powers, features = x ** torch.arange(5), Features(1)
        >>> found = regressed(features, x, powers, torch.ones(64))
        >>> fitted = found[0] + features(x.float()).detach() @ found[1:].float()
        >>> bool((fitted - powers).abs().max() < 0.05)
        True
    """
    ones, root = x.new_ones(len(x), 1), (weight / weight.mean()).sqrt().to(x)[:, None]
    basis, _ = torch.linalg.qr(root * torch.cat([ones, x], 1))
    left = root * y - basis @ (basis.T @ (root * y))
    values, vectors = torch.linalg.eigh(left @ left.T)
    if features.net is not None and values[-1] > 0:
        num = features.output_dim - x.shape[1] * features.is_plain
        share = (values.flip(0)[:num].clamp(min=0.0) / values[-1]).sqrt()
        _fit(features.net, x, vectors.flip(1)[:, :num] * len(x) ** 0.5, root, share, check)
    seen = root * torch.cat([ones, features(x.to(next(features.parameters()))).to(x)], 1)
    gram = seen.T @ seen
    ridge = torch.full_like(gram[0], LINEAR)
    ridge[1 : 1 + features.output_dim - x.shape[1] * features.is_plain] = RIDGE
    return torch.linalg.solve(gram + (ridge * gram.diagonal().mean()).diag(), seen.T @ (root * y))


def _fit(net: nn.Module, x: Tensor, y: Tensor, root: Tensor, share: Tensor, check: Callable[[], None]) -> None:
    """Fit a network to directions ``y``, each by its share, of which ``root`` times it is near."""
    precise = copy.deepcopy(net).to(x)
    parameters = list(precise.parameters())

    def loss() -> Tensor:
        size = torch.stack([parameter.square().sum() for parameter in parameters]).sum()
        return (share * (root * precise(x) - y)).square().mean() + RIDGE * size

    climb(parameters, loss, NUM_ITERATIONS, check, memory=MEMORY, level=LEVEL)
    for parameter, found in zip(net.parameters(), parameters):
        parameter.copy_(found)
