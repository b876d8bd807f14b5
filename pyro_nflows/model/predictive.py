r"""One run of a model per draw: pointwise log-likelihood, log prior, predictive draws, prior draws.

Each question is a function of one draw; :func:`each_draw` asks it of all of them at once by ``torch.vmap``, and one by
one where the model cannot be vectorised so (a branch on a value, a sampler with a rejection loop, enumeration).
Answers are keyed by ``(group, site)``, with ArviZ's names for the groups.
"""

import contextlib
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..checks import counted
from ..system.exclusive import validation
from ..system.memory import enough
from ..system.randomness import forked
from .bound import BoundModel
from .data_checks import is_deterministic
from .numbered_rows import NumberedRows
from .pointwise import log_prob_and_mask, sum_out_enumerated
from .random_rows import RandomRows
from .site_kinds import Site, is_data, is_factor, is_latent, is_marked, is_observation, is_row_factor
from .supports import bijection
from .transformable import transformable

__all__ = ["Run", "each_draw", "isolated"]

Draw = Mapping[str, Tensor]
Answers = dict[tuple[str, str], Tensor]
#: Answers that a draw determines.
FIXED = ("posterior", "log_likelihood", "log_prior", "unconstrained_posterior")
ELEMENTS_AT_ONCE = 2**24  # so that thousands of draws of a large model fit in memory


@dataclass(frozen=True, eq=False)
class Run(BoundModel):
    """A model and its arguments, asked about draws. Each method runs it for one draw.

    Example::

        >>> def model(y):
        ...     mu = pyro.sample("mu", pyro.distributions.Normal(0.0, 1.0))
        ...     pyro.sample("y", pyro.distributions.Normal(mu, 1.0), obs=y)
        >>> run = Run(model, (torch.tensor(0.5),))
        >>> run.log_likelihood({"mu": torch.tensor(0.5)})
        {('log_likelihood', 'y'): tensor(-0.9189)}
    """

    def sites(self, draw: Draw) -> dict[str, Site]:
        """The sample sites of the model at a draw."""
        with _Sample(), _Substitute(draw):
            return self._trace()

    def deterministic(self, draw: Draw) -> Answers:
        """Values of deterministic sites, less those that depend on an enumerated latent."""
        sites = self.sites(draw)
        shapes = {n: s["value"].shape for n, s in self._enumerated(draw, sites).items()}
        values = {n: s["value"] for n, s in sites.items() if is_deterministic(s)}
        return {("posterior", n): value for n, value in values.items() if value.shape == shapes[n]}

    def log_likelihood(self, draw: Draw) -> Answers:
        """Log density of every observation, without ``poutine.scale``; NaN where it is masked.

        Factors with rows count as observations. Enumerated latents are summed out. Sites where that does not leave one
        term an observation are left out.
        """
        sites = self.sites(draw)
        enumerated = self._enumerated(draw, sites)
        masks = {n: log_prob_and_mask(s)[1] for n, s in sites.items() if is_observation(s) or is_row_factor(s)}
        terms = {n: sum_out_enumerated(enumerated, n, mask.numel()) for n, mask in masks.items()}
        return {
            ("log_likelihood", n): torch.where(masks[n], term.reshape(masks[n].shape), torch.nan)
            for n, term in terms.items()
            if term is not None
        }

    def log_prior(self, draw: Draw) -> Answers:
        """Log density of every latent site that the draw has, without ``poutine.scale``; 0 where it is masked."""
        found = {n: log_prob_and_mask(s) for n, s in self.sites(draw).items() if is_latent(s) and n in draw}
        return {("log_prior", n): torch.where(mask, term, 0.0) for n, (term, mask) in found.items()}

    def posterior_predictive(self, draw: Draw) -> Answers:
        """Replicated observations; enumerated latents are drawn anew, as for new units."""
        with _Sample(), _Substitute(draw), _Replicate():
            sites = self._trace()
        return {("posterior_predictive", n): s["value"] for n, s in sites.items() if is_observation(s)}

    def prediction(self, draw: Draw, numbered: Collection[str] = ()) -> Answers:
        """Data drawn anew, whether given or not, and deterministic sites, with the latent sites that the draw has.

        All others are drawn: the model may be run on other data than the draws are of.

        :param numbered: plates of which the draw has all rows, told apart by their numbers.
        :raises ValueError: if a site of the draw has another shape here.
        """
        return {("predictions", n): s["value"] for n, s in self.predicted_sites(draw, numbered).items()}

    def predicted_sites(
        self, draw: Draw, numbered: Collection[str] = (), rows: RandomRows | None = None
    ) -> dict[str, Site]:
        """The sites of :meth:`prediction`.

        :param draw: values of latent sites.
        :param numbered: plates of which the draw has all rows, told apart by their numbers.
        :param rows: watches the plates.
        """
        who, own = "predict" if rows is None else rows.who, NumberedRows(numbered)
        with _Sample(), _Substitute(draw, who, own), own, _Replicate(), rows or contextlib.nullcontext():
            sites = self._trace()
        return {n: s for n, s in sites.items() if n not in draw and not is_factor(s)}

    def unconstrained(self, draw: Draw) -> Answers:
        """Every latent site that the draw has, without constraint, as Pyro's ``biject_to`` makes it."""
        sites = {
            n: s for n, s in self.sites(draw).items() if n in draw and is_latent(s) and not s["fn"].support.is_discrete
        }
        return {("unconstrained_posterior", n): bijection(s["fn"]).inv(draw[n]) for n, s in sites.items()}

    def prior(self, _: Draw) -> Answers:
        """Latent and deterministic sites, and observations, drawn from the prior."""
        with _Sample(), _Replicate():
            sites = self._trace()
        groups = {n: "prior" for n, s in sites.items() if is_latent(s) or is_deterministic(s)}
        groups |= {n: "prior_predictive" for n, s in sites.items() if is_observation(s)}
        return {(group, n): sites[n]["value"] for n, group in groups.items()}

    def _enumerated(self, draw: Draw, sites: dict[str, Site]) -> dict[str, Site]:
        """The same sites with discrete latents enumerated, to the left of all plates."""
        if not any(is_marked(s) for s in sites.values()):
            return sites
        with poutine.enum(first_available_dim=_left_of_plates(sites)), _Substitute(draw):
            return self._trace()

    def _trace(self) -> dict[str, Site]:
        nodes = poutine.trace(self.model).get_trace(*self.args, **self.kwargs).nodes
        return {n: s for n, s in nodes.items() if s["type"] == "sample" and not site_is_subsample(s)}


