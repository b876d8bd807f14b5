"""The importance-weighted sibling of the ELBO."""

import math

from torch import Tensor

from ..layers.base import Exactness, Layer
from ..objectives.base import Gradient
from ..objectives.tempered import tempered
from .elbo import ELBO


class IWAE(ELBO):
    r"""The importance-weighted bound [1]: tighter than the ELBO, equal to it at one particle.

    .. math:: E \log \frac1K \sum_{k=1}^K \frac{p(x, z_k)}{\hat q(z_k)}

    The mean is over whole particles: all sites and all plates are summed first (unlike Pyro's ``RenyiELBO``, which
    averages inside a plate that all sites share).

    :param num_particles: draws :math:`K`.
    :param gradient: ``"total"``, ``"path"`` or ``"dreg"``; by default ``"dreg"`` where the guide can.
    :param temper: whether gradients far from the posterior are those of flattened weights
        (:mod:`~pyro_nflows.objectives.tempered`); the loss is exact either way.
    :param compile: as for :class:`ELBO`.
    :raises ValueError: for other values; when evaluated, on a flow whose weights are unbiased in log space only.

    Example::

        >>> import pyro
        >>> from pyro_nflows import AutoFlow
        >>> import pyro.distributions as dist
        >>> from pyro.infer.autoguide import init_to_feasible
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        ...
        >>> guide = AutoFlow(model, init_loc_fn=init_to_feasible, init_scale=1.0)
        >>> abs(IWAE(num_particles=100).loss(model, guide)) < 1e-3
        True

    **References**

    [1] Y. Burda, R. Grosse, R. Salakhutdinov (2016). Importance Weighted Autoencoders.
    """

    _gradients = (Gradient.TOTAL, Gradient.PATH, Gradient.DREG)
    best_gradient = Gradient.DREG
    pairs = False  # its bound is that of independent particles

    def __init__(
        self,
        num_particles: int = 16,
        gradient: Gradient | str | None = None,
        *,
        temper: bool = True,
        compile: bool = False,
    ):
        super().__init__(num_particles, gradient, compile=compile)
        if not isinstance(temper, bool):
            raise TypeError(f"IWAE: temper must be True or False, got {temper!r}")
        self.temper = temper

    def bound(self, log_weight: Tensor) -> Tensor:
        return log_weight.logsumexp(0) - math.log(len(log_weight))

    def coefficients(self, log_weight: Tensor, gradient: Gradient) -> tuple[Tensor, Tensor]:
        # No weight at all where every draw's is zero.
        weights = tempered(log_weight) if self.temper else log_weight.softmax(0).nan_to_num()
        return weights.square() if gradient is Gradient.DREG else weights, weights

    def check_layer(self, layer: Layer) -> None:
        if layer.exactness < Exactness.PROPER:
            raise ValueError(
                "IWAE averages weights, but this flow's log-weight is unbiased in log space only (its "
                "log-determinant is a roulette estimate); train on ELBO, or use layers with an exact log-determinant"
            )
