"""Copying, pickling, saving and loading of a guide: all but the model, which cannot be saved."""

import copy
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from .. import flows
from ..flows.whitened import Whitened
from ..layers import Rescaled
from ..model.hierarchy import Hierarchy
from ..model.noncentered import ScaleSite
from . import checks
from .amortized import Amortizer, typical
from .ends import End, Ends
from .joint import JointGuide
from .state import decoded, encoded, listed, unlisted
from .structure import whitened


class SavedGuide(JointGuide):
    """A joint guide with a flow that its state holds: its own parameters, and all that it takes to make it again."""

    layer: Rescaled | None
    build: flows.Build | None
    row_build: flows.Build | None
    end: Ends
    modes: tuple[int, int] | None
    amortize: bool
    amortizer: Amortizer | None
    _own_encoder: tuple[nn.Module, ...]
    _hierarchy: Hierarchy | None
    _rows: Hierarchy | None
    _end: End | None
    _loaded_shapes: checks.Shapes | None
    _claims_store: bool

    @property
    def encoder(self) -> nn.Module | None:
        """The user's encoder of rows, if one was given."""
        return self._own_encoder[0] if self._own_encoder else None

    def make_layer(self, loc: Tensor, modes: tuple[int, int] | None = None) -> Whitened:
        """This guide's flow with its affine end.

        :param loc: where the end is to start, ``(latent_dim,)``.
        :param modes: components and block size of a mixture to put the flow on; see
            :func:`~pyro_nflows.flows.on_modes`.
        """
        build, hierarchy = cast(flows.Build, self.build), self._hierarchy
        if self.amortize and hierarchy is not None and hierarchy.subsampled:
            rows = typical(hierarchy)
            loc, hierarchy = loc if len(loc) == rows.hierarchy.dim else loc[rows.columns], rows.hierarchy
        name, within = type(self).__name__, self.end != "diagonal"
        return whitened(
            name, build, loc, self.init_scale, hierarchy, modes, self._end, self._rows, self.row_build, within
        )

    @property
    def site_shapes(self) -> checks.Shapes:
        """The shape of each site's unconstrained value: the model's or, before that is run, the loaded state's.

        :raises RuntimeError: if there has been neither.
        """
        if self._latents is None and self._loaded_shapes is not None:
            return self._loaded_shapes
        return self._shapes()

    def _shapes(self) -> checks.Shapes:
        return {name: list(shape) for name, shape in self.latents.shapes.items()}

    def __getstate__(self) -> dict[str, Any]:
        # The param store hangs weak references, which cannot be pickled, on parameters; copies have none.
        modules, own = copy.deepcopy((self._modules, self._own_encoder))
        return {**self._state(), "_modules": modules, "_own_encoder": own, "_claims_store": True}

    def _state(self) -> dict[str, Any]:
        """All but the model; and ``build``, often a lambda, only while it is needed."""
        forgotten = dict.fromkeys(("_model", "_bare_model", "_bound", "master", "_init_loc_fn", "_learned"))
        made = {} if self.layer is None else {"build": None, "row_build": None}
        prototype = None if self._latents is None else self._latents.prototype()
        return {**self.__dict__, **forgotten, **made, "prototype_trace": prototype}

    def __deepcopy__(self, memo: dict[int, Any]) -> "SavedGuide":
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self._state(), memo))
        new._model, new._bare_model, new._bound = self._model, self._bare_model, self._bound
        new.build, new.row_build = self.build, self.row_build
        new._init_loc_fn = self._init_loc_fn
        return new

    @property
    def hierarchy(self) -> Hierarchy | None:
        """The plates that it follows; None for a joint guide, and before the first call."""
        return self._hierarchy

    @property
    def follows_plates(self) -> bool:
        """Whether its rows are independent given what they are within, rather than joint."""
        return self._hierarchy is not None

    def get_extra_state(self) -> Tensor:
        """The sites' names and shapes, and their centering."""
        known = self._latents is not None or self._loaded_shapes is not None
        shapes = self.site_shapes if known else None
        known_plates = {
            "hierarchy": self._hierarchy and self._hierarchy.listed(),
            "tied": self._hierarchy is not None and self._hierarchy.tied,
            "rows": self._rows and self._rows.listed(),
            "end": self._end and self._end.listed(),
        }
        centering = listed(self.centering, self._latents)
        encoders = self.amortizer and self.amortizer.known
        return encoded(
            shapes=shapes,
            modes=self.modes,
            centering=centering,
            scales={name: list(scales) for name, scales in self._scales.items()},
            encoders=encoders,
            **known_plates,
        )

    def set_extra_state(self, state: Tensor) -> None:
        shapes, self.centering = decoded(state)["shapes"], unlisted(decoded(state)["centering"])
        known = decoded(state).get("scales", {})
        self._scales = {name: tuple(ScaleSite(*scale) for scale in scales) for name, scales in known.items()}
        if self._latents is not None:
            self._take_centering()
        if self.prototype_trace is None:
            self._loaded_shapes = shapes
        elif shapes is not None:
            checks.check_sites(type(self).__name__, shapes, self._shapes())
        self._claims_store = True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        loc, extra = state_dict.get(f"{prefix}layer.layer.{Whitened.END}.loc"), state_dict.get(f"{prefix}_extra_state")
        if extra is not None and self.build is not None:
            modes, hierarchy = decoded(extra)["modes"], decoded(extra)["hierarchy"]
            if self._latents is None:
                rows, end = decoded(extra)["rows"], decoded(extra)["end"]
                self._end = end and End.unlisted(end)
                tied = decoded(extra).get("tied", False)
                self._hierarchy = hierarchy and replace(Hierarchy.unlisted(hierarchy), tied=tied)
                self._rows = rows and Hierarchy.unlisted(rows)
            if (modes and tuple(modes)) != self.modes:
                self.modes, self.layer = modes and tuple(modes), None
            encoders = decoded(extra)["encoders"]
            if encoders and self.amortizer is None and loc is not None:
                self.amortizer = Amortizer(encoders, self.encoder).to(loc)
        if self.layer is None and loc is not None:
            self.layer = Rescaled(self.make_layer(loc, self.modes), Whitened.END)
        super()._load_from_state_dict(state_dict, prefix, *args)
