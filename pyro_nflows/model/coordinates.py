r"""From prior-informed coordinates to unconstrained space and back: the model is run to know its priors.

A :class:`~pyro_nflows.model.log_joint.LogJoint` takes values and coordinates at once. Pyro's own tools, such as
``NeuTraReparam``, know unconstrained values only, and are given this transform.
"""

import functools
from typing import cast

from torch import Tensor
from torch.distributions import Transform, constraints
from torch.distributions.transforms import IndependentTransform, identity_transform

from .centering import coordinates
from .handlers import outside
from .log_joint import LogJoint
from .noncentered import scaled_elsewhere
from .values import mapped


class Coordinates(Transform):
    r"""A model's coordinates :math:`v` to its unconstrained values :math:`z`, flat vectors both.

    The latest point is remembered with its image and its log-determinant, which Pyro asks for one after the other.

    :param joint: the log joint in these coordinates, after :meth:`~pyro_nflows.model.log_joint.LogJoint.look`.
    :param flow: a transform to :math:`v` that comes first; by default there is none.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_nflows import AutoFlow
        >>> from pyro_nflows.model.bound import BoundModel
        >>> def model():
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     pyro.sample("z", dist.Normal(3.0, scale))
        ...
        >>> guide = AutoFlow(model, centering=0.0)
        >>> _ = guide()
        >>> transform = Coordinates(LogJoint(BoundModel(model), guide.latents))
        >>> v = torch.tensor([0.0, 2.0])
        >>> transform(v), transform.inv(transform(v))
        (tensor([0., 5.]), tensor([0., 2.]))
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, joint: LogJoint, flow: Transform | None = None):
        super().__init__()
        self.joint, self.flow = joint, flow or IndependentTransform(identity_transform, 1)
        self._plain = joint.on(joint.bound)
        self._plain.latents = joint.latents.centered({})
        self._latest: tuple[Tensor, Tensor, Tensor] | None = None

    def _call(self, x: Tensor) -> Tensor:
        v = self.flow(x)
        y, log_det = self._rows(v, inverse=False)
        self._latest = x, y, log_det + self.flow.log_abs_det_jacobian(x, v)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        return cast(Tensor, self.flow.inv(self._rows(y, inverse=True)[0]))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        if self._latest is None or x is not self._latest[0] or y is not self._latest[1]:
            self._call(x)
        return cast(tuple[Tensor, Tensor, Tensor], self._latest)[2]

    def with_cache(self, cache_size: int = 1) -> "Coordinates":
        return self

    def _rows(self, given: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Flat vectors, perhaps with leading dimensions, to the others, and the log-determinants of the way there."""
        one = functools.partial(self._one, inverse=inverse)
        with outside():  # `NeuTraReparam` asks within a run of the same model
            found, log_det = mapped(one, given.reshape(-1, given.shape[-1]))
        return found.reshape(given.shape), log_det.reshape(given.shape[:-1])

    def _one(self, given: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        joint, log_det = self._plain if inverse else self.joint, given.new_zeros(())
        nodes, parts = joint.visit(joint.placed(given)).nodes, joint.latents.unpack(given)
        values = {name: nodes[name]["value"] for name in joint.latents.names}
        for name, center in self.joint.latents.centers.items():
            fn = scaled_elsewhere(nodes[name]["fn"], center.scales, values)
            move: Transform = coordinates(fn, center.number)
            move = move.inv if inverse else move
            moved = move(parts[name])
            log_det = log_det + move.log_abs_det_jacobian(parts[name], moved).sum()
            parts[name] = moved
        return joint.latents.pack(parts), log_det
