"""What of a model's log joint belongs to each row of a plate: its latents, given what is outside, and its data."""

import torch
from torch import Tensor

from ..checks import first_line
from ..system.exclusive import validation
from .latents import Latents
from .log_joint import LogJoint
from .transformable import transformable


class GroupTerms:
    r"""The parts :math:`\log p(z_i, y_i | g)` of the rows of a plate, each with all that is in plates within it.

    :param who: asks; messages begin with it.
    :param joint: the model, all of whose rows are there in a run.
    :param plate: the plate's name.
    :raises ValueError: if the model has no such plate, or it is a loop over its rows.
    """

    def __init__(self, who: str, joint: LogJoint, plate: str):
        self.who, self.joint, self.plate = who, joint, plate
        trace = joint.run(joint.latents.init_loc() if joint.start is None else joint.start)
        sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
        frames = {f.name: f for site in sites for f in site["cond_indep_stack"]}
        if plate not in frames:
            raise ValueError(f"{who}: the model has no plate {plate!r}; its plates are {sorted(frames)}")
        if not frames[plate].vectorized:
            raise ValueError(f"{who}: plate {plate!r} is a loop over its rows; write it as `with pyro.plate`")
        if frames[plate].full_size not in (None, frames[plate].size):
            raise ValueError(f"{who}: plate {plate!r} is subsampled; make the model without subsample_size")
        self.dim, self.num_rows = int(frames[plate].dim), int(frames[plate].size)
        self.owner = owner_of(joint.latents, plate)

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latents ``(K, D)`` to what is outside of the plate ``(K,)``, and to the rows' parts ``(K, num_rows)``.

        :raises ValueError: if the model cannot be run by ``torch.vmap``.
        """
        with validation(False), torch.no_grad():
            try:
                return torch.vmap(self._single, randomness="same")(z)
            except RuntimeError as error:
                raise ValueError(
                    f"{self.who}: needs a model that torch.vmap can run, but {first_line(error)}"
                ) from error

    @transformable()
    def _single(self, z: Tensor) -> tuple[Tensor, Tensor]:
        trace, _, placed = self.joint.at(z, self.joint.latents.filled)
        outside, rows = z.new_zeros(()), z.new_zeros(self.num_rows)
        for name, site in trace.nodes.items():
            if site["type"] != "sample":
                continue
            log_prob = site["log_prob"]
            if name in placed.log_dets:
                log_det = placed.log_dets[name]
                num = log_det.dim() - len(site["fn"].batch_shape)
                log_prob = log_prob + (log_det.flatten(log_det.dim() - num).sum(-1) if num > 0 else log_det)
            if any(frame.name == self.plate for frame in site["cond_indep_stack"]):
                rows = rows + log_prob.movedim(self.dim, 0).reshape(self.num_rows, -1).sum(-1)
            else:
                outside = outside + log_prob.sum()
        return outside.to(z.dtype), rows.to(z.dtype)


def owner_of(latents: Latents, plate: str) -> Tensor:
    """For each coordinate of a flat latent, the row of a plate that it is of; -1 for what is outside."""
    owner = torch.full((latents.dim,), -1)
    for latent in latents.sites.values():
        axis = latent.axes.get(plate)
        if axis is not None:
            shape = [1] * len(latent.shape)
            shape[axis] = latent.shape[axis]
            rows = torch.arange(shape[axis]).view(shape).expand(latent.shape)
            owner[latent.columns] = rows.reshape(-1)
    return owner
