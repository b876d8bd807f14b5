r"""Sites that are written non-centered: what scales them elsewhere in the model, as known from outside of it.

In ``weight = tau * scale * eta`` with ``eta ~ Normal(0, 1)``, the prior of ``eta`` says nothing of the scale
:math:`g = \tau \lambda`. Where that is known all the same (:mod:`pyro_nflows.model.recovery`), ``eta`` is the image of
a coordinate :math:`v`, for a centering :math:`c` in :math:`[0, 1]`:

.. math:: z = g^{-c} v, \qquad \log\left|\frac{dz}{dv}\right| = -c \log g .

At :math:`c = 0` it is the latent itself, and at :math:`c = 1` the weight: the coordinates that the weight would have
in a model that is written centered (:mod:`pyro_nflows.model.centering`).
"""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple

from torch import Tensor


class ScaleSite(NamedTuple):
    """A latent whose value is a factor of the scale of another one.

    :param name: the site's name.
    :param power: the power to which it is one, such as 1/2 of a variance.
    :param is_log: whether the value is the factor's logarithm.
    :param num_dims: how many dimensions of one its value is given on the right, those of the other site's events.
    """

    name: str
    power: float
    is_log: bool = False
    num_dims: int = 0

    def __str__(self) -> str:
        of = f"exp({self.name})" if self.is_log else self.name
        return of if self.power == 1 else f"{of}^{self.power:g}"

    def log_factor(self, values: Mapping[str, Tensor]) -> Tensor:
        """The logarithm of the factor, at the values of the sites of one run.

        Example::

            >>> import torch
            >>> ScaleSite("variance", 0.5).log_factor({"variance": torch.tensor(1.0).exp()})
            tensor(0.5000)
        """
        value = values[self.name]
        log = value if self.is_log else value.log()
        return self.power * log.reshape(log.shape + (1,) * self.num_dims)


class Center(NamedTuple):
    """How centered a site is, and, where it is written non-centered, by what it is scaled.

    :param number: :math:`c`, in the shape of the site or of less.
    :param scales: the sites that make its scale; none where its own prior has it.
    """

    number: Tensor
    scales: tuple[ScaleSite, ...] = ()


#: The name under which a distribution holds the logarithm of the scale with which its values are used.
LOG_SCALE = "log_scale_elsewhere"


def scaled_elsewhere(fn: Any, scales: Sequence[ScaleSite], values: Mapping[str, Tensor]) -> Any:
    """A distribution that knows by what its values are scaled elsewhere in a run; otherwise the same.

    :param fn: the distribution of the site.
    :param scales: the sites that make the scale; without any, ``fn`` is as it was.
    :param values: the values of these in the run.
    """
    if not scales:
        return fn
    new = copy(fn)
    first, *others = (scale.log_factor(values) for scale in scales)
    vars(new)[LOG_SCALE] = sum(others, start=first)
    return new
