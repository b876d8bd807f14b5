"""How centered the latents of a hierarchy are, as parameters that are trained with the rest of a guide."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import pyro
import torch
from torch import Tensor, nn

from ..model.latents import Latents

#: Where training begins, and how much faster than its parameter the log-odds of a centering move: with steps of other
#: parameters' size they were still under way when these ended.
START, SPEED = 0.5, 15.0


class LearnedCentering(nn.Module):
    r"""A centering :math:`c = \sigma(15 w)` for each entry of some sites, with :math:`w = 0` at first.

    :param shapes: of the sites.
    :param like: a tensor of the dtype and device.

    Example::

        >>> LearnedCentering({"z": torch.Size([2])}, torch.zeros(1))()
        {'z': tensor([0.5000, 0.5000], grad_fn=<SigmoidBackward0>)}
    """

    def __init__(self, shapes: Mapping[str, torch.Size], like: Tensor):
        super().__init__()
        self.names = list(shapes)
        self.weights = nn.ParameterList(nn.Parameter(like.new_zeros(shape)) for shape in shapes.values())

    @staticmethod
    def of(latents: Latents) -> "LearnedCentering | None":
        """For the sites of a guide that are in prior-informed coordinates; None where there are none.

        :raises ValueError: if such a site is in a subsampled plate.
        """
        for name in latents.centering:
            if latents.sites[name].subsampled:
                raise ValueError(
                    f"{latents.owner}: centering='learned' has a number for each entry of site '{name}', which is in a "
                    "subsampled plate; give one number for all of them, centering=0.0, or a dict of such"
                )
        shapes = {name: latents.shapes[name] for name in latents.centering}
        return LearnedCentering(shapes, latents.init_loc()) if shapes else None

    def forward(self) -> dict[str, Tensor]:
        """As it is now, by site."""
        weights = cast(list[Tensor], list(self.weights))
        return {name: (SPEED * weight).sigmoid() for name, weight in zip(self.names, weights)}


class LearnsCentering:
    """A guide that may have a :class:`LearnedCentering`."""

    centering: Any
    _latents: Latents | None
    _pyro_name: str
    #: In a tuple, so that its parameters are not in the guide's state, where the centering itself is.
    _learned: tuple[LearnedCentering] | None = None

    @property
    def finds_centering(self) -> bool:
        """Whether its coordinates are to be found, rather than given."""
        return isinstance(self.centering, str) or self.learns_centering

    @property
    def learns_centering(self) -> bool:
        """Whether its coordinates are trained with it."""
        return self._learned is not None

    def _learn(self, latents: Latents) -> None:
        """From now on, have the centering of these latents be trained."""
        learned = LearnedCentering.of(latents)
        self._learned = None if learned is None else (learned,)
        self._take_centers({} if learned is None else learned())

    def _take_centers(self, centers: Mapping[str, Tensor]) -> None:
        """Have the centering be what has been learned by now."""
        values = {name: value.detach().clone() for name, value in centers.items()}
        self.centering, known = values, cast(Latents, self._latents)
        self._latents = known.centered(values) if values else known

    @contextlib.contextmanager
    def _learning(self) -> Iterator[None]:
        """Within it, the centering is a function of its parameters, if it is learned; afterwards, as it is then."""
        if self._learned is None:
            yield
            return
        pyro.module(f"{self._pyro_name}.centering", self._learned[0])
        centers = self._learned[0]()
        self._latents = cast(Latents, self._latents).centered(centers)
        try:
            yield
        finally:
            self._take_centers(centers)
