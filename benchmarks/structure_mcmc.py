r"""Big hierarchies against NumPyro's NUTS: are means and standard deviations of what is outside of plates the same?

    python -m benchmarks.structure_mcmc [--models radon_85,groups_2000] [--seeds 3] [--draws 1000]

The models and data of :mod:`benchmarks.structure`, and one of :mod:`benchmarks.centering`. NUTS runs four chains, each
with 1,000 steps of adaptation and then ``--draws`` draws, in double precision. A row of a fit has, over all latents
outside of plates (of ``sparse_24``, a regression with a horseshoe prior, over all latents, scales by their logarithms),
the largest error of a mean in NUTS's standard deviations and the ratio of standard deviations that is furthest from
one; the row of NUTS has the noise that its smallest effective sample size lets expect of these, and its largest R-hat.
Seconds are of processor time, with compilation.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pyro
from numpyro.infer import MCMC, NUTS
from torch import Tensor

from benchmarks.centering import data
from benchmarks.structure import Case, case
from pyro_nflows import VI, AutoFlow


def hierarchy(y: Any) -> None:
    """Groups of one observation each, non-centered, which suits the data of the funnel and of the groups."""
    mu, tau = numpyro.sample("mu", dist.Normal(0.0, 5.0)), numpyro.sample("tau", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("groups", len(y)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu + tau * z, 1.0), obs=y)


def radon(county: Any, x: Any, y: Any, num_counties: int) -> None:
    """An intercept and a slope for each county: the former centered, the latter not, which mixes best here."""
    mu_a, mu_b = (numpyro.sample(name, dist.Normal(0.0, 5.0)) for name in ("mu_a", "mu_b"))
    s_a, s_b, s = (numpyro.sample(name, dist.HalfNormal(1.0)) for name in ("s_a", "s_b", "s"))
    with numpyro.plate("counties", num_counties):
        a, b = numpyro.sample("a", dist.Normal(mu_a, s_a)), numpyro.sample("b", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(a[county] + (mu_b + s_b * b[county]) * x, s), obs=y)


def items(y: Any) -> None:
    """The two-parameter logistic model of item response."""
    mu, s = numpyro.sample("mu", dist.Normal(0.0, 2.0)), numpyro.sample("s", dist.HalfNormal(1.0))
    with numpyro.plate("items", y.shape[1], dim=-1):
        slope = numpyro.sample("slope", dist.LogNormal(0.0, 0.5))
        difficulty = numpyro.sample("difficulty", dist.Normal(mu, s))
    with numpyro.plate("students", y.shape[0], dim=-2):
        ability = numpyro.sample("ability", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Bernoulli(logits=slope * (ability - difficulty)), obs=y)


def sparse(x: Any, y: Any) -> None:
    """Logistic regression with a horseshoe prior, non-centered, which mixes best; the weights are kept too."""
    tau = numpyro.sample("tau", dist.HalfCauchy(0.5))
    with numpyro.plate("feature", x.shape[1]):
        scale = numpyro.sample("scale", dist.HalfCauchy(1.0))
        eta = numpyro.sample("eta", dist.Normal(0.0, 1.0))
    weight = numpyro.deterministic("weight", tau * scale * eta)
    numpyro.sample("y", dist.Bernoulli(logits=x @ weight), obs=y)


#: For each kind of model, NumPyro's version and the latents that are compared.
MODELS: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "groups": (hierarchy, ("mu", "tau")),
    "funnel": (hierarchy, ("mu", "tau")),
    "radon": (radon, ("mu_a", "mu_b", "s_a", "s_b", "s")),
    "items": (items, ("mu", "s")),
    "sparse": (sparse, ("tau", "scale", "weight")),
}

#: Latents without moments, which are compared by their logarithms.
LOGS = {"sparse": ("tau", "scale")}


def nuts(name: str, chosen: Case, num_draws: int) -> tuple[dict[str, np.ndarray], float]:
    """Draws (chains, draws) of what is outside of plates, and seconds."""
    model, names = MODELS[name.rsplit("_", 1)[0]]
    args = [jnp.asarray(value.numpy()) if isinstance(value, Tensor) else value for value in chosen.args]
    began = time.process_time()
    kernel = NUTS(model, target_accept_prob=0.9)
    mcmc = MCMC(
        kernel, num_warmup=1000, num_samples=num_draws, num_chains=4, chain_method="sequential", progress_bar=False
    )
    mcmc.run(jax.random.PRNGKey(0), *args)
    draws = mcmc.get_samples(group_by_chain=True)
    seconds = time.process_time() - began
    return entries(name, {key: np.asarray(draws[key], dtype=float) for key in names}), seconds


def entries(name: str, draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each entry of a model's latents by itself, from chains of draws."""
    found: dict[str, np.ndarray] = {}
    for key, values in draws.items():
        values = np.log(values) if key in LOGS.get(name.rsplit("_", 1)[0], ()) else values
        parts = [values] if values.ndim == 2 else np.moveaxis(values, -1, 0)
        found.update({key if values.ndim == 2 else f"{key}{i}": part for i, part in enumerate(parts)})
    return found


def ours(chosen: Case, seed: int) -> tuple[dict[str, Any], VI, float]:
    """Draws, the fit, and seconds."""
    pyro.clear_param_store()
    began = time.process_time()
    vi = VI(AutoFlow(chosen.model), seed=seed, progress_bar=False).run(*chosen.args)
    draws = vi.get_samples(4000)
    return draws, vi, time.process_time() - began


def compared(name: str, draws: dict[str, Tensor], reference: dict[str, np.ndarray]) -> str:
    """The largest error of a mean, and the ratio of standard deviations furthest from one."""
    errors, ratios = {}, {}
    _, names = MODELS[name.rsplit("_", 1)[0]]
    each = entries(name, {key: draws[key].double().numpy()[None] for key in names})
    for key, values in reference.items():
        errors[key] = (each[key].mean() - values.mean()) / values.std()
        ratios[key] = each[key].std() / values.std()
    worst = max(errors, key=lambda key: abs(errors[key]))
    widest = max(ratios, key=lambda key: abs(np.log(ratios[key])))
    return f"{errors[worst]:+7.3f} {worst:9}{ratios[widest]:7.3f} {widest:9}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="radon_85,radon_400,groups_400,groups_2000,funnel_100,items_200,sparse_24")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args(arguments)
    print(f"{'model':14}{'by':>8}{'CPU s':>8}{'ESS':>8}  {'mean: error':17}{'sd: ratio':17}  verdict")
    for name in options.models.split(","):
        chosen = Case(data()["sparse"][0], data()["sparse"][-1]) if name == "sparse_24" else case(name)
        jax.config.update("jax_enable_x64", True)
        reference, seconds = nuts(name, chosen, options.draws)
        least = min(float(az.ess(values)) for values in reference.values())
        worst = max(float(az.rhat(values)) for values in reference.values())
        noise = f"{least**-0.5:7.3f} noise{(2 * least) ** -0.5:7.3f} noise"
        print(f"{name:14}{'NUTS':>8}{seconds:8.0f}{least:8.0f}  {noise}  R-hat {worst:.3f}", flush=True)
        for seed in range(options.seeds):
            draws, vi, seconds = ours(chosen, seed)
            d = vi.diagnostics()
            row = f"{seconds:8.0f}{d['ess']:8.3f}  {compared(name, draws, reference)}"
            print(f"{name:14}{f'seed {seed}':>8}{row}  {d['outcome'].name}", flush=True)


if __name__ == "__main__":
    main()
