r"""What a guide is trained on: the ELBO and its importance-weighted sibling, as ordinary ``pyro.infer.ELBO``\ s.

One particle's log-weight :math:`\log w = \log p(x, z) - \log \hat q(z)` sums over *all* sites and *all* plates. Then

.. math:: \mathrm{ELBO} = E\, \frac1K \sum_k \log w_k, \qquad
    \mathrm{IWAE}_K = E \log \frac1K \sum_k w_k, \qquad \mathrm{ELBO} \le \mathrm{IWAE}_K \le \log p(x).

Gradients, with :math:`\tilde w` the normalised weights:

- ``total``: of the estimate as it stands;
- ``path`` (sticking the landing [1]): without the score of :math:`q`, whose mean is zero; it vanishes when the guide
  is exact, and is the difference between a flow that trains and one that does not. For IWAE weighted by
  :math:`\tilde w`, which is biased but steady;
- ``dreg`` (IWAE only [2]): the path weighted by :math:`\tilde w^2`, unbiased.

**References**

[1] G. Roeder, Y. Wu, D. Duvenaud (2017). Sticking the Landing.

[2] G. Tucker, D. Lawson, S. Gu, C. Maddison (2018). Doubly Reparameterized Gradient Estimators for Monte Carlo
Objectives.
"""

import warnings
from contextlib import AbstractContextManager
from typing import Any

import torch
from pyro.distributions.util import is_identically_zero
from pyro.infer import elbo
from pyro.infer.enum import get_importance_trace
from torch import Tensor

from ..checks import check_flags, check_sizes, counted
from ..engine import EngineWarning
from ..engine.tape import TraceError
from ..guides import AutoFlow
from ..model.bound import BoundModel
from ..model.log_joint import LogJoint
from ..numerics import LogDensity
from ..objectives.base import Gradient, Objective
from ..objectives.draws import Draws, base_noise, paired_noise
from ..system.exclusive import differentiable
from ..system.memory import CPU, enough
from ..system.randomness import forked
from .recorded import NoiseOf, Recorded


class GradientWarning(UserWarning):
    """A gradient estimator that the guide cannot give was replaced by the total gradient."""


