"""Guides of subsampled plates: a call draws the rows of a minibatch, by a table of all rows' numbers or an encoder."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ..checks import check_sizes, counted
from ..flows.whitened import Whitened
from ..layers import Rescaled
from ..layers.base import Layer
from ..model.all_rows import on_rows as latents_on_rows
from ..model.bound import BoundModel
from ..model.latents import Latents
from ..model.log_joint import LogJoint
from ..model.rows import Rows
from ..model.subsample import Chosen, look
from ..model.values import constrained
from ..nets.views import on_rows
from ..system.memory import enough
from . import checks, minibatch, row_checks, sites
from .amortized import Amortizer, typical
from .announced import announce
from .joint import looked
from .saved import SavedGuide


class RowGuide(SavedGuide):
    """A guide that follows plates of which a run of the model may have some rows only."""

    create_plates: Callable[..., Any] | None
    _prototype_frames: dict[str, Any]

    def _current_layer(self) -> Layer:
        layer = self._modules.get("layer")  # as an attribute, within a call of the guide, it costs a ``pyro.module``
        if layer is None:
            return self._need_setup()
        return self.registered_layer() if self._pyro_context.active else cast(Layer, layer)

    def registered_layer(self) -> Layer:
        """The flow, after announcing its parameters as ``pyro.param`` sites (as a call of the guide does)."""
        layer: Layer = self._modules["layer"]  # type: ignore[assignment]
        with self._pyro_context:
            if pyro.settings.get("module_local_params"):
                return self.layer  # type: ignore[return-value]
            name = self._pyro_get_fullname("layer")
            if self._claims_store:
                self._claims_store = False
                checks.forget_params(name, layer)
            announce(type(self).__name__, name, layer)
        return layer

    @property
    def subsamples(self) -> bool:
        """Whether latents are in subsampled plates, so that a call draws those of a minibatch."""
        return self._latents is not None and self._latents.one_run is not None

    def crosses_minibatches(self, args: Any, kwargs: Any) -> bool:
        """Whether it follows plates whose rows share observations, of which a run has some only.

        Rows of users and items do, and players of one plate that play each other.

        :param args: the model's arguments, with ``kwargs``.
        """
        hierarchy = self._hierarchy
        return hierarchy is not None and hierarchy.shares and self.takes_minibatches(args, kwargs)

    def _look_at_rows(self, args: Any, kwargs: Any) -> None:
        """Make the encoders for the data that are seen first."""
        if not self.amortize:
            return
        name = type(self).__name__
        if self._hierarchy is None or not self.subsamples:
            raise row_checks.nothing_to_amortize(name)
        if self.amortizer is None:
            trace = self._look(self.bare_model, args, kwargs, watched=True)
            layer = cast(Rescaled, self._modules["layer"])
            self.amortizer = Amortizer.of(name, trace, self._hierarchy, layer, self.encoder)

    def _look(self, model: Callable[..., Any], args: Any, kwargs: Any, watched: bool = False) -> Any:
        latents = {name: latent.site for name, latent in self.latents.sites.items()}
        return look(BoundModel(model, args, kwargs), latents, watched)

    # ---- draws ----------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every latent, as a Pyro guide; of subsampled plates, in the rows that the model has at these arguments.

        :return: a dict from site to its value.
        """
        self.set_up(args, kwargs)
        if not self.subsamples:
            return super().forward(*args, **kwargs)
        self.receive(args, kwargs)
        plates = self._create_plates(*args, **kwargs)
        latents, model, latent = self._sample_rows(plates, args, kwargs)
        return self._draw(sites.points(latents, model, latent, *self._run_at(args, kwargs)), plates)

    def _sample_rows(
        self, plates: minibatch.Plates, args: Any, kwargs: Any, outer: AbstractContextManager[Any] | None = None
    ) -> tuple[Latents, Callable[..., Any], Tensor]:
        """The latents of the rows that plates have, the model with these rows, and a flat draw.

        :param outer: what the draw is made in; the model, which may have plates along the same dimension, is not.
        """
        name, whole = type(self).__name__, self._hierarchy
        if whole is None:
            raise checks.need_setup(name)
        chosen = {plate: plates[plate].indices for plate in whole.subsampled}
        model = Chosen(name, chosen)(self.bare_model)
        if self.amortizer is None:
            layer = self._current_layer()
            outside, rows = on_rows(layer, Rows.none(whole)), Rows.of(whole, chosen)
            view, latents = cast(Whitened, on_rows(layer, rows)), latents_on_rows(self.latents, chosen)
        else:
            amortizer, layer = self._current_amortizer(), cast(Rescaled, self._current_layer())
            alike = {plate: torch.zeros_like(at) for plate, at in chosen.items()}
            whole = typical(whole).hierarchy
            outside, rows = on_rows(layer, Rows.none(whole)), Rows.of(whole, alike)
            view = cast(Whitened, on_rows(layer, rows))
            view = amortizer.view(name, view, layer.factors, rows, self._look(model, args, kwargs))
            latents = latents_on_rows(self.latents, alike)
        auxiliary = f"_{self._pyro_name}_latent"
        with outer or nullcontext():
            z = minibatch.sample_rows(auxiliary, outside, view, rows.hierarchy, self.latents, plates)
        return latents, model, z

    def _current_amortizer(self) -> Amortizer:
        """The encoders, after announcing their parameters to Pyro within a call."""
        amortizer = cast(Amortizer, self._modules["amortizer"])
        if self._pyro_context.active:
            name = self._pyro_get_fullname("amortizer")
            if self._claims_store:
                checks.forget_params(name, amortizer)
            announce(type(self).__name__, name, amortizer)
        return amortizer

    def _create_plates(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if not self.subsamples:
            return cast(dict[str, Any], super()._create_plates(*args, **kwargs))
        name, bound = type(self).__name__, self._fitting(BoundModel(self.bare_model, args, kwargs))
        if self.master is not None:
            created = list(super()._create_plates(*args, **kwargs).values())
            if self.master().create_plates is None:
                minibatch.check_drawn(name, bound, self.latents, created)
        else:
            made = self.create_plates(*args, **kwargs) if self.create_plates is not None else []
            created = [made] if isinstance(made, pyro.plate) else list(made)
        is_fixed = self.amortizer is None
        self.plates = minibatch.plates_of_call(name, bound, self.latents, self._prototype_frames, created, is_fixed)
        return self.plates

    @torch.no_grad()
    def for_rows(self, *args: Any, num_samples: int = 1000, **kwargs: Any) -> dict[str, Tensor]:
        """Draws of the posterior for the rows that the model has at these arguments.

        With ``amortize``, they may be rows that there were not in training, of a plate of any size: their numbers come
        from their data, and the latents outside of plates keep the posterior that was found.

        :param args: the model's arguments, with ``kwargs``: such that it has these rows, all of them in one run.
        :param num_samples: how many draws.
        :return: a dict from site to ``(num_samples, ...)``.
        :raises ValueError: if the guide has no rows in subsampled plates, or ``num_samples < 1``.
        :raises MemoryError: if there is not enough memory for so many draws.
        """
        self.set_up(args, kwargs)
        if not self.subsamples:
            raise row_checks.no_rows(type(self).__name__)
        check_sizes("for_rows", num_samples=num_samples)
        with contextlib.ExitStack() as within:
            within.enter_context(poutine.block())
            plates = self._create_plates(*args, **kwargs)
            num_bytes = 8 * num_samples * sum(len(plate.indices) for plate in plates.values())
            within.enter_context(enough("for_rows", counted(num_samples, "draw"), num_bytes, "ask for fewer"))
            draws = pyro.plate("_draws", num_samples, dim=-1 - minibatch.nesting_of(self.latents))
            latents, model, latent = self._sample_rows(plates, args, kwargs, draws)
            z = latent.reshape(num_samples, -1)
            if not latents.moving:
                return latents.constrain(z)
            return constrained(looked(LogJoint(BoundModel(model, args, kwargs), latents)), z)
