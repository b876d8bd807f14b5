"""The examples on the documentation's pages: what they take for granted, and what they have to reach."""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam, ClippedAdam
from torch import Tensor

from pyro_nflows import ELBO, SBC, VI, AutoCIF, AutoFlow, layers
from pyro_nflows.diagnostics.verdict import Outcome
from tests.run_readme import README, examples

Names = dict[str, Any]
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in sorted((README.parent / "docs").glob("*.md"))}
PAGES = {stem: text for stem, text in PAGES.items() if examples(text)}
GOOD = (Outcome.TRUST, Outcome.RESAMPLED, Outcome.MOVED, Outcome.REDRAWN)


class Example(NamedTuple):
    """What an example takes for granted beyond what its page has said so far, and what it has to reach.

    :param smaller: sizes that take minutes, and those in their place.
    """

    given: Callable[[], Names] = dict
    reached: Callable[[Names], None] = lambda names: None
    smaller: Mapping[str, str] = MappingProxyType({})


# ---- what the reader has --------------------------------------------------------------------------------------


def normal(y: Tensor) -> None:
    """Stands for the reader's model; its log evidence is known."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)


DATA = torch.ones(2)
EVIDENCE = float(dist.Normal(0.0, 2**0.5).log_prob(DATA).sum())


class MyLayer(layers.LocScale):
    """Stands for the reader's layer."""


def rows_of(plate: str, row: str, spread: float, noise: float) -> Callable[[Tensor], None]:
    """A model of one number a row, around a mean that all have in common."""

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate(plate, len(y)):
            z = pyro.sample(row, dist.Normal(mu, spread))
            pyro.sample("y", dist.Normal(z, noise), obs=y)

    return model


def fitted_schools() -> Names:
    vi = VI(AutoFlow(rows_of("school", "theta", 5.0, 10.0)), seed=0, progress_bar=False).run(
        torch.tensor([28.0, 8.0, -3.0, 7.0])
    )
    data = {"seen": torch.tensor([0.3, 1.2, 0.7, 2.0]), "limit": torch.tensor([1.5, 2.5, 0.9])}
    return {"vi": vi, "names": list("ABCD"), "np": np, "xarray": xarray, **data}


def groups() -> Tensor:
    return 1 + 2**0.5 * torch.randn(1000, generator=torch.Generator().manual_seed(0))


def fitted_groups() -> Names:
    return {"vi": VI(AutoFlow(rows_of("groups", "z", 1.0, 1.0)), seed=0, progress_bar=False).run(groups()[:50])}


def ratings() -> Names:
    """Of 300 users and 200 items, with five factors."""
    number = torch.Generator().manual_seed(0)
    user, item = (torch.randint(many, (20_000,), generator=number) for many in (300, 200))
    p, q = (scale * torch.randn(many, 5, generator=number) for many, scale in ((300, 1.0), (200, 0.5)))
    noise = 0.5 * torch.randn(len(user), generator=number)
    return {"user": user, "item": item, "y": 3 + (p[user] * q[item]).sum(-1) + noise}


def games() -> Names:
    number = torch.Generator().manual_seed(0)
    skill = torch.randn(300, generator=number)
    one = torch.randint(300, (6000,), generator=number)
    other = (one + torch.randint(1, 300, (6000,), generator=number)) % 300
    won = torch.bernoulli((skill[one] - skill[other]).sigmoid(), generator=number)
    return {"one": one, "other": other, "won": won, "true skill": skill}