class _Sample(Messenger):
    """Draws what no other handler has set, in a way that ``vmap`` can do."""

    def _pyro_sample(self, msg: Any) -> None:
        if not (msg["done"] or msg["is_observed"] or site_is_subsample(msg)):
            with _FreshNoise():
                msg["value"], msg["done"] = msg["fn"].sample(), True


class _FreshNoise(TorchFunctionMode):
    """Lets distributions fill an empty tensor with noise in place, which ``vmap`` refuses: it is one for all draws."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") not in ("cauchy_", "exponential_", "normal_", "uniform_"):
            return func(*args, **(kwargs or {}))
        noise = func(torch.rand_like(args[0]), *args[1:], **(kwargs or {}))
        try:
            args[0].copy_(noise)
        except RuntimeError:  # under vmap; NaN gives away a sampler that goes on with the old tensor, see `_agree`
            args[0].fill_(torch.nan)
        return noise


class _Replicate(Messenger):
    """Has observations drawn anew. Unlike ``poutine.uncondition``, leaves deterministic sites and factors alone."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and is_data(msg):
            msg["infer"] = {**msg["infer"], "was_observed": True}
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


class _Substitute(Messenger):
    """Gives latent sites the values drawn for them; unlike conditioning, leaves them latent.

    :param draw: values of the latent sites.
    :param partly_for: who asks, where not all of them may be there: the others are drawn, and shapes are compared.
    :param rows: of which of these values are those of this run.
    """

    def __init__(self, draw: Draw, partly_for: str = "", rows: NumberedRows | None = None) -> None:
        super().__init__()
        self.draw, self.partly_for, self.rows = draw, partly_for, rows

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or not is_latent(msg):
            return
        if msg["name"] in self.draw:
            value = self.draw[msg["name"]] if self.rows is None else self.rows.of(self.draw[msg["name"]], msg)
            if self.partly_for:
                _check_shape(self.partly_for, msg["name"], value.shape, msg["fn"].shape())
            msg["value"], msg["done"] = value, True
        elif not self.partly_for and not is_marked(msg):
            raise ValueError(
                f"samples: got {sorted(self.draw)}, expected the latent site {msg['name']!r} too. "
                "Pass draws of every latent site of the model."
            )


