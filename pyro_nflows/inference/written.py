"""A posterior as a file, as bytes for another process, and as a copy."""

import copy
from abc import ABC
from dataclasses import asdict, fields
from typing import Any, cast

import torch
from torch import Tensor

from ..guides import AutoFlow
from ..system.exclusive import exclusive
from ..system.files import Path, write
from .columns import columns, compact
from .portable import packed, unpacked
from .reused import Reused

#: What the file of a fit is.
KIND = "fit"


class Written(Reused, ABC):
    """A fit that can be written to a file, and sent."""

    values: dict[str, Tensor] | None

    def save(self, path: Path) -> None:
        """Write all but the model and its arguments to a file; :meth:`pyro_nflows.VI.load` reads it.

        The model is run only where supports depend on other latents, on parameters or on arguments. A file that is
        there already stays as it was until the new one is complete.

        :raises OSError: if the file cannot be written.
        """
        write(path, KIND, self.state())

    @torch.no_grad()
    def state(self) -> dict[str, Any]:
        """All but the model and its arguments, as tensors and plain values, for a file."""
        guide, z = self._own_guide(), self.draws.z
        return {
            "guide": type(guide).__name__,
            "state_dict": dict(guide.state_dict()),
            "arguments": self.call is None or bool(self.call[0] or self.call[1]),
            "leaves": list(self.leaves),
            "seed": self.seed,
            "draws": columns(self.draws),
            "own": None if self.own is None else columns(self.own),
            "settled": None if self.settled is None else asdict(self.settled),
            "redrawn": None if self.redrawn is None else asdict(self.redrawn),
            "starts": [columns(draws) for draws in self.starts],
            "history": self.history.state(),
            "missed": asdict(self.missed),
            "faults": asdict(self.faults),
            "subsampled": asdict(self.subsampled),
            "values": compact(self.constrained(torch.arange(len(z))), z, guide.site_shapes),
        }

    def _own_guide(self) -> AutoFlow:
        """The guide with this posterior's flow; the guide itself may have been trained further."""
        if self.guide.layer is self.layer:
            return self.guide
        own = copy.deepcopy(self.guide)
        self.give_to(own)
        return own

    def give_to(self, guide: AutoFlow) -> None:
        """Have a guide take what was trained."""
        guide.modes = self.modes
        guide.adopt(self.layer)

    @exclusive()
    @torch.no_grad()
    def __getstate__(self) -> dict[str, Any]:
        layer = None if self.guide.layer is self.layer else copy.deepcopy(self.layer)
        values = self.values
        if self.call is not None and self.guide.latents.moving:  # the model may not come along
            values = self.constrained(torch.arange(len(self.draws.z)))
        kept = {**self.__dict__, "guide": None, "call": None, "layer": layer, "values": values}
        return {**kept, **packed(self.guide, self.call)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        guide, call, absent = unpacked(state)
        layer = guide.layer if state["layer"] is None else state["layer"]
        values = state["values"] if call is None else None
        self.__dict__.update(
            {**state, "guide": guide, "layer": layer, "call": call, "absent": absent, "values": values}
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        kept = {part.name: getattr(self, part.name) for part in fields(cast(Any, self))}
        call = kept.pop("call")  # data are only read
        return cast(Any, type(self))(call=call, **copy.deepcopy(kept, memo))