def counties(log_radon: Tensor | None, county: Tensor, floor: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("counties", 3):
        level = pyro.sample("level", dist.Normal(1.0, 1.0))
    with pyro.plate("houses", len(county)):
        pyro.sample("log_radon", dist.Normal(level[county] + slope * floor, 0.5), obs=log_radon)


def radon() -> Names:
    """The reader's model, and the file beside the script."""
    pandas.DataFrame(
        {
            "county": ["Aitkin", "Anoka", "Becker"] * 4,
            "floor": [0, 1] * 6,
            "log_radon": [1.2, 0.1, 0.9, 0.4, 1.5, 0.2, 1.1, 0.3, 0.7, 0.5, 1.3, -0.1],
        }
    ).to_csv("radon.csv")
    return {"pandas": pandas, "np": np, "model": counties}


def start_of(page: str) -> Names:
    """What all pages take for granted: the imports, a model and data; but for one that begins with its own."""
    if page == "with_pyros_tools":
        return {"__name__": "__main__"}
    things = [VI, SBC, AutoFlow, AutoCIF, ELBO, SVI, Trace_ELBO, ClippedAdam, MyLayer]
    given: Names = {"model": normal, "data": DATA, "guide": AutoFlow(normal), "optim": Adam({"lr": 1e-3})}
    return given | {"pyro": pyro, "dist": dist, "torch": torch} | {thing.__name__: thing for thing in things}


# ---- what an example has to reach -----------------------------------------------------------------------------


def is_trusted(names: Names) -> None:
    found = names["vi"].diagnostics()
    assert found["outcome"] in GOOD
    assert abs(found["iwae"] - EVIDENCE) < 5 * found["iwae_se"] + 1e-3


def is_refined_and_calibrated(names: Names) -> None:
    assert ((names["draws"]["z"].mean(0) - 0.5).abs() < 0.1).all()
    assert "No sign of miscalibration" in names["check"].verdict().sentence


def has_converged(names: Names) -> None:
    assert ELBO(4000).loss(names["model"], names["guide"], DATA) == pytest.approx(-EVIDENCE, abs=0.1)


def works_with_pyros_tools(names: Names) -> None:
    for name, mean in names["means"].items():
        assert (mean - names["right"]).abs().max() < 0.06, name  # half a standard deviation
    assert sum(names["losses"][-100:]) / 100 == pytest.approx(names["ours"], abs=0.5)
    assert set(names["labels"].tolist()) <= {0.0, 1.0}
    assert names["share"] > 0.8
    assert ((names["spread"] / torch.tensor([0.52, 1.28]) - 1).abs() < 5 * 0.5**0.5 / 400**0.5).all()
    assert float(names["fixed"]["a"]) == 1.0
    assert "theta_decentered" in names["latents"]
    assert {name: value.shape[0] for name, value in names["chains"].items()} == dict.fromkeys(names["latents"], 20)
    torch.testing.assert_close(names["middle"]["a"], torch.tensor(1.0))
    assert torch.equal(names["again"].median()["a"], names["middle"]["a"])


def has_right_means(names: Names) -> None:
    """Of y ~ N(mu, 2), and of rows shrunk half-way towards mu."""
    y, draws = names["y"], names["vi"].get_samples(500)
    assert names["vi"].diagnostics()["outcome"] in GOOD
    assert abs(float(draws["mu"].mean() - y.mean())) < 5 * (2 / 1000) ** 0.5 / 500**0.5 + 1e-3
    expected = 0.5 * (y + y.mean())
    assert float((draws["z"].mean(0) - expected).square().mean()) ** 0.5 < 0.1


def leaves_out_groups(names: Names) -> None:
    """Given the other 49 of y ~ N(mu, 2), a group is N(their mean, 2 + 2 / 49); the prior of mu hardly counts."""
    y = groups()[:50]
    others = (y.sum() - y) / 49
    right = dist.Normal(others, (2 + 2 / 49) ** 0.5).log_prob(y).sum()
    assert float(names["found"].elpd.sum()) == pytest.approx(float(right), abs=0.5)


def finds_the_noise(names: Names) -> None:
    """Factors may be rotated, which the verdict says; the noise of a rating is half a point."""
    assert names["vi"].diagnostics()["outcome"] in (*GOOD, Outcome.SHARED)
    assert abs(names["vi"].get_samples(500)["sigma"].mean() - 0.5) < 0.02


def ranks_the_players(names: Names) -> None:
    """Of forty games each: a skill's standard error is about a third of what skills vary."""
    skill, true = names["vi"].get_samples(500)["skill"], names["true skill"]
    assert names["vi"].diagnostics()["outcome"] in GOOD
    scores = (true - skill.mean(0)) / skill.std(0)
    assert abs(float(scores.square().mean()) - 1) < 5 * (2 / 300) ** 0.5
    assert torch.corrcoef(torch.stack([true, skill.mean(0)]))[0, 1] > 0.9


def knows_new_rows(names: Names) -> None:
    draws = names["guide"].for_rows(names["new_y"], num_samples=1000)["z"]
    assert draws.shape == (1000, 500)
    expected = 0.5 * (names["new_y"] + groups().mean())
    assert float((draws.mean(0) - expected).square().mean()) ** 0.5 < 0.1


def is_in_arviz(names: Names) -> None:
    """Weighted and resampled draws have one mean; LOO is over all rows."""
    resampled = names["vi"].to_arviz()["posterior"]["mu"].values
    assert float(names["mean"]) == pytest.approx(float(resampled.mean()), abs=5 * float(resampled.std()) / 1000**0.5)
    assert names["loo"].n_data_points == len(names["seen"]) + len(names["limit"])


def is_of_the_schools(names: Names) -> None:
    """Their log evidence is -31.31, by a sum over a grid of tau; the chains and the weights agree."""
    assert names["found"]["outcome"] in GOOD
    assert names["found"]["iwae"] == pytest.approx(-31.31, abs=0.02)
    assert names["chains"].r_hat < 1.1


def fits_the_counties(names: Names) -> None:
    assert names["vi"].diagnostics()["outcome"] in GOOD
    assert names["vi"].predict(None, np.array([0, 1]), floor=[1, 1])["log_radon"].shape[1:] == (2,)


def fitted_normal() -> Names:
    return {"vi": VI(AutoFlow(normal), seed=0, progress_bar=False).run(DATA)}


# ---- which example it is, by a piece of it --------------------------------------------------------------------

FIRST, LAST = "first", "last"
EXAMPLES: dict[str, dict[str, Example]] = {
    "arviz": {FIRST: Example(fitted_schools), LAST: Example(reached=is_in_arviz)},
    "big_models": {
        "leave_one_group_out": Example(fitted_groups, leaves_out_groups),
    },
    "minibatches": {
        "guide.quantiles": Example(lambda: {"y": groups()}),
        "VI(AutoFlow(model)": Example(reached=has_right_means),
        "DataLoader(": Example(reached=has_right_means),
        "def factorisation": Example(ratings, finds_the_noise, {"6000": "300", "4000": "200"}),
        "def bradley_terry": Example(games, ranks_the_players),
        "amortize=True": Example(lambda: {"y": groups(), "new_y": groups()[:500]}, knows_new_rows),
    },
    "coming_from": {LAST: Example(reached=is_of_the_schools)},
    "how_to_choose": {FIRST: Example(fitted_normal), LAST: Example(reached=is_refined_and_calibrated)},
    "index": {LAST: Example(reached=is_trusted)},
    "install": {"read_csv": Example(radon, fits_the_counties)},
    "plain_svi": {LAST: Example(reached=has_converged)},
    "what_can_go_wrong": {LAST: Example(reached=is_trusted)},
    "with_pyros_tools": {LAST: Example(reached=works_with_pyros_tools)},
}


def parts(page: str) -> list[tuple[str, list[Example]]]:
    """The page's examples in order, each with what is known of it; sizes are the smaller ones."""
    sources = examples(PAGES[page])
    known: list[list[Example]] = [[] for _ in sources]
    for mark, example in EXAMPLES.get(page, {}).items():
        if mark in (FIRST, LAST):
            known[0 if mark == FIRST else -1].append(example)
            continue
        found = [i for i, source in enumerate(sources) if mark in source]
        if len(found) != 1:
            raise ValueError(f"docs/{page}.md: {mark!r} is in {len(found)} examples, expected one")
        known[found[0]].append(example)
        for size, smaller in example.smaller.items():
            if sources[found[0]].count(size) != 1:
                raise ValueError(f"docs/{page}.md: expected {size} once in the example with {mark!r}")
            sources[found[0]] = sources[found[0]].replace(size, smaller)
    return list(zip(sources, known))


def script(page: str, source: str) -> tuple[str, str] | None:
    """An example's file and the command that runs it, where its first line names a file."""
    name = re.match(r"\s*# (\w+\.py)\n", source)
    command = name and re.search(rf"^ +(\S.* {re.escape(name[1])})$", PAGES[page], re.MULTILINE)
    return (name[1], command[1]) if name and command else None
