"""Models put together at random by hypothesis, each from a description that prints and shrinks."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from hypothesis import strategies as st
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import AffineTransform, ComposeTransform, SigmoidTransform, Transform

#: The dimension of each plate.
DIMS = {"columns": -2, "rows": -1}
DATA = torch.tensor([0.3, -1.0, 2.0, 0.5, 1.1], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
THREE = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
HOLES = torch.tensor([True, False, True])

Prior = Callable[[Tensor], Any]


def _ordered(loc: Tensor) -> Any:
    base = dist.Normal(loc[..., None] + torch.zeros(3), 1.0).to_event(1)
    return dist.TransformedDistribution(base, [dist.transforms.OrderedTransform()])


def _mixture(loc: Tensor) -> Any:
    parts = dist.LogNormal(loc[..., None] + torch.tensor([0.0, 1.0]), 0.5)
    return dist.MixtureSameFamily(dist.Categorical(WEIGHTS.expand(*loc.shape, 2)), parts)


def _moved(loc: Tensor) -> Any:
    return dist.TransformedDistribution(dist.Beta(1.5 + loc.sigmoid(), 2.0), [AffineTransform(1.0, 2.0)])


#: Priors by name: each takes a real number, of which its law depends.
PRIORS: dict[str, Prior] = {
    "normal": lambda loc: dist.Normal(loc, 1.3),
    "student": lambda loc: dist.StudentT(4.0, loc, 1.0),
    "cauchy": lambda loc: dist.Cauchy(loc, 2.0),
    "logistic": lambda loc: dist.Logistic(loc, 0.8),
    "gamma": lambda loc: dist.Gamma(2.0 + loc.sigmoid(), 1.5),
    "inverse gamma": lambda loc: dist.InverseGamma(2.0 + loc.sigmoid(), 1.5),
    "half Cauchy": lambda loc: dist.HalfCauchy(0.5 + loc.sigmoid()),
    "half normal": lambda loc: dist.HalfNormal(0.5 + loc.sigmoid()),
    "lognormal": lambda loc: dist.LogNormal(loc, 0.6),
    "weibull": lambda loc: dist.Weibull(1.0 + loc.sigmoid(), 1.5),
    "exponential": lambda loc: dist.Exponential(0.5 + loc.sigmoid()),
    "beta": lambda loc: dist.Beta(1.5 + loc.sigmoid(), 2.0),
    "kumaraswamy": lambda loc: dist.Kumaraswamy(1.5 + loc.sigmoid(), 2.0),
    "uniform": lambda loc: dist.Uniform(torch.full_like(loc, -1.0), torch.full_like(loc, 2.5)),
    "uniform up to another": lambda loc: dist.Uniform(torch.zeros_like(loc), 1.0 + loc.sigmoid()),
    "pareto": lambda loc: dist.Pareto(1.0 + loc.sigmoid(), 3.0),
    "beta between 1 and 3": _moved,
    "mixture": _mixture,
    "flat": lambda loc: dist.ImproperUniform(constraints.positive, loc.shape, ()),
    "vector": lambda loc: dist.Normal(loc[..., None] + torch.zeros(3), 0.7).to_event(1),
    "expanded": lambda loc: dist.Gamma(2.0 + loc.sigmoid()[..., None], 1.0).expand([*loc.shape, 2]).to_event(1),
    "multivariate": lambda loc: dist.MultivariateNormal(loc[..., None] + torch.zeros(2), 0.5 * torch.eye(2) + 0.5),
    "simplex": lambda loc: dist.Dirichlet(THREE + loc.sigmoid()[..., None]),
    "cholesky": lambda loc: dist.LKJCholesky(3, 1.0 + loc.sigmoid()),
    "ordered": _ordered,
    "skewed": lambda loc: dist.AsymmetricLaplace(loc, 1.0 + loc.sigmoid(), 2.0),
    "multivariate student": lambda loc: dist.MultivariateStudentT(4.0, loc[..., None] + torch.zeros(2), torch.eye(2)),
    "low rank": lambda loc: dist.LowRankMultivariateNormal(
        loc[..., None] + torch.zeros(2), torch.ones(2, 1), torch.ones(2)
    ),
}
#: The bijection to a prior's support, where ``biject_to`` does not know it.
BIJECTIONS: dict[str, Transform] = {
    "beta between 1 and 3": ComposeTransform([SigmoidTransform(), AffineTransform(1.0, 2.0)]),
    "mixture": biject_to(constraints.positive),
}


@dataclass(frozen=True)
class Latent:
    """A latent site."""

    prior: str
    plates: tuple[str, ...]
    parent: int | None
    scale: float | str
    mask: str


@dataclass(frozen=True)
class Observed:
    """An observed site, whose mean depends on a latent."""

    law: str
    plate: str
    parent: int
    scale: float
    mask: bool


@dataclass(frozen=True)
class Labels:
    """Enumerated sites, and data that depend on them."""

    kind: str
    scale: float
    mask: bool
    plate: str


@dataclass(frozen=True)
class Description:
    """All that a model is made from; see :meth:`model`."""

    latents: tuple[Latent, ...]
    observed: tuple[Observed, ...]
    labels: Labels | None
    sizes: tuple[int, int]
    param: str | None
    extras: frozenset[str]
    #: What is refused about it, if anything.
    flaw: str | None = None
    #: Of each latent that was masked in the latest run: its prior without the mask, and the mask.
    masks: dict[str, tuple[Any, Tensor]] = field(default_factory=dict, compare=False, repr=False)

    def model(self) -> None:
        """The model."""
        run = _Run(self)
        for i, latent in enumerate(self.latents):
            run.draw(f"z{i}", latent)
        for i, observed in enumerate(self.observed):
            run.observe(f"y{i}", observed)
        if self.labels is not None:
            LABELLED[self.labels.kind](run, self.labels)
        run.add_extras()
        if self.flaw is not None:
            FLAWS[self.flaw](run)


class _Run:
    """One run of a model."""

    def __init__(self, description: Description):
        self.description, self.plates = description, dict[str, Any]()
        self.values: list[tuple[Tensor, tuple[str, ...]]] = []
        self.sizes = dict(zip(DIMS, description.sizes))
        self.start = self._param(description.param)
        self.plates = {name: pyro.plate(name, size, dim=DIMS[name]) for name, size in self.sizes.items()}
        index = torch.tensor([0, 3])
        self.plates["some data"] = pyro.plate("some data", 5, subsample=index, dim=-1)
        self.plates["data"] = pyro.plate("data", 3, dim=-1)
        self.data = {"some data": DATA[index], "data": DATA[:3]}

    def _param(self, kind: str | None) -> Tensor:
        if kind is None:
            return torch.tensor(0.2)
        constraint = constraints.positive if kind == "positive" else constraints.real
        value: Tensor = pyro.param("shared", torch.tensor(0.7), constraint=constraint)
        return value

    def loc(self, parent: int | None, plates: tuple[str, ...]) -> Tensor:
        """A real number that depends on an earlier latent, in the shape of the plates that they share."""
        if parent is None or not self.values:
            return self.start
        value, own = self.values[parent % len(self.values)]
        value = value / (1 + value.abs())
        return 0.4 * value if set(own) <= set(plates) else 0.4 * value.mean()

    def draw(self, name: str, latent: Latent) -> None:
        prior = PRIORS[latent.prior](self.loc(latent.parent, latent.plates))
        with ExitStack() as stack:
            stack.enter_context(poutine.scale(scale=self._scale(latent)))
            for plate in latent.plates:
                stack.enter_context(self.plates[plate])
            prior = self._mask(stack, name, latent, prior)
            value = pyro.sample(name, prior)
        shape = tuple(self.sizes.get(plate, 1) if plate in latent.plates else 1 for plate in DIMS)
        batch = shape if "columns" in latent.plates else shape[1:] if latent.plates else ()
        self.values.append((value.reshape(*batch, -1).mean(-1), latent.plates))

    def _scale(self, latent: Latent) -> Any:
        if latent.scale == "by row":
            return 0.5 + torch.arange(self.sizes["rows"]) if "rows" in latent.plates else 0.5
        return latent.scale

    def _mask(self, stack: ExitStack, name: str, latent: Latent, prior: Any) -> Any:
        """The prior, masked if that is done inside of it, with the handlers of a mask around it."""
        if latent.mask == "holes":
            if latent.prior != "vector":
                return prior
            self.description.masks[name] = prior.base_dist, HOLES
            return prior.base_dist.mask(HOLES).to_event(1)
        if latent.mask == "none":
            return prior
        mask = torch.tensor(False)
        if latent.mask == "every second row" and "rows" in latent.plates:
            mask = torch.arange(self.sizes["rows"]) % 2 == 0
        self.description.masks[name] = prior, mask
        if latent.mask == "inside":
            return prior.mask(False)
        stack.enter_context(poutine.mask(mask=mask))
        return prior

    def observe(self, name: str, observed: Observed) -> None:
        loc = self.loc(observed.parent, ())
        with poutine.scale(scale=observed.scale):
            if observed.plate == "sequential":
                for i in pyro.plate(f"steps of {name}", 3):
                    pyro.sample(f"{name}_{i}", LAWS[observed.law][0](loc), obs=LAWS[observed.law][1](DATA[i]))
                return
            rows = LAWS[observed.law][1](self.data[observed.plate])
            with self.plates[observed.plate], poutine.mask(mask=rows > 0 if observed.mask else True):
                pyro.sample(name, LAWS[observed.law][0](loc), obs=rows)

    def add_extras(self) -> None:
        extras, loc = self.description.extras, self.loc(0, ())
        if "deterministic" in extras:
            pyro.deterministic("shown", 2 * loc)
        if "factor" in extras:
            pyro.factor("pull", -(loc**2))
        if "factors" in extras:
            with self.plates["rows"]:
                pyro.factor("pulls", -((loc - torch.arange(self.sizes["rows"]).to(loc)) ** 2))
        if "obs_mask" in extras:
            seen = torch.tensor([True, False, True])
            prior = dist.Normal(loc, 1.5)
            self.description.masks["part_unobserved"] = prior, ~seen
            with self.plates["data"]:
                pyro.sample("part", prior, obs=self.data["data"], obs_mask=seen)


#: Laws of data, and what makes data of theirs.
LAWS: dict[str, tuple[Prior, Callable[[Tensor], Tensor]]] = {
    "normal": (lambda loc: dist.Normal(loc, 1.0), lambda y: y),
    "student": (lambda loc: dist.StudentT(3.0, loc, 0.5), lambda y: y),
    "poisson": (lambda loc: dist.Poisson(loc.exp()), lambda y: y.abs().round()),
    "negative binomial": (lambda loc: dist.NegativeBinomial(3.0, logits=loc), lambda y: y.abs().round()),
    "bernoulli": (lambda loc: dist.Bernoulli(logits=loc), lambda y: (y > 0.4).to(y)),
    "binomial": (lambda loc: dist.Binomial(3, logits=loc), lambda y: y.abs().round()),
    "gamma": (lambda loc: dist.Gamma(2.0, loc.exp()), lambda y: y.abs()),
    "categorical": (lambda loc: dist.Categorical(logits=torch.stack([loc, -loc], -1)), lambda y: (y > 0.4).long()),
    "zero inflated": (lambda loc: dist.ZeroInflatedPoisson(loc.exp(), gate=loc.sigmoid()), lambda y: y.abs().round()),
}

# ---- enumerated sites; the names of all that depends on them begin with "mixed" ------------------------------

ENUMERATED = {"enumerate": "parallel"}


def label(name: str, prior: Any) -> Tensor:
    value: Tensor = pyro.sample(f"mixed_{name}", prior, infer=ENUMERATED)
    return value


def _mixed(run: _Run, labels: Labels, mean: Tensor) -> None:
    rows = run.data[labels.plate]
    with poutine.mask(mask=rows > 0 if labels.mask else True):
        pyro.sample("mixed_y", dist.Normal(mean, 1.0), obs=rows)


def _local(run: _Run, labels: Labels) -> None:
    """A label a row."""
    loc = run.loc(0, ())
    with poutine.scale(scale=labels.scale), run.plates[labels.plate]:
        _mixed(run, labels, loc + 2.0 * label("row", dist.Bernoulli(loc.sigmoid())))


def _shared(run: _Run, labels: Labels) -> None:
    """One label for all rows."""
    loc = run.loc(0, ())
    with poutine.scale(scale=labels.scale):
        mean = loc + 2.0 * label("all", dist.Categorical(WEIGHTS))
        with run.plates["data"]:
            _mixed(run, Labels(labels.kind, 1.0, labels.mask, "data"), mean)


def _nested(run: _Run, labels: Labels) -> None:
    """A label for all rows on which each row's depends, and a latent that depends on it too."""
    with poutine.scale(scale=labels.scale):
        kind = label("all", dist.Categorical(WEIGHTS))
        slab = pyro.sample("mixed_slab", dist.Normal(kind.to(WEIGHTS), 0.5))
        with run.plates["data"]:
            part = label("row", dist.Bernoulli(0.2 + 0.5 * kind))
            _mixed(run, Labels(labels.kind, 1.0, labels.mask, "data"), run.loc(0, ()) + slab * part)


