"""Guides that a loop over ``SVI.step`` trains: an optimiser of their own, with step sizes for their parts."""

from pyro.optim import PyroOptim

from ..flows.whitened import Whitened
from .optimizer import LR, StepSize, guide_optimizer
from .rows import RowGuide


class TrainedGuide(RowGuide):
    """A guide whose parameters are of an end, a flow and perhaps an encoder."""

    def optimizer(self, lr: StepSize = LR, num_steps: int | None = None, *, average: bool = True) -> PyroOptim:
        r"""An optimiser for a loop over ``SVI.step`` that ends at the optimum.

        Adam, whose steps decay to a hundredth in the second half of the loop and are averaged over its last quarter
        (:class:`~pyro_nflows.guides.optimizer.DecayingAdam`). It trains the model's own parameters too.

        :param lr: the step size at first; or a dict with one for each part that is to have its own: ``"end"``, the
            means, scales and correlations of the affine end; ``"flow"``, what is before it; ``"encoder"``, with
            ``amortize``; ``"model"``, the model's own parameters.
        :param num_steps: how many steps the loop has; without it, steps stay as long as they are.
        :param average: whether the mean over the last quarter of the steps is taken at their end.
        :raises ValueError: for other values; TypeError for other types.

        Example::

            >>> import pyro, pyro.distributions as dist, pyro.infer
            >>> from pyro_nflows import AutoFlow
            >>> guide = AutoFlow(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)))
            >>> optimizer = guide.optimizer(lr={"end": 0.05}, num_steps=1000)
            >>> svi = pyro.infer.SVI(guide.bare_model, guide, optimizer, pyro.infer.Trace_ELBO())
            >>> for _ in range(10):
            ...     loss = svi.step()
            ...
            >>> len(optimizer.get_state()) == len(list(guide.parameters()))
            True
        """
        return guide_optimizer(type(self).__name__, self._part_of, lr, num_steps, average)

    def _part_of(self, param_name: str) -> str:
        """What a parameter of a loop belongs to, by its name in Pyro's store."""
        prefix = self._pyro_get_fullname("layer")
        if param_name.startswith(f"{prefix}."):
            return "end" if param_name.startswith(f"{prefix}.layer.{Whitened.END}.") else "flow"
        return "encoder" if param_name.startswith(f"{self._pyro_get_fullname('amortizer')}.") else "model"
