"""The layers of a flow of hubs and of the others given them, by what each is for."""

from dataclasses import dataclass

from torch import Tensor

from ..flows.hubs import GivenHubs
from ..flows.whitened import Whitened
from ..layers import PlateCoupling, SparseAffine, SparseShear, Split
from ..layers.base import Layer
from ..model.elimination import Elimination
from ..transformers import Affine
from .hub_marginal import Coordinates

#: More hubs than these are not looked for all over their posterior.
MAX_HUBS = 12
#: Nor are they where the others' factor has more numbers, of which there is one for each of a thousand points.
MAX_NUMBERS = 2**16


@dataclass(frozen=True)
class Parts:
    """The layers that are fitted.

    :param hubs: the hubs' flow.
    :param affine: locations and scales of the others.
    :param shear: their correlations.
    :param end: behind them.
    """

    hubs: Layer
    affine: PlateCoupling
    shear: SparseShear
    end: SparseAffine

    @staticmethod
    def of(layer: Whitened) -> "Parts | None":
        """Those of a layer; None where it is of another kind."""
        flow, end = layer.flow, layer.end
        if not (isinstance(flow, GivenHubs) and isinstance(end, SparseAffine)):
            return None
        splits = [part.layer for part in flow if isinstance(part, Split)]
        affines = [part for part in flow if isinstance(part, PlateCoupling) and part.transformer == Affine()]
        shears = [part for part in flow if isinstance(part, SparseShear)]
        if not (len(splits) == len(affines) == len(shears) == 1):
            return None
        if shears[0].num_top > MAX_HUBS or shears[0].elimination.size > MAX_NUMBERS:
            return None
        return Parts(splits[0], affines[0], shears[0], end)

    @property
    def among(self) -> Elimination:
        """How the others are tied to each other."""
        return self.shear.elimination

    def coordinates(self) -> Coordinates:
        """Of the hubs, as the layers behind their flow see them."""
        end, columns = self.end, self.end.elimination.pattern.hubs

        def seen(hubs: Tensor) -> Tensor:
            z = end.loc.expand(len(hubs), -1).clone()
            z[:, columns] = hubs.to(z)
            return end.inverse(z)[0][:, columns].double().cpu()

        def back(seen: Tensor) -> Tensor:
            x = end.loc.new_zeros(len(seen), len(end.loc))
            x[:, columns] = seen.to(x)
            return end(x)[0][:, columns].double().cpu()

        return Coordinates(seen, back, float(end.log_scale[columns].sum()))