def _chain(run: _Run, labels: Labels) -> None:
    """A hidden Markov model."""
    loc, state = run.loc(0, ()), torch.tensor(0)
    transition = torch.tensor([[0.7, 0.3], [0.2, 0.8]])
    with poutine.scale(scale=labels.scale):
        for t in pyro.markov(range(3)):
            state = label(str(t), dist.Categorical(transition[state]))
            pyro.sample(f"mixed_y{t}", dist.Normal(loc + state, 1.0), obs=DATA[t])


LABELLED = {"local": _local, "shared": _shared, "nested": _nested, "chain": _chain}

# ---- what is refused, by name ---------------------------------------------------------------------------------


def _subsampled(run: _Run) -> None:
    with run.plates["some data"]:
        pyro.sample("flaw", dist.Normal(0.0, 1.0))


def _sequential(run: _Run) -> None:
    for i in pyro.plate("one by one", 2):
        pyro.sample(f"flaw_{i}", dist.Normal(0.0, 1.0))


def _broadcast(run: _Run) -> None:
    with run.plates["data"]:
        pyro.sample("flaw", dist.Normal(run.loc(0, ()), 1.0), obs=run.data["data"][:, None])


def _nan(run: _Run) -> None:
    with run.plates["data"]:
        pyro.sample("flaw", dist.Normal(run.loc(0, ()), 1.0), obs=run.data["data"].where(HOLES, torch.nan))


