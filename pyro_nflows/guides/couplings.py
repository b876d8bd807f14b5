r"""Guides of couplings, by the name of their flow. Each is :class:`~pyro_nflows.AutoFlow` with that flow."""

from .. import flows
from .named import NamedGuide


class AutoNICE(NamedGuide, flow=flows.nice):
    r"""Additive couplings with a final scaling [1].

    All layers but the last conserve volume.

    :param model: a Pyro model.
    :param num_layers: number of couplings.
    :param hidden_dims: widths of the networks' hidden layers.
    :param init_loc_fn: where to start, as for Pyro's autoguides.
    :param init_scale: standard deviation of the fresh guide in unconstrained space.
    :param create_plates: as for Pyro's autoguides.
    :param centering: of hierarchical sites, as for :class:`~pyro_nflows.AutoFlow`.
    :param structure: joint, or following plates, as for :class:`~pyro_nflows.AutoFlow`.
    :param amortize: of rows in subsampled plates, as for :class:`~pyro_nflows.AutoFlow`.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> guide = AutoNICE(lambda: pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1)))
        >>> guide()["z"].shape
        torch.Size([3])

    **References**

    [1] L. Dinh, D. Krueger, Y. Bengio (2014). NICE: Non-linear Independent Components Estimation.
    """

    _full_rank = False


class AutoRealNVP(NamedGuide, flow=flows.realnvp):
    r"""Affine couplings [1]: as cheap backwards as forwards.

    :class:`~pyro_nflows.AutoFlow` is this flow with a full-rank end.

    :param model: a Pyro model.
    :param num_layers: number of :class:`~pyro_nflows.layers.Coupling` layers.
    :param hidden_dims: widths of the networks' hidden layers.
    :param init_loc_fn: where to start, as for Pyro's autoguides.
    :param init_scale: standard deviation of the fresh guide in unconstrained space.
    :param create_plates: as for Pyro's autoguides.
    :param centering: of hierarchical sites, as for :class:`~pyro_nflows.AutoFlow`.
    :param structure: joint, or following plates, as for :class:`~pyro_nflows.AutoFlow`.
    :param amortize: of rows in subsampled plates, as for :class:`~pyro_nflows.AutoFlow`.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> guide = AutoRealNVP(lambda: pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1)))
        >>> guide()["z"].shape
        torch.Size([3])

    **References**

    [1] L. Dinh, J. Sohl-Dickstein, S. Bengio (2016). Density Estimation using Real NVP.
    """

    _full_rank = False


class AutoSpline(NamedGuide, flow=flows.spline):
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
    :param centering: of hierarchical sites, as for :class:`~pyro_nflows.AutoFlow`.
    :param structure: joint, or following plates, as for :class:`~pyro_nflows.AutoFlow`.
    :param amortize: of rows in subsampled plates, as for :class:`~pyro_nflows.AutoFlow`.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> guide = AutoSpline(lambda: pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1)))
        >>> guide()["z"].shape
        torch.Size([3])

    **References**

    [1] C. Durkan, A. Bekasov, I. Murray, G. Papamakarios (2019). Neural Spline Flows.
    """

    _full_rank = False


class AutoGlow(NamedGuide, flow=flows.glow):
    r"""Glow for vectors [1]: a coupling, an invertible linear layer and a scaling in turn.

    The linear layers mix all coordinates between couplings, at :math:`D^2` parameters each.

    :param model: a Pyro model.
    :param num_layers: number of steps, each a :class:`~pyro_nflows.layers.Coupling`, a
        :class:`~pyro_nflows.layers.LULinear` and an :class:`~pyro_nflows.layers.ActNorm`.
    :param hidden_dims: widths of the networks' hidden layers.
    :param transformer: what each coordinate goes through; see :mod:`pyro_nflows.transformers`.
    :param init_loc_fn: where to start, as for Pyro's autoguides.
    :param init_scale: standard deviation of the fresh guide in unconstrained space.
    :param create_plates: as for Pyro's autoguides.
    :param centering: of hierarchical sites, as for :class:`~pyro_nflows.AutoFlow`.
    :param structure: joint, or following plates, as for :class:`~pyro_nflows.AutoFlow`.
    :param amortize: of rows in subsampled plates, as for :class:`~pyro_nflows.AutoFlow`.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> guide = AutoGlow(lambda: pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1)))
        >>> guide()["z"].shape
        torch.Size([3])

    **References**

    [1] D. Kingma, P. Dhariwal (2018). Glow: Generative Flow with Invertible 1x1 Convolutions.
    """

    _full_rank = False
