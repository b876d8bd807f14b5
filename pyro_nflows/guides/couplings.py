r"""Guides of couplings, by the name of their flow. Each is :class:`~pyro_nflows.AutoFlow` with that flow."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from pyro.infer.autoguide import init_to_median

from .. import flows
from .flow import AutoFlow


class AutoNICE(AutoFlow):
    r"""Additive couplings with a final scaling [1].

    All layers but the last conserve volume.

    :param model: a Pyro model.
    :param num_layers: number of couplings.
    :param hidden_dims: widths of the networks' hidden layers.
    :param init_loc_fn: where to start, as for Pyro's autoguides.
    :param init_scale: standard deviation of the fresh guide in unconstrained space.
    :param create_plates: as for Pyro's autoguides.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> guide = AutoNICE(lambda: pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1)))
        >>> guide()["z"].shape
        torch.Size([3])

    **References**

    [1] L. Dinh, D. Krueger, Y. Bengio (2014). NICE: Non-linear Independent Components Estimation.
    """

    _full_rank = False

    def __init__(
        self,
        model: Callable[..., Any],
        num_layers: int = 8,
        hidden_dims: Sequence[int] = (32, 32),
        *,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
        create_plates: Callable[..., Any] | None = None,
    ):
        build = functools.partial(flows.nice, num_layers=num_layers, hidden_dims=hidden_dims)
        super().__init__(model, build, init_loc_fn=init_loc_fn, init_scale=init_scale, create_plates=create_plates)


class AutoRealNVP(AutoFlow):
    r"""Affine couplings [1]: as cheap backwards as forwards.

    :class:`~pyro_nflows.AutoFlow` is this flow with a full-rank end.

    :param model: a Pyro model.
    :param num_layers: number of :class:`~pyro_nflows.layers.Coupling` layers.
    :param hidden_dims: widths of the networks' hidden layers.
    :param init_loc_fn: where to start, as for Pyro's autoguides.
    :param init_scale: standard deviation of the fresh guide in unconstrained space.
    :param create_plates: as for Pyro's autoguides.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> guide = AutoRealNVP(lambda: pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1)))
        >>> guide()["z"].shape
        torch.Size([3])

    **References**

    [1] L. Dinh, J. Sohl-Dickstein, S. Bengio (2016). Density Estimation using Real NVP.
    """

    _full_rank = False

    def __init__(
        self,
        model: Callable[..., Any],
        num_layers: int = 8,
        hidden_dims: Sequence[int] = (32, 32),
        *,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
        create_plates: Callable[..., Any] | None = None,
    ):
        build = functools.partial(flows.realnvp, num_layers=num_layers, hidden_dims=hidden_dims)
        super().__init__(model, build, init_loc_fn=init_loc_fn, init_scale=init_scale, create_plates=create_plates)


class AutoSpline(AutoFlow):
    r"""Rational-quadratic spline couplings [1], linear in the tails.

    The most flexible bijective guide in few layers, at about twice the cost of affine couplings.

    :param model: a Pyro model.
    :param num_layers: number of :class:`~pyro_nflows.layers.Coupling` layers.
    :param hidden_dims: widths of the networks' hidden layers.
    :param num_bins: bins of each spline.
    :param bound: the splines act on ``[-bound, bound]``, in base standard deviations.
    :param init_loc_fn: where to start, as for Pyro's autoguides.
    :param init_scale: standard deviation of the fresh guide in unconstrained space.
    :param create_plates: as for Pyro's autoguides.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> guide = AutoSpline(lambda: pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1)))
        >>> guide()["z"].shape
        torch.Size([3])

    **References**

    [1] C. Durkan, A. Bekasov, I. Murray, G. Papamakarios (2019). Neural Spline Flows.
    """

    _full_rank = False

    def __init__(
        self,
        model: Callable[..., Any],
        num_layers: int = 4,
        hidden_dims: Sequence[int] = (32, 32),
        num_bins: int = 8,
        bound: float = 5.0,
        *,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
        create_plates: Callable[..., Any] | None = None,
    ):
        build = functools.partial(
            flows.spline, num_layers=num_layers, hidden_dims=hidden_dims, num_bins=num_bins, bound=bound
        )
        super().__init__(model, build, init_loc_fn=init_loc_fn, init_scale=init_scale, create_plates=create_plates)


class AutoGlow(AutoFlow):
    r"""Glow for vectors [1]: a coupling, an invertible linear layer and a scaling in turn.

    The linear layers mix all coordinates between couplings, at :math:`D^2` parameters each.

    :param model: a Pyro model.
    :param num_layers: number of steps, each a :class:`~pyro_nflows.layers.Coupling`, a
        :class:`~pyro_nflows.layers.LULinear` and an :class:`~pyro_nflows.layers.ActNorm`.
    :param hidden_dims: widths of the networks' hidden layers.
    :param init_loc_fn: where to start, as for Pyro's autoguides.
    :param init_scale: standard deviation of the fresh guide in unconstrained space.
    :param create_plates: as for Pyro's autoguides.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> guide = AutoGlow(lambda: pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1)))
        >>> guide()["z"].shape
        torch.Size([3])

    **References**

    [1] D. Kingma, P. Dhariwal (2018). Glow: Generative Flow with Invertible 1x1 Convolutions.
    """

    _full_rank = False

    def __init__(
        self,
        model: Callable[..., Any],
        num_layers: int = 8,
        hidden_dims: Sequence[int] = (32, 32),
        *,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
        create_plates: Callable[..., Any] | None = None,
    ):
        build = functools.partial(flows.glow, num_layers=num_layers, hidden_dims=hidden_dims)
        super().__init__(model, build, init_loc_fn=init_loc_fn, init_scale=init_scale, create_plates=create_plates)