def _check_shape(who: str, name: str, drawn: tuple[int, ...], here: tuple[int, ...]) -> None:
    if tuple(drawn) != tuple(here):
        raise ValueError(
            f"{who}: the latent site {name!r} has shape {tuple(drawn)} in the posterior and {tuple(here)} at these "
            f"arguments. Give data of the same rows or, for new ones, fresh=[{name!r}], which draws it from its prior"
        )


def each_draw(ask: Callable[[Draw], Answers], draws: Draw, who: str = "each_draw") -> Answers:
    r"""Ask the same of every draw: by ``torch.vmap`` where that runs and repeats the first answer, else in a loop.

    :param ask: a method of :class:`Run`.
    :param draws: values of the latent sites, with the draws along the first dimension.
    :param who: is asked; messages begin with it.
    :return: answers stacked along a new first dimension.
    :raises MemoryError: if there is not enough memory for them, which is known after the first one.

    Example::

        >>> run = Run(lambda: pyro.deterministic("b", 2 * pyro.sample("a", pyro.distributions.Normal(0.0, 1.0))))
        >>> each_draw(run.deterministic, {"a": torch.arange(3.0)})
        {('posterior', 'b'): tensor([0., 2., 4.])}
    """
    first = ask({name: values[0] for name, values in draws.items()})
    if not first:
        return {}
    num = len(next(iter(draws.values())))
    largest = max(first, key=lambda key: first[key].nbytes)
    asked = f"{counted(num, 'draw')} with {largest[1]!r} of shape {tuple(first[largest].shape)}"
    with enough(who, asked, num * sum(value.nbytes for value in first.values()), "ask for fewer draws"):
        try:
            answers = _vectorised(ask, draws, chunk_size=_chunk_size(first, draws))
        except Exception:  # whatever the model cannot do under vmap; its own mistakes come back from the loop
            return _one_by_one(ask, draws)
        return answers if _agree(answers, first) else _one_by_one(ask, draws)


@contextlib.contextmanager
def isolated(seed: int | None) -> Iterator[None]:
    """Run models without gradients, without argument checks (vmap cannot do them), and without a trace left behind.

    New parameters are taken out of the param store again. With a seed the random state is the caller's afterwards;
    without one it moves on, as for any draw.
    """
    store = pyro.get_param_store()
    known = set(store.keys())
    try:
        with torch.no_grad(), validation(False), forked(seed) if seed is not None else contextlib.nullcontext():
            yield
    finally:
        for name in set(store.keys()) - known:
            del store[name]


def _vectorised(ask: Callable[[Draw], Answers], draws: Draw, chunk_size: int) -> Answers:
    with warnings.catch_warnings(), transformable():
        warnings.filterwarnings("ignore", "There is a performance drop")
        warnings.filterwarnings("ignore", "An output with one or more elements was resized")  # torch.binomial's
        return torch.vmap(ask, randomness="different", chunk_size=chunk_size)(draws)


def _one_by_one(ask: Callable[[Draw], Answers], draws: Draw) -> Answers:
    num_samples = len(next(iter(draws.values())))
    answers = [ask({name: values[i] for name, values in draws.items()}) for i in range(num_samples)]
    return {key: torch.stack([answer[key] for answer in answers]) for key in answers[0]}


def _agree(answers: Answers, first: Answers) -> bool:
    """Whether the vectorised answers start with the eager one; of random ones, whether they are like it."""
    shapes = {key: value.shape for key, value in first.items()}
    if {key: value.shape[1:] for key, value in answers.items()} != shapes:
        return False
    fixed = {key for key in first if key[0] in FIXED}
    same = all(torch.allclose(answers[k][0].double(), first[k].double(), 1e-4, 1e-4, equal_nan=True) for k in fixed)
    return same and not any(answers[key].isnan().any() > first[key].isnan().any() for key in shapes.keys() - fixed)


def _chunk_size(first: Answers, draws: Draw) -> int:
    elements = sum(v.numel() for v in first.values()) + sum(v[0].numel() for v in draws.values())
    return max(1, ELEMENTS_AT_ONCE // max(1, elements))


def _left_of_plates(sites: Mapping[str, Site]) -> int:
    return -1 - max(len(s["fn"].batch_shape) for s in sites.values())
