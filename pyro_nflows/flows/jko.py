r"""Flows whose blocks are steps of the scheme of Jordan, Kinderlehrer and Otto (JKO)."""

from collections.abc import Callable, Sequence

import torch

from ..checks import check_functions, check_positive, check_sizes
from ..layers import Continuous
from ..layers.base import Chain, Inverse, Layer


class Blocks(Chain):
    r"""Blocks that are trained one after the other, each from where the last one has left the mass.

    :param blocks: in the order in which they are trained; of one architecture, so that one compiled step serves all.
    :param step_size: :math:`h` of the first block.
    :param whitened: whether the mass is first moved by an affine map, the best Gaussian.
    :param inverted: whether the blocks go from the data to the base.
    :raises ValueError: if there are no blocks, their parameters differ in shape, or ``step_size`` is not positive.

    Example::

        >>> from pyro_nflows.layers import Planar
        >>> flow = Blocks([Planar(2), Planar(2)], inverted=True)
        >>> flow[0], flow.in_order()[0]
        (Inverse(
          (layer): Planar(2)
        ), Planar(2))
    """

    def __init__(
        self, blocks: Sequence[Layer], *, step_size: float = 0.25, whitened: bool = True, inverted: bool = False
    ):
        check_positive("jko", step_size=step_size)
        shapes = [[parameter.shape for parameter in block.parameters()] for block in blocks]
        if any(each != shapes[0] for each in shapes):
            raise ValueError("jko: expected blocks with parameters of the same shapes; build makes others each time")
        super().__init__(*((Inverse(block) for block in reversed(blocks)) if inverted else blocks))
        self.step_size, self.whitened, self.inverted = float(step_size), whitened, inverted

    def in_order(self) -> list[Layer]:
        """The blocks as they move the mass, the first one first."""
        return [layer.layer for layer in reversed(list(self))] if self.inverted else list(self)  # type: ignore[misc]

    @torch.no_grad()
    def is_fresh(self) -> bool:
        """Whether every block is the identity still."""
        like = next(self.parameters())
        x = torch.linspace(-2, 2, 5 * self.input_dim).to(like).unflatten(0, (5, -1))
        noise = like.new_zeros(5, self.noise_dim) if self.noise_dim else None
        y, log_weight = self(x, noise)
        tolerance = 1e3 * torch.finfo(y.dtype).eps
        return bool(torch.maximum((y - x).abs().max(), log_weight.abs().max()) < tolerance)


def jko(
    latent_dim: int,
    num_blocks: int = 8,
    hidden_dims: Sequence[int] = (32, 32),
    num_steps: int = 4,
    step_size: float = 0.25,
    build: Callable[[int], Layer] | None = None,
    *,
    whitened: bool = True,
    inverted: bool = False,
) -> Blocks:
    r"""Blocks that move mass along the Wasserstein gradient flow of :math:`\mathrm{KL}(q \,\|\, p)` [1, 2].

    Block :math:`k` is trained by itself, from where the one before has left the mass,

    .. math:: T_k = \operatorname*{argmin}_T\; \mathrm{KL}(T_\# q_{k-1} \,\|\, p)
        + \frac{1}{2 h_k} \mathrm E_{x \sim q_{k-1}} \lVert T(x) - x \rVert^2, \qquad q_k = (T_k)_\# q_{k-1} ,

    which is a JKO step: at the best :math:`T` the mean squared distance is :math:`W_2^2(q_{k-1}, q_k)`. So each block
    lowers the divergence, and no mass goes further than it has to. :class:`~pyro_nflows.AutoJKO` moves the mass of a
    guide to a posterior, and :func:`~pyro_nflows.fit_jko` data to a standard normal; trained otherwise, it is an
    ordinary flow.

    :param latent_dim: dimension :math:`D`.
    :param num_blocks: at most; those that are not needed stay the identity.
    :param hidden_dims: widths of the vector field of a block.
    :param num_steps: of the solver in a block.
    :param step_size: :math:`h_1`, in units of the squared standard deviations of the best Gaussian; later ones are
        chosen so that blocks move the mass about as far as the first.
    :param build: makes a block, ``latent_dim -> Layer``; by default a :class:`~pyro_nflows.layers.Continuous` layer.
        ``lambda dim: flows.spline(dim, 4)`` takes an eighth of the time in the plane, and ends a little further away.
    :param whitened: whether the best Gaussian comes first, an affine map; else the mass starts where the guide is, and
        data are taken as they are.
    :param inverted: for data: blocks go from the data to the base, so that a density is one pass of each.
    :raises ValueError: if a size is not a positive integer, or ``step_size`` not positive.

    Example::

        >>> flow = jko(2, num_blocks=3)
        >>> len(flow), type(flow[0]).__name__
        (3, 'Continuous')

    **References**

    [1] R. Jordan, D. Kinderlehrer, F. Otto (1998). The Variational Formulation of the Fokker-Planck Equation.

    [2] C. Xu, X. Cheng, Y. Xie (2023). Normalizing Flow Neural Networks by JKO Scheme.
    """
    check_sizes("jko", latent_dim=latent_dim, num_blocks=num_blocks)
    if build is not None:
        check_functions("jko", build=build)

    def block() -> Layer:
        if build is not None:
            return build(latent_dim)
        return Continuous(latent_dim, hidden_dims=hidden_dims, num_steps=num_steps)

    blocks = [block() for _ in range(num_blocks)]
    return Blocks(blocks, step_size=step_size, whitened=whitened, inverted=inverted)
