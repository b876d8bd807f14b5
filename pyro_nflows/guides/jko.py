"""A guide whose mass is moved to the posterior by steps of the JKO scheme."""

from .. import flows
from .named import NamedGuide


class AutoJKO(NamedGuide, flow=flows.jko):
    r"""Blocks that move the guide's mass to the posterior along a Wasserstein gradient flow [1, 2].

    :class:`~pyro_nflows.VI` trains one block after the other, each from where the last one has left the mass,

    .. math:: T_k = \operatorname*{argmin}_T\; \mathrm{KL}(T_\# q_{k-1} \,\|\, p)
        + \frac{1}{2 h_k} \mathrm E \lVert T(x) - x \rVert^2 ,

    until one does not lower the divergence any more. So the bound is higher after each block, and mass moves no further
    than it has to: what begins on either side of a valley stays there, and modes that the mass reaches at first are not
    lost on the way. Distances are in units of the guide's affine end. ``vi.history.path`` has some points on their way,
    and :func:`~pyro_nflows.plots.paths.plot_path` draws them.

    The mass starts as the best Gaussian near to a mode, which suits one mode. With ``whitened=False`` it starts as
    the fresh guide, :math:`N(\mathrm{init\_loc}, \mathrm{init\_scale}^2)` in unconstrained space: for several modes,
    with an ``init_loc_fn`` and an ``init_scale`` that reach them all. What has to cross a valley, where the start's
    shares are not the posterior's, moves slowest.

    ``VI(..., num_steps=)`` are the steps of all blocks together. Run again, in a loop of one's own with ``SVI``, by
    ``VI(optim=)``, with ``IWAE`` or annealing, in a guide that follows plates, by minibatches, and for a model with
    parameters of its own, all blocks are trained together, like any other flow.

    :param model: a Pyro model.
    :param num_blocks: at most; those that are not needed stay the identity.
    :param hidden_dims: widths of the vector field of a block.
    :param num_steps: of the solver in a block.
    :param step_size: :math:`h_1`, in units of squared standard deviations of the guide's affine end; later ones are
        chosen so that blocks move the mass about as far as the first.
    :param build: makes a block, ``latent_dim -> Layer``; by default a :class:`~pyro_nflows.layers.Continuous` layer.
    :param whitened: whether the mass starts as the best Gaussian near to a mode, or as the fresh guide.
    :param init_loc_fn: where to start, as for Pyro's autoguides.
    :param init_scale: standard deviation of the fresh guide in unconstrained space.
    :param create_plates: as for Pyro's autoguides.
    :param centering: of hierarchical sites, as for :class:`~pyro_nflows.AutoFlow`.
    :param structure: joint, or following plates, as for :class:`~pyro_nflows.AutoFlow`.
    :param amortize: of rows in subsampled plates, as for :class:`~pyro_nflows.AutoFlow`.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> guide = AutoJKO(lambda: pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1)), num_blocks=2)
        >>> guide()["z"].shape
        torch.Size([3])

    **References**

    [1] R. Jordan, D. Kinderlehrer, F. Otto (1998). The Variational Formulation of the Fokker-Planck Equation.

    [2] C. Xu, X. Cheng, Y. Xie (2023). Normalizing Flow Neural Networks by JKO Scheme.
    """
