"""The log joint of a model with a subsampled plate, on chosen rows: what belongs to each row, and the rest."""

import torch
from pyro import poutine
from torch import Tensor

from ..checks import first_line
from ..system.exclusive import validation
from .all_rows import on_rows
from .bound import BoundModel
from .hierarchy import Hierarchy
from .latents import Latents
from .log_joint import LogJoint
from .subsample import Chosen, look
from .transformable import transformable


class RowTerms:
    r"""The log joint of a model whose latents are outside of plates, or in one subsampled plate, on chosen rows of it.

    .. math:: \log p(g) + \frac{N}{B} \sum_{i \in \mathrm{rows}} \log p(z_i, y_i | g)

    Its two parts are given apart, and without the factor, which is the model's own. Plates within rows are summed up.

    :param bound: the model with its arguments.
    :param latents: of all rows.
    :raises ValueError: if the latents are in no subsampled plate or in several, if the model's rows are given by its
        arguments, or if discrete latents are enumerated.
    """

    def __init__(self, bound: BoundModel, latents: Latents):
        plates = {plate for latent in latents.sites.values() for plate in latent.subsampled}
        if len(plates) != 1:
            raise ValueError(
                f"{latents.owner}: VI takes minibatches of the rows of one subsampled plate, but the latents are in "
                f"{sorted(plates)}; train it by SVI, or subsample one plate only"
            )
        (self.plate,) = plates
        frames = [f for at in latents.sites.values() for f in at.plates if f.name == self.plate]
        self.num_rows, self.dim, self.owner = int(frames[0].full_size), int(frames[0].dim), latents.owner
        site = look(bound, {name: at.site for name, at in latents.sites.items()}).nodes[self.plate]
        if site["fn"].subsample_size is None:
            raise ValueError(
                f"{latents.owner}: the model gives plate '{self.plate}' its rows by subsample=, so that VI cannot "
                "choose them; use subsample_size= with all the data as arguments, or train it by SVI"
            )
        self.size, self._chosen = int(site["fn"].subsample_size), Chosen(latents.owner, {})
        self.choose(torch.arange(self.size))
        first = {self.plate: torch.arange(self.size)}
        self.joint = LogJoint(BoundModel(self._chosen(bound.model), bound.args, bound.kwargs), on_rows(latents, first))
        with poutine.block(), torch.random.fork_rng(devices=[]):
            self.joint.look()
        if self.joint.enumerates:
            raise ValueError(f"{latents.owner}: VI takes no minibatches of enumerated sites; train it by SVI")
        self.hierarchy = Hierarchy.of(self.joint.latents)

    def choose(self, rows: Tensor) -> None:
        """Take other rows from now on: their numbers, ``(size,)``."""
        self._chosen.rows = {self.plate: rows}

    @property
    def factor(self) -> float:
        """How many rows each of a minibatch stands for."""
        return self.num_rows / self.size

    def leaves(self) -> list[Tensor]:
        """The model's own trainable tensors: unconstrained ``pyro.param`` values and module parameters."""
        return self.joint.leaves(self.joint.latents.init_loc())

    def log_joint(self, z: Tensor) -> Tensor:
        """Latents of the chosen rows ``(K, dim)`` to ``(K,)``, with the factor."""
        outside, rows = self(z)
        return outside + self.factor * rows.sum(-1)

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latents ``(K, dim)`` of the chosen rows to what is outside ``(K,)`` and to the rows' own parts ``(K, size)``.

        :raises ValueError: if the model cannot be run by ``torch.vmap``.
        """
        with validation(False):
            try:
                return torch.vmap(self._single, randomness="same")(z)
            except RuntimeError as error:
                raise ValueError(
                    f"{self.owner}: VI takes minibatches of models that torch.vmap can run, but {first_line(error)}"
                ) from error

    @transformable()
    def _single(self, z: Tensor) -> tuple[Tensor, Tensor]:
        trace, _, placed = self.joint.at(z, self.joint.latents.filled)
        outside, rows = z.new_zeros(()), z.new_zeros(self.size)
        for name, site in trace.nodes.items():
            if site["type"] != "sample":
                continue
            log_prob = site["log_prob"]
            if name in placed.log_dets:
                log_det = placed.log_dets[name]
                num = log_det.dim() - len(site["fn"].batch_shape)
                log_det = log_det.reshape(*log_det.shape[: log_det.dim() - num], -1).sum(-1) if num else log_det
                frames = [frame for frame in site["cond_indep_stack"] if frame.name == self.plate]
                log_prob = log_prob + log_det * (self.factor if frames else 1.0)
            if any(frame.name == self.plate for frame in site["cond_indep_stack"]):
                log_prob = log_prob.movedim(self.dim, 0) if log_prob.dim() else log_prob
                rows = rows + log_prob.reshape(self.size, -1).sum(-1) / self.factor
            else:
                outside = outside + log_prob.sum()
        return outside.to(z.dtype), rows.to(z.dtype)
