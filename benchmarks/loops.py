r"""Models that are written as a Python loop: what doing their like operations at once is worth.

    python -m benchmarks.loops [--models autoregression,groups] [--sizes 100,300] [--as-written] [--no-fits]

For each model, how many operations it has and how many steps are left; milliseconds of a gradient at 100 draws, through
the model's own Python and at once; and a fit by default settings, ``VI(AutoFlow(model)).run(data)``: its outcome, ESS,
steps and seconds of processor time. ``--as-written`` fits each model through its own Python too.
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import config_enumerate
from torch import Tensor

from pyro_nflows import VI, AutoFlow
from pyro_nflows.model import at_once
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.like_calls import recorded
from pyro_nflows.model.log_joint import LogJoint
from pyro_nflows.system.exclusive import validation

DRAWS, REPEATS = 100, 5
Row = dict[str, Any]


def autoregression(y: Tensor) -> None:
    """An autoregression of order two with noise on top."""
    level, a, b = (pyro.sample(name, dist.Normal(0.0, sd)) for name, sd in (("level", 3.0), ("a", 0.5), ("b", 0.5)))
    scale, noise = pyro.sample("scale", dist.HalfNormal(1.0)), pyro.sample("noise", dist.HalfNormal(1.0))
    before = last = torch.zeros(())
    for t in range(len(y)):
        x = pyro.sample(f"x_{t}", dist.Normal(a * last + b * before, scale))
        pyro.sample(f"y_{t}", dist.Normal(level + x, noise), obs=y[t])
        before, last = last, x


def volatility(y: Tensor) -> None:
    """Stochastic volatility, state by state."""
    mu, phi, sigma = _volatility()
    h = pyro.sample("h_0", dist.Normal(mu, sigma / (1 - phi**2).sqrt()))
    for t in range(1, len(y)):
        pyro.sample(f"y_{t - 1}", dist.Normal(0.0, (h / 2).exp()), obs=y[t - 1])
        h = pyro.sample(f"h_{t}", dist.Normal(mu + phi * (h - mu), sigma))
    pyro.sample("last", dist.Normal(0.0, (h / 2).exp()), obs=y[-1])


def innovations(y: Tensor) -> None:
    """The same by its innovations: a recursion, in which each turn waits for the last."""
    mu, phi, sigma = _volatility()
    z = pyro.sample("z", dist.Normal(torch.zeros(len(y)), 1.0).to_event(1))
    h = mu + sigma * z[0] / (1 - phi**2).sqrt()
    for t in range(len(y)):
        pyro.sample(f"y_{t}", dist.Normal(0.0, (h / 2).exp()), obs=y[t])
        if t + 1 < len(y):
            h = mu + phi * (h - mu) + sigma * z[t + 1]


def _volatility() -> tuple[Tensor, Tensor, Tensor]:
    mu, share = pyro.sample("mu", dist.Normal(0.0, 3.0)), pyro.sample("half_phi", dist.Beta(20.0, 1.5))
    return mu, 2 * share - 1, pyro.sample("sigma", dist.HalfNormal(0.5))


def groups(y: Tensor) -> None:
    """Groups of five rows, with sites of their own in place of a plate."""
    loc, scale = pyro.sample("loc", dist.Normal(0.0, 3.0)), pyro.sample("scale", dist.HalfNormal(1.0))
    for i, rows in enumerate(y.split(5)):
        mean = pyro.sample(f"mean_{i}", dist.Normal(loc, scale))
        with pyro.plate(f"rows_{i}", len(rows)):
            pyro.sample(f"y_{i}", dist.Normal(mean, 1.0), obs=rows)


@config_enumerate
def hidden(y: Tensor) -> None:
    """A hidden Markov model of three states, which Pyro sums out step by step."""
    probs = pyro.sample("probs", dist.Dirichlet(0.9 * torch.eye(3) + 0.5).to_event(1))
    loc = pyro.sample("loc", dist.Normal(torch.tensor([-2.0, 0.0, 2.0]), 1.0).to_event(1))
    scale, x = pyro.sample("scale", dist.LogNormal(0.0, 0.5)), 0
    for t in pyro.markov(range(len(y))):
        x = pyro.sample(f"x_{t}", dist.Categorical(probs[x]))
        pyro.sample(f"y_{t}", dist.Normal(loc[x], scale), obs=y[t])


MODELS: dict[str, Callable[[Tensor], None]] = {
    model.__name__: model for model in (autoregression, volatility, innovations, groups, hidden)
}


def data(name: str, size: int) -> Tensor:
    """A series of so many values."""
    noise = torch.randn(2, size, generator=torch.Generator().manual_seed(0))
    state, states = [0.0, 0.0], []
    for t in range(size):
        state = [0.6 * state[0] + 0.3 * state[1] + 0.3 * float(noise[0, t]), state[0]]
        states.append(state[0])
    x = torch.tensor(states)
    if name in ("volatility", "innovations"):
        return (x / 2).exp() * noise[1]
    if name == "hidden":
        return torch.where(x > 0.3, 2.5, torch.where(x < -0.3, -2.0, 0.0)) + 0.7 * noise[1]
    return 1 + x.repeat_interleave(5)[:size] + noise[1] if name == "groups" else 1 + x + 0.3 * noise[1]


@contextmanager
def as_written() -> Iterator[None]:
    """Within it, no model's operations are done at once."""
    many = at_once.MANY
    at_once.MANY = math.inf  # type: ignore[assignment]
    try:
        yield
    finally:
        at_once.MANY = many


