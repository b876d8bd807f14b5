r"""Guides by the name of their flow. Each is :class:`~pyro_nflows.AutoFlow` with a flow and a diagonal end."""

from .. import flows
from .named import NamedGuide


class AutoPlanar(NamedGuide, flow=flows.planar):
    r"""Planar flow: a chain of hinges along learned directions [1].

    Weak: use it to reproduce results, not for accuracy. A full-rank affine layer follows, so it is at least as good
    as a Gaussian; the flow itself costs :math:`O(D)` a layer.

    :param model: a Pyro model.
    :param num_layers: number of :class:`~pyro_nflows.layers.Planar` layers.
    :param init_loc_fn: where to start, as for Pyro's autoguides.
    :param init_scale: standard deviation of the fresh guide in unconstrained space.
    :param create_plates: as for Pyro's autoguides.
    :param centering: of hierarchical sites, as for :class:`~pyro_nflows.AutoFlow`.
    :param structure: joint, or following plates, as for :class:`~pyro_nflows.AutoFlow`.
    :param amortize: of rows in subsampled plates, as for :class:`~pyro_nflows.AutoFlow`.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> guide = AutoPlanar(lambda: pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1)))
        >>> guide()["z"].shape
        torch.Size([3])

    **References**

    [1] D. Rezende, S. Mohamed (2015). Variational Inference with Normalizing Flows.
    """


class AutoRadial(NamedGuide, flow=flows.radial):
    r"""Radial flow: a chain of pushes away from, and pulls towards, learned centres [1].

    Weak: use it to reproduce results, not for accuracy. A full-rank affine layer follows, so it is at least as good
    as a Gaussian; the flow itself costs :math:`O(D)` a layer.

    :param model: a Pyro model.
    :param num_layers: number of :class:`~pyro_nflows.layers.Radial` layers.
    :param init_loc_fn: where to start, as for Pyro's autoguides.
    :param init_scale: standard deviation of the fresh guide in unconstrained space.
    :param create_plates: as for Pyro's autoguides.
    :param centering: of hierarchical sites, as for :class:`~pyro_nflows.AutoFlow`.
    :param structure: joint, or following plates, as for :class:`~pyro_nflows.AutoFlow`.
    :param amortize: of rows in subsampled plates, as for :class:`~pyro_nflows.AutoFlow`.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> guide = AutoRadial(lambda: pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1)))
        >>> guide()["z"].shape
        torch.Size([3])

    **References**

    [1] D. Rezende, S. Mohamed (2015). Variational Inference with Normalizing Flows.
    """


class AutoIAF(NamedGuide, flow=flows.iaf):
    r"""Inverse autoregressive flow [1].

    Drawing costs one network pass a layer; the density of a point that was not drawn costs ``latent_dim``.

    :param model: a Pyro model.
    :param num_layers: number of :class:`~pyro_nflows.layers.Autoregressive` layers, reversed in turn.
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
        >>> guide = AutoIAF(lambda: pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1)))
        >>> guide()["z"].shape
        torch.Size([3])

    **References**

    [1] D. Kingma, T. Salimans, R. Jozefowicz, X. Chen, I. Sutskever, M. Welling (2016). Improved Variational
    Inference with Inverse Autoregressive Flow.
    """

    _full_rank = False


class AutoMAF(NamedGuide, flow=flows.maf):
    r"""Masked autoregressive flow [1]: the inverse of :class:`~pyro_nflows.AutoIAF`.

    The density of a point costs one network pass a layer; drawing, which variational inference does at each step, costs
    ``latent_dim``. It is the flow to train on data; as a guide it is for few latents.

    :param model: a Pyro model.
    :param num_layers: number of inverted :class:`~pyro_nflows.layers.Autoregressive` layers, reversed in turn.
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
        >>> guide = AutoMAF(lambda: pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1)))
        >>> guide()["z"].shape
        torch.Size([3])

    **References**

    [1] G. Papamakarios, T. Pavlakou, I. Murray (2017). Masked Autoregressive Flow for Density Estimation.
    """

    _full_rank = False


