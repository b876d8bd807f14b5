"""NumPyro's side of ``benchmarks.speed``: the same models, flow, objective and optimiser.

    python -m benchmarks.numpyro_speed STEPS

runs so many steps of eight schools with 16 particles, for the time that a fresh process takes.
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.example_libraries import stax
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoIAFNormal


def eight_schools(effect: Any, se: Any) -> None:
    """Non-centered."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", 8):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        numpyro.sample("effect", dist.Normal(mu + tau * theta, se), obs=effect)


def logistic(x: Any, y: Any) -> None:
    """A logistic regression."""
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(x.shape[1]), 1.0).to_event(1))
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)


def subsampled(x: Any, y: Any) -> None:
    """The same with 100 rows a step."""
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(x.shape[1]), 1.0).to_event(1))
    with numpyro.plate("row", len(x), subsample_size=100) as index:
        numpyro.sample("y", dist.Bernoulli(logits=x[index] @ beta), obs=y[index])


def correlated(precision: Any) -> None:
    """A Gaussian of any dimension."""
    z = numpyro.sample("z", dist.Normal(jnp.zeros(len(precision)), 1.0).to_event(1))
    numpyro.factor("coupling", -0.5 * (z * (z @ precision)).sum(-1))


MODELS = {"eight_schools": eight_schools, "logistic": logistic, "subsampled": subsampled, "correlated": correlated}


def _svi(model: str, num_particles: int, width: int = 32) -> SVI:
    guide = AutoIAFNormal(MODELS[model], num_flows=3, hidden_dims=[width, width], nonlinearity=stax.Tanh)
    return SVI(MODELS[model], guide, numpyro.optim.Adam(1e-3), Trace_ELBO(num_particles=num_particles))


def block(
    model: str, args: tuple[Any, ...], num_particles: int, num_steps: int, double: bool, width: int
) -> Callable[[], None]:
    """So many steps in one compiled call: the loop that ``svi.run`` compiles, without compiling it anew each time."""
    jax.config.update("jax_enable_x64", double)
    arrays = tuple(map(jnp.array, args))
    return loop(_svi(model, num_particles, width), arrays, num_steps)


def loop(svi: SVI, arrays: tuple[Any, ...], num_steps: int) -> Callable[[], None]:
    """So many steps of an ``SVI`` in one compiled call, which goes on where the last one ended."""
    state = svi.init(jax.random.PRNGKey(0), *arrays)
    run = jax.jit(lambda s: jax.lax.scan(lambda carry, _: svi.update(carry, *arrays), s, None, length=num_steps))

    def go() -> None:
        nonlocal state
        state, losses = run(state)
        losses.block_until_ready()

    go()
    return go


def main() -> None:
    """Steps of ``svi.run``."""
    effect = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    se = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    svi = _svi("eight_schools", 16)
    result = svi.run(jax.random.PRNGKey(0), int(sys.argv[1]), effect, se, progress_bar=False)
    result.losses.block_until_ready()


if __name__ == "__main__":
    main()