def gradients(name: str, size: int) -> Row:
    """How many operations a model has, how many are left, and milliseconds of a gradient at some draws."""
    pyro.clear_param_store()
    y, model = data(name, size), MODELS[name]
    guide = AutoFlow(model)
    guide(y)
    joint = LogJoint(BoundModel(guide.bare_model, (y,)), guide.latents)
    joint.prepare()
    with validation(False):
        recording = recorded(joint.single, joint.latents.init_loc(), (y,))
    found: Row = {"operations": len(recording.calls) if recording else 0, "left": len(joint.at_once or ())}
    found["at_once"] = _milliseconds(joint)
    joint.at_once = None
    return found | {"as_written": _milliseconds(joint)}


def _milliseconds(joint: LogJoint) -> float:
    z = joint.latents.init_loc().expand(DRAWS, -1).clone().requires_grad_()
    took = []
    for _ in range(REPEATS):
        began = time.process_time()
        torch.autograd.grad(joint(z).sum(), z)
        took.append(time.process_time() - began)
    return 1e3 * min(took)


def fitted(name: str, size: int) -> Row:
    """A fit by default settings."""
    pyro.clear_param_store()
    began = time.process_time()
    vi = VI(AutoFlow(MODELS[name]), seed=0, progress_bar=False).run(data(name, size))
    found = vi.diagnostics()
    return {key: found[key] for key in ("outcome", "ess", "num_steps")} | {"seconds": time.process_time() - began}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--sizes", default="100,300")
    parser.add_argument("--as-written", action="store_true", help="fit each model through its own Python too")
    parser.add_argument("--no-fits", dest="fits", action="store_false")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"{'model':<16}{'size':>6}{'operations':>12}{'left':>6}{'as written ms':>15}{'at once ms':>12}")
    pairs = [(name, int(size)) for name in options.models.split(",") for size in options.sizes.split(",")]
    for name, size in pairs:
        row = gradients(name, size)
        counts = f"{row['operations']:>12,}{row['left'] or '-':>6}"
        print(f"{name:<16}{size:>6}{counts}{row['as_written']:>15.1f}{row['at_once']:>12.1f}", flush=True)
    if not options.fits:
        return
    print(f"\n{'model':<16}{'size':>6}  {'operations':<12}{'outcome':<14}{'ESS':>6}{'steps':>8}{'seconds':>9}")
    for name, size in pairs:
        for way in ("at once", *(["as written"] if options.as_written else [])):
            if way == "as written":
                with as_written():
                    row = fitted(name, size)
            else:
                row = fitted(name, size)
            line = f"{row['outcome'].name:<14}{row['ess']:>6.2f}{row['num_steps']:>8,}{row['seconds']:>9.1f}"
            print(f"{name:<16}{size:>6}  {way:<12}{line}", flush=True)


if __name__ == "__main__":
    main()
