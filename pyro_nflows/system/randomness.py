"""Torch's random numbers on all devices that are in use: put aside, begun at a seed, kept and put back."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

#: Kinds of devices with random numbers of their own, as torch names the modules that know of them.
KINDS = ["cuda", "xpu"]


def generators() -> list[torch.Generator]:
    """The default generators of the processor, and of each other device that is in use.

    Example::

        >>> generators()[0] is torch.default_generator
        True
    """
    modules = [getattr(torch, kind, None) for kind in KINDS]
    started = [module for module in modules if module is not None and module.is_initialized()]
    return [torch.default_generator, *(generator for module in started for generator in module.default_generators)]


@contextlib.contextmanager
def forked(seed: int | None = None) -> Iterator[None]:
    """Random numbers drawn within it do not move those that come after it, on any device that is in use.

    Not ``torch.random.fork_rng``, which knows of CUDA only, and ``torch.manual_seed``, which also seeds what
    is yet to be started.

    :param seed: where random numbers start within it; where they are unless given.

    Example::

        >>> before = torch.get_rng_state()
        >>> with forked(seed=0):
        ...     _ = torch.randn(3)
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    before = [(generator, generator.get_state()) for generator in generators()]
    try:
        if seed is not None:
            for generator, _ in before:
                generator.manual_seed(seed)
        yield
    finally:
        for generator, state in before:
            generator.set_state(state)


def random_state() -> tuple[Tensor, ...]:
    """The random state of the processor, and of each other device that is in use."""
    return tuple(generator.get_state() for generator in generators())


def set_random_state(state: Sequence[Tensor]) -> None:
    """Put back what :func:`random_state` gave; that of other devices only where they are the same ones."""
    now = generators()
    for generator, part in zip(now if len(now) == len(state) else now[:1], state):
        generator.set_state(part.cpu())
