"""A guide that is a Gaussian or a mixture of Gaussians, and has a way of its own to be fitted."""

from .. import flows
from .named import NamedGuide


class AutoWasserstein(NamedGuide, flow=flows.gaussians):
    r"""The best Gaussian, or mixture of Gaussians, by a Wasserstein gradient flow [1, 2].

    :class:`~pyro_nflows.VI` carries it from the start of a fit to the posterior along the way that lowers
    :math:`\mathrm{KL}(q \,\|\, p)` fastest in the 2-Wasserstein metric, held to Gaussians:

    .. math:: \dot m = \mathrm E_q[\nabla \log p], \qquad
        \dot \Sigma = 2 I + \Sigma\, \mathrm E_q[\nabla^2 \log p] + \mathrm E_q[\nabla^2 \log p]\, \Sigma ,

    in tens of steps where Adam takes hundreds (:mod:`pyro_nflows.modes.wasserstein`); it is exact where the posterior
    is a Gaussian. ``vi.history.path`` is the way, and :func:`~pyro_nflows.plots.paths.plot_path` draws it. Components
    of a mixture move so each, and repel one another through :math:`\log q`; then their weights move too. They find
    modes near to where they are; of others the verdict says that they are missed.

    With more than 512 latents, in a guide that follows plates, for a model with parameters of its own, and in a loop of
    one's own with ``SVI``, it is trained like any other guide.

    :param model: a Pyro model.
    :param num_components: of the mixture; 1 is a Gaussian.
    :param init_loc_fn: where to start, as for Pyro's autoguides.
    :param init_scale: standard deviation of the fresh guide in unconstrained space.
    :param create_plates: as for Pyro's autoguides.
    :param centering: of hierarchical sites, as for :class:`~pyro_nflows.AutoFlow`.
    :param structure: joint, or following plates, as for :class:`~pyro_nflows.AutoFlow`.
    :param amortize: of rows in subsampled plates, as for :class:`~pyro_nflows.AutoFlow`.
    :raises ValueError: if ``num_components < 1``.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_nflows import VI
        >>> def model(y):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        ...
        >>> vi = VI(AutoWasserstein(model), seed=0, progress_bar=False).run(torch.tensor(1.0))
        >>> round(vi.diagnostics()["iwae"], 3)  # log N(1; 0, 2)
        -1.516

    **References**

    [1] M. Lambert, S. Chewi, F. Bach, S. Bonnabel, P. Rigollet (2022). Variational Inference via Wasserstein Gradient
    Flows.

    [2] M. Diao, K. Balasubramanian, S. Chewi, A. Salim (2023). Forward-Backward Gaussian Variational Inference via JKO
    in the Bures-Wasserstein Space.
    """
