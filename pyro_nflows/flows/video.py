"""Flows of videos: clips of frames, which are flat vectors ``(..., T C H W)``, frame after frame."""

import functools
from collections.abc import Sequence

from ..checks import check_sizes
from ..layers import Positionwise, SequenceAutoregressive, Squeeze
from ..layers.base import Chain, Inverse
from ..nets import FrameNet
from ..transformers import Affine, Transformer
from .images import glow_image


def video(
    shape: tuple[int, int, int],
    num_frames: int,
    num_levels: int = 2,
    num_layers: int = 4,
    hidden_dims: Sequence[int] = (32, 32),
    transformer: Transformer = Affine(),
    *,
    num_past: int = 2,
    prior_dims: Sequence[int] = (32,),
) -> Chain:
    r"""Glow at several scales for each frame, of latents that depend on those of the last frames (VideoFlow) [1].

    .. math:: x_t = g(z_t), \qquad z_t^{(l)} = \mu + \sigma \epsilon_t^{(l)}, \quad (\mu, \log \sigma) =
        \mathrm{net}_l\big(z_{t-1}^{(l)}, \dots, z_{t-n}^{(l)}, z_t^{(< l)}\big)

    A frame's latents at each scale :math:`l` are told the same scale's in the last :math:`n` frames, and those of the
    smaller scales in this one. The density of a clip is exact and one pass; draws go frame by frame, and keep the
    last :math:`n` frames' latents, so that their cost is linear in the number of frames. No parameter depends on
    that number: a flow of eight frames has the state of one of four. ``flows.up_to`` tells it where clips end.

    What follows given frames has their conditional distribution, exactly: map them to the base, put new normal numbers
    behind them, and come back::

        x, _ = flow.inverse(clip)                 # of the given frames, and any others behind them
        x[..., given:] = torch.randn_like(x[..., given:])
        continued, _ = flow(x)                    # the given frames as they were, and new ones

    :param shape: a frame's ``(C, H, W)``; ``H`` and ``W`` can be halved ``num_levels`` times.
    :param num_frames: :math:`T`; clips have shape ``(..., T C H W)``.
    :param num_levels: scales of :func:`glow_image`.
    :param num_layers: steps of Glow at each.
    :param hidden_dims: channels of its networks.
    :param transformer: of its couplings.
    :param num_past: :math:`n`.
    :param prior_dims: channels of the networks that read the last frames.
    :raises ValueError: if a size is not a positive integer, or the frame cannot be halved so often.

    Example::

        >>> import torch
        >>> flow = video((1, 8, 8), num_frames=3, num_layers=1)
        >>> clips, log_weight = flow(torch.randn(10, 3 * 64))

    **References**

    [1] M. Kumar, M. Babaeizadeh, D. Erhan, C. Finn, S. Levine, L. Dinh, D. Kingma (2020). VideoFlow: A Conditional
    Flow-Based Model for Stochastic Video Generation.
    """
    check_sizes("video", num_frames=num_frames)
    frame = glow_image(shape, num_levels, num_layers, hidden_dims, transformer)
    net = functools.partial(
        FrameNet, shapes=_latent_shapes(shape, num_levels), num_past=num_past, hidden_dims=prior_dims
    )
    prior = SequenceAutoregressive((num_frames, frame.input_dim), Affine(), net=net)
    return Chain(Inverse(prior), Positionwise(frame, num_frames))


def _latent_shapes(shape: tuple[int, int, int], num_levels: int) -> list[tuple[int, int, int]]:
    """What the latents of :func:`glow_image` are, in their order: images, the smallest first."""
    num_channels, height, width = Squeeze(shape).output_shape
    if num_levels == 1:
        return [(num_channels, height, width)]
    half = (num_channels // 2, height, width)
    return [*_latent_shapes(half, num_levels - 1), half]