class ELBO(Objective, elbo.ELBO):
    r"""The evidence lower bound, vectorised over particles, with path gradients where the guide has them.

    .. math:: E_q[\log p(x, z) - \log \hat q(z)]

    For ``SVI(model, guide, optim, loss=ELBO(16))``, or as a loss for a torch optimiser:
    ``loss = ELBO(16)(model, guide)``, ``loss(*args).backward()``. Any Pyro guide with reparameterised sites works;
    :class:`~pyro_nflows.AutoFlow` and its kin run vectorised, enumerated discrete latents of the model summed out.

    :param num_particles: draws :math:`K` an evaluation.
    :param gradient: ``"total"`` or ``"path"``; by default ``"path"`` where the guide can, else ``"total"``.
    :param compile: whether to record the loss and its gradient once and replay them compiled. The model's arguments
        may change from step to step, as minibatches do, but not their shapes; whatever else the model reads is
        taken as it was at the first step.
    :raises ValueError: for other values; when evaluated, if the guide has a site that cannot be reparameterised.

    Example::

        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro.infer.autoguide import init_to_feasible
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        ...
        >>> guide = AutoFlow(model, init_loc_fn=init_to_feasible, init_scale=1.0)
        >>> abs(ELBO(num_particles=100).loss(model, guide)) < 1e-3
        True
    """

    _gradients: tuple[Gradient, ...] = (Gradient.TOTAL, Gradient.PATH)
    best_gradient = Gradient.PATH
    #: Whether particles that have one minibatch together are drawn in pairs.
    pairs = True

    def __init__(self, num_particles: int = 1, gradient: Gradient | str | None = None, *, compile: bool = False):
        name = type(self).__name__
        check_sizes(name, num_particles=num_particles)
        check_flags(name, compile=compile)
        allowed = [g.value for g in self._gradients]
        if gradient is not None and gradient not in allowed:
            raise ValueError(f"{name}: gradient must be one of {allowed}, got {gradient!r}")
        super().__init__(num_particles=num_particles)
        self.gradient = None if gradient is None else Gradient(gradient)
        self.compile = compile
        self._log_joint: LogJoint | None = None
        self._recorded: Recorded | None = None
        self._said: set[str] = set()

    def __repr__(self) -> str:
        gradient = "" if self.gradient is None else f", gradient={self.gradient.value!r}"
        compiled = ", compile=True" if self.compile else ""
        return f"{type(self).__name__}(num_particles={self.num_particles}{gradient}{compiled})"

    def __getstate__(self) -> dict[str, Any]:
        # What was made for a model is made again where it is needed.
        return {**self.__dict__, "_log_joint": None, "_recorded": None}

    # ---- Pyro's interface -----------------------------------------------------------------------------------

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Minus the estimated bound.

        :return: a float, without gradients.
        """
        with torch.no_grad(), self._room(guide):
            return -self.bound(self._weigh(model, guide, args, kwargs, Gradient.TOTAL).log_weight).item()

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the estimated bound, with the estimator's gradient.

        :return: a scalar tensor.
        """
        if self.compile:
            self._say("what is differentiated by torch runs step by step; SVI, or loss_and_grads, runs compiled")
        with self._room(guide):
            return self._differentiable(model, guide, args, kwargs)

    def _room(self, guide: Any) -> AbstractContextManager[None]:
        """Within it, that there is not enough memory for a step is said in a sentence."""
        num_bytes = 8 * self.num_particles * (getattr(guide, "latent_dim", None) or 1)
        remedy = "give it fewer num_particles, or the model's plate a subsample_size"
        device = next((p.device for p in guide.parameters()), CPU) if isinstance(guide, torch.nn.Module) else CPU
        return enough(type(self).__name__, counted(self.num_particles, "particle"), num_bytes, remedy, device)

    def _differentiable(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Tensor:
        draws = self._weigh(model, guide, args, kwargs, self._choose(guide, args, kwargs))
        gradient = Gradient.TOTAL if draws.scored is None else (self.gradient or self.best_gradient)
        surrogate = self.surrogate(draws, gradient)
        return surrogate.detach() - surrogate - self.bound(draws.log_weight.detach())

    @differentiable()
    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Minus the estimated bound; its gradient is added to the parameters' ``.grad``.

        :return: a float.
        """
        with self._room(guide):
            if self.compile and not _is_flow(guide, args, kwargs):
                self._say(f"{_name(guide)} is not one flow guide for all latents; the model runs step by step")
            elif self.compile:
                try:
                    return self._by_recording(model, guide, args, kwargs)
                except TraceError as error:
                    self.compile = False
                    self._say(f"{error}; the model runs step by step")
            loss = self._differentiable(model, guide, args, kwargs)
            if loss.requires_grad:
                loss.backward()
            return loss.item()

    def _by_recording(self, model: Any, guide: AutoFlow, args: Any, kwargs: Any) -> float:
        recorded, bound = self._recorded, BoundModel(model, args, kwargs)
        if recorded is None or not recorded.fits(bound, guide):
            guide.receive(args, kwargs)
            layer = guide.registered_layer()
            self.check_layer(layer)
            joint = _prepared(model, guide, args, kwargs)
            gradient, noise_of = self.gradient or self.best_gradient, self._noise_of(guide, args, kwargs)
            with forked():  # the loop's random numbers stay what they would have been
                recorded = self._recorded = Recorded(self, gradient, joint, guide, noise_of, self._say)
        guide.registered_layer()  # Pyro's SVI steps the parameters that it saw used
        return recorded.loss_and_grads(bound.tensors)

    def _say(self, reason: str) -> None:
        """Once, why nothing is compiled."""
        if reason not in self._said:
            self._said.add(reason)
            warnings.warn(f"compile=True: {reason}", EngineWarning, stacklevel=4)

    # ---- draws of any guide ---------------------------------------------------------------------------------

    def _choose(self, guide: Any, args: Any, kwargs: Any) -> Gradient:
        """The gradient asked for, or the best this guide can give."""
        wanted = self.gradient or self.best_gradient
        if _is_flow(guide, args, kwargs):
            return wanted
        if self.gradient not in (None, Gradient.TOTAL):
            self._tell(f"{type(guide).__name__} is not a flow guide of pyro_nflows")
        return Gradient.TOTAL

    def _tell(self, reason: str) -> None:
        warnings.warn(
            f"{type(self).__name__}: no '{(self.gradient or self.best_gradient).value}' gradient here ({reason}); "
            "using gradient='total'",
            GradientWarning,
            stacklevel=4,
        )
        self.gradient = Gradient.TOTAL

    def _weigh(self, model: Any, guide: Any, args: Any, kwargs: Any, gradient: Gradient) -> Draws:
        if not _is_flow(guide, args, kwargs):
            return self._weigh_traces(model, guide, args, kwargs)
        guide.receive(args, kwargs)
        layer = guide.registered_layer()
        self.check_layer(layer)
        log_joint = self._joint(model, guide, args, kwargs)
        noise = self._noise_of(guide, args, kwargs)(layer, self.num_particles)
        try:
            return self.draws(log_joint, layer, noise, gradient)
        except RuntimeError as error:  # NotImplementedError is one too
            reason = _why_no_path(error)
            if gradient is Gradient.TOTAL or reason is None:
                raise
            self._tell(reason)
            return self.draws(log_joint, layer, noise, Gradient.TOTAL)

    def _noise_of(self, guide: AutoFlow, args: Any, kwargs: Any) -> NoiseOf:
        """What draws the base points of a guide's particles."""
        return paired_noise if self.pairs and guide.takes_minibatches(args, kwargs) else base_noise

    def _joint(self, model: Any, guide: AutoFlow, args: Any, kwargs: Any) -> LogDensity:
        joint = self._log_joint
        if joint is None or joint.bound.model is not model or joint.latents.sites is not guide.latents.sites:
            joint = self._log_joint = _prepared(model, guide, args, kwargs)
        return joint.on(joint.bound.with_call(args, kwargs))

    def _weigh_traces(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Draws:
        """Particles one after the other, through Pyro's traces."""
        log_p, log_q = [], []
        for _ in range(self.num_particles):
            model_trace, guide_trace = self._get_trace(model, guide, args, kwargs)
            _need_reparameterised(guide_trace)
            log_p.append(torch.as_tensor(model_trace.log_prob_sum()))
            log_q.append(torch.as_tensor(self._log_q(guide_trace)))
        return Draws(torch.empty(self.num_particles, 0), torch.stack(log_p), torch.stack(log_q))

    def _log_q(self, guide_trace: Any) -> Any:
        """With the gradient that Pyro's ELBOs take, of the path alone where a flow gives it."""
        if self.best_gradient is not Gradient.PATH:
            return guide_trace.log_prob_sum()
        sites = [site for site in guide_trace.nodes.values() if site["type"] == "sample"]
        return sum(torch.as_tensor(site["score_parts"].entropy_term).sum() for site in sites)


def _why_no_path(error: RuntimeError) -> str | None:
    """The reason for which there is no path gradient, if that is what an error says."""
    if "setup_context" in str(error):
        return "the model has an autograd.Function without setup_context, which torch.func cannot transform"
    return str(error) if isinstance(error, NotImplementedError) else None


def _is_flow(guide: Any, args: Any, kwargs: Any) -> bool:
    """Whether a guide covers all latents of each run with one flow, so that particles can be vectorised."""
    if not isinstance(guide, AutoFlow) or guide.master is not None:
        return False
    guide.set_up(args, kwargs)
    return not guide.subsamples and not guide.learns_centering


def _prepared(model: Any, guide: AutoFlow, args: Any, kwargs: Any) -> LogJoint:
    """The model's log density; the guide takes what that shows of its latents."""
    joint = LogJoint(BoundModel(model, args, kwargs), guide.latents)
    joint.prepare()
    guide.follow(joint)
    return joint


def _name(guide: Any) -> str:
    return str(getattr(guide, "__name__", type(guide).__name__))


def _need_reparameterised(guide_trace: Any) -> None:
    for name, site in guide_trace.nodes.items():
        if site["type"] == "sample" and not is_identically_zero(site["score_parts"].score_function):
            raise ValueError(
                f"guide site '{name}' ({type(site['fn']).__name__}) is not reparameterised; use a continuous "
                "reparameterised distribution, or Pyro's Trace_ELBO, which has a score-function gradient"
            )
