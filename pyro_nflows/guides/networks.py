r"""Guides made of whole networks."""

from .. import flows
from .named import NamedGuide


class AutoFlowified(NamedGuide, flow=flows.flowified):
    r"""A perceptron made a flow [1]: dense layers and leaky rectifiers, wider than the latents by noise.

    Its density is known up to a lower bound (the auxiliary ELBO), as for :class:`~pyro_nflows.AutoCIF`; importance
    weights, IWAE and PSIS are exact. With ``extra_dims=0`` it is a bijection.

    :param model: a Pyro model.
    :param num_layers: number of hidden layers.
    :param extra_dims: by how much these are wider than the latents.
    :param hidden_dims: widths of the network that says what the last layer drops.
    :param init_loc_fn: where to start, as for Pyro's autoguides.
    :param init_scale: standard deviation of the fresh guide in unconstrained space.
    :param create_plates: as for Pyro's autoguides.
    :param centering: of hierarchical sites, as for :class:`~pyro_nflows.AutoFlow`.
    :param structure: joint, or following plates, as for :class:`~pyro_nflows.AutoFlow`.
    :param amortize: of rows in subsampled plates, as for :class:`~pyro_nflows.AutoFlow`.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> guide = AutoFlowified(lambda: pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1)))
        >>> guide()["z"].shape
        torch.Size([3])

    **References**

    [1] B. Máté, S. Klein, T. Golling, F. Fleuret (2022). Flowification: Everything is a Normalizing Flow.
    """

    _full_rank = False