class AutoResidual(NamedGuide, flow=flows.residual):
    r"""Residual flow [1, 2]: each layer adds a contraction, a network that reads and moves all coordinates at once.

    Its log-determinant is taken from the Jacobian, at :math:`D^3` a layer and draw: for up to a hundred latents or so.

    :param model: a Pyro model.
    :param num_layers: number of :class:`~pyro_nflows.layers.Residual` layers.
    :param hidden_dims: widths of the networks' hidden layers.
    :param lipschitz: the contractions' constant.
    :param log_det: ``"exact"``, or how it is estimated; see :class:`~pyro_nflows.layers.LogDet`.
    :param init_loc_fn: where to start, as for Pyro's autoguides.
    :param init_scale: standard deviation of the fresh guide in unconstrained space.
    :param create_plates: as for Pyro's autoguides.
    :param centering: of hierarchical sites, as for :class:`~pyro_nflows.AutoFlow`.
    :param structure: joint, or following plates, as for :class:`~pyro_nflows.AutoFlow`.
    :param amortize: of rows in subsampled plates, as for :class:`~pyro_nflows.AutoFlow`.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> guide = AutoResidual(lambda: pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1)))
        >>> guide()["z"].shape
        torch.Size([3])

    **References**

    [1] J. Behrmann, W. Grathwohl, R. Chen, D. Duvenaud, J. Jacobsen (2019). Invertible Residual Networks.

    [2] R. Chen, J. Behrmann, D. Duvenaud, J. Jacobsen (2019). Residual Flows for Invertible Generative Modeling.
    """

    _full_rank = False


class AutoCNF(NamedGuide, flow=flows.cnf, num_steps=4):
    r"""Continuous normalizing flow [1, 2]: draws follow a trained vector field, from a Gaussian to the posterior.

    The field is an unrestricted network of all coordinates and the time, so that few parameters give smooth shapes. A
    draw takes ``4 * num_steps`` passes of it with its Jacobian's trace, which is dear: for few latents.

    :param model: a Pyro model.
    :param num_layers: number of :class:`~pyro_nflows.layers.Continuous` layers.
    :param hidden_dims: widths of the fields' hidden layers.
    :param num_steps: Runge-Kutta steps a layer; more make the density of a strongly bent flow more accurate.
    :param trace: ``"exact"``, or how the Jacobian's trace is estimated; see :class:`~pyro_nflows.layers.Trace`.
    :param solver: of the differential equation; see :class:`~pyro_nflows.layers.Solver`.
    :param init_loc_fn: where to start, as for Pyro's autoguides.
    :param init_scale: standard deviation of the fresh guide in unconstrained space.
    :param create_plates: as for Pyro's autoguides.
    :param centering: of hierarchical sites, as for :class:`~pyro_nflows.AutoFlow`.
    :param structure: joint, or following plates, as for :class:`~pyro_nflows.AutoFlow`.
    :param amortize: of rows in subsampled plates, as for :class:`~pyro_nflows.AutoFlow`.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> guide = AutoCNF(lambda: pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1)))
        >>> guide()["z"].shape
        torch.Size([3])

    **References**

    [1] R. Chen, Y. Rubanova, J. Bettencourt, D. Duvenaud (2018). Neural Ordinary Differential Equations.

    [2] W. Grathwohl, R. Chen, J. Bettencourt, I. Sutskever, D. Duvenaud (2019). FFJORD: Free-form Continuous Dynamics
    for Scalable Reversible Generative Models.
    """

    _full_rank = False


class AutoCIF(NamedGuide, flow=flows.cif):
    r"""Continuously indexed flow: each layer of an inner flow picks one of a continuum of bijections [1, 2].

    For posteriors with several separate modes or sharp edges, which one bijection can only approach. Its density
    is known up to a lower bound (the auxiliary ELBO); importance weights, IWAE and PSIS are exact.

    :param model: a Pyro model.
    :param inner: ``latent_dim -> Layer``, the flow to index, layer by layer.
    :param index_dim: dimension of each layer's index ``u``.
    :param hidden_dims: widths of the index networks ``s, t, q, r``.
    :param transformer: makes ``q`` and ``r`` more than Gaussians, such as
        :class:`~pyro_nflows.transformers.RationalQuadratic`; see :class:`.Indexed`.
    :param skip: whether the index networks have linear parts; see :class:`.Indexed`.
    :param shared: whether all layers have one network of reverse models.
    :param init_loc_fn: where to start, as for Pyro's autoguides.
    :param init_scale: standard deviation of the fresh guide in unconstrained space.
    :param create_plates: as for Pyro's autoguides.
    :param centering: of hierarchical sites, as for :class:`~pyro_nflows.AutoFlow`.
    :param structure: joint, or following plates, as for :class:`~pyro_nflows.AutoFlow`.
    :param amortize: of rows in subsampled plates, as for :class:`~pyro_nflows.AutoFlow`.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> guide = AutoCIF(lambda: pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1)))
        >>> guide()["z"].shape
        torch.Size([3])

    **References**

    [1] R. Cornish, A. Caterini, G. Deligiannidis, A. Doucet (2020). Relaxing Bijectivity Constraints with
    Continuously Indexed Normalising Flows.

    [2] A. Caterini, R. Cornish, D. Sejdinovic, A. Doucet (2021). Variational Inference with Continuously-Indexed
    Normalizing Flows.
    """

    _full_rank = False