def _union(run: _Run) -> None:
    parts = dist.Uniform(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 3.0]))
    pyro.sample("flaw", dist.MixtureSameFamily(dist.Categorical(WEIGHTS), parts))


def _support_by_label(run: _Run) -> None:
    kind = pyro.sample("kind", dist.Bernoulli(0.5), infer=ENUMERATED)
    pyro.sample("flaw", dist.Uniform(torch.zeros(()), 1.0 + kind))


def _two_scales(run: _Run) -> None:
    kind = pyro.sample("flaw", dist.Bernoulli(0.5), infer=ENUMERATED)
    with poutine.scale(scale=2.0):
        pyro.sample("flaw_y", dist.Normal(kind, 1.0), obs=DATA[0])


def _scale_by_row(run: _Run) -> None:
    with run.plates["data"], poutine.scale(scale=torch.tensor([1.0, 2.0, 3.0])):
        pyro.sample("flaw", dist.Bernoulli(0.5), infer=ENUMERATED)


FLAWS: dict[str, Callable[[_Run], Any]] = {
    "angle": lambda run: pyro.sample("flaw", dist.VonMises(0.0, 2.0)),
    "direction": lambda run: pyro.sample("flaw", dist.ProjectedNormal(torch.ones(2))),
    "discrete": lambda run: pyro.sample("flaw", dist.Poisson(3.0)),
    "endless": lambda run: pyro.sample("flaw", dist.Poisson(3.0), infer=ENUMERATED),
    "without a plate": lambda run: pyro.sample("flaw", dist.Normal(torch.zeros(3), 1.0)),
    "subsampled": _subsampled,
    "sequential": _sequential,
    "broadcast": _broadcast,
    "NaN": _nan,
    "union": _union,
    "support by label": _support_by_label,
    "two scales": _two_scales,
    "scale by row": _scale_by_row,
}

# ---- strategies; only choices from lists, which are the same in any process -----------------------------------

LATENTS = st.builds(
    Latent,
    prior=st.sampled_from(list(PRIORS)),
    plates=st.sampled_from([(), ("rows",), ("columns",), ("columns", "rows"), ("rows", "columns")]),
    parent=st.sampled_from([None, 0, 1, 2]),
    scale=st.sampled_from([1.0, 0.3, 7.0, "by row"]),
    mask=st.sampled_from(["none", "none", "none", "around", "inside", "every second row", "holes"]),
)
OBSERVED = st.builds(
    Observed,
    law=st.sampled_from(list(LAWS)),
    plate=st.sampled_from(["data", "some data", "sequential"]),
    parent=st.sampled_from([0, 1, 2]),
    scale=st.sampled_from([1.0, 0.3]),
    mask=st.booleans(),
)
LABELS = st.builds(
    Labels,
    kind=st.sampled_from(list(LABELLED)),
    scale=st.sampled_from([1.0, 0.3, 7.0]),
    mask=st.booleans(),
    plate=st.sampled_from(["data", "some data"]),
)


def descriptions() -> Any:
    """A strategy of models that can be fitted."""
    return st.builds(
        Description,
        latents=st.lists(LATENTS, min_size=1, max_size=4).map(tuple),
        observed=st.lists(OBSERVED, max_size=2).map(tuple),
        labels=st.none() | st.none() | LABELS,
        sizes=st.tuples(st.sampled_from([2, 1, 3]), st.sampled_from([3, 1, 4])),
        param=st.sampled_from([None, "real", "positive"]),
        extras=st.sets(st.sampled_from(["deterministic", "factor", "factors", "obs_mask"])).map(frozenset),
    )
