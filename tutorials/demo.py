"""What ``make demo`` runs: a hierarchical model and a regression, from the first line to the verdict.

Draws go to ``tutorials/output/*.nc`` for ArviZ, pictures to ``tutorials/output/*.png``.
"""

import importlib.util
import pathlib
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from pyro_nflows import VI, AutoFlow
from pyro_nflows.plots.fits import BLUE, INK, plot_elbo, plot_weights

OUTPUT = pathlib.Path(__file__).parent / "output"

# Coaching for a test in eight schools: estimated effects and their standard errors (Rubin 1981).
EFFECT = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SE = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

# 21 days of a plant that turns ammonia into nitric acid (Brownlee 1965): flow of cooling air, temperature of the
# cooling water, concentration of the acid, and ten times the percentage of ammonia that escapes.
STACK_LOSS = torch.tensor(
    [
        [80, 27, 89, 42], [80, 27, 88, 37], [75, 25, 90, 37], [62, 24, 87, 28], [62, 22, 87, 18], [62, 23, 87, 18],
        [62, 24, 93, 19], [62, 24, 93, 20], [58, 23, 87, 15], [58, 18, 80, 14], [58, 18, 89, 14], [58, 17, 88, 13],
        [58, 18, 82, 11], [58, 19, 93, 12], [50, 18, 89, 8], [50, 18, 86, 7], [50, 19, 72, 8], [50, 19, 79, 8],
        [50, 20, 80, 9], [56, 20, 82, 15], [70, 20, 91, 15],
    ],
    dtype=torch.get_default_dtype(),
)  # fmt: skip
PREDICTORS = ["air flow", "water temperature", "acid concentration"]


def eight_schools(se: Tensor, effect: Tensor) -> None:
    """Centered: a school's effect is drawn around the mean effect, so ``theta`` is squeezed where ``tau`` is small."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(se)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("effect", dist.Normal(theta, se), obs=effect)


def robust_regression(x: Tensor, y: Tensor) -> None:
    """Errors are Student's t, with as many degrees of freedom as the data ask for."""
    alpha = pyro.sample("alpha", dist.Normal(20.0, 20.0))
    with pyro.plate("predictor", x.shape[1]):
        beta = pyro.sample("beta", dist.Normal(0.0, 10.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    nu = pyro.sample("nu", dist.Gamma(2.0, 0.1))
    with pyro.plate("day", len(y)):
        pyro.sample("loss", dist.StudentT(nu, alpha + x @ beta, sigma), obs=y)


def fit(name: str, model: Callable[..., Any], *data: Tensor, coords: dict[str, list[str]]) -> tuple[VI, list[str]]:
    """Fit, print the summary, and write the ArviZ file; returns the names of the files written."""
    print(f"\n=== {name} ===", flush=True)
    vi = VI(AutoFlow(model), seed=0).run(*data)
    vi.summary()
    return vi, [save(vi.to_arviz(coords=coords), name.replace(" ", "_"))]


def save(data: Any, stem: str) -> str:
    """Write NetCDF, which ArviZ reads back; the posterior alone as NumPy arrays where nothing can write NetCDF."""
    if importlib.util.find_spec("h5netcdf") or importlib.util.find_spec("netCDF4"):
        data.to_netcdf(str(OUTPUT / f"{stem}.nc"))
        return f"{stem}.nc"
    np.savez(OUTPUT / f"{stem}.npz", **{str(k): v.values for k, v in data["posterior"].data_vars.items()})
    return f"{stem}.npz (posterior draws only: for an ArviZ file, pip install h5netcdf h5py)"


def pictures(vi: VI, stem: str, posterior: Callable[[Any], None]) -> str:
    """How it converged, how far to trust its weights, and a look at the posterior, side by side."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    plot_elbo(vi.history.trace(), ax=axes[0])
    plot_weights(vi.log_weight, ax=axes[1])
    posterior(axes[2])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(OUTPUT / f"{stem}.png", dpi=110)
    plt.close(figure)
    return f"{stem}.png"


def funnel(vi: VI, ax: Any) -> None:
    """One school's effect against the spread of all: the narrow part is where Gaussians fail."""
    draws = vi.get_samples(4000)
    ax.plot(draws["theta"][:, 0], draws["tau"].log(), ".", color=BLUE, ms=3, alpha=0.4)
    ax.set(xlabel="theta of school A", ylabel="log tau", title="posterior draws")


def intervals(vi: VI, ax: Any) -> None:
    """Central 50% and 90% intervals of the regression coefficients."""
    beta = vi.get_samples(4000)["beta"]
    for row, name in enumerate(reversed(PREDICTORS)):
        low, left, middle, right, high = beta[:, PREDICTORS.index(name)].quantile(
            torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
        )
        ax.plot([low, high], [row, row], color=BLUE, lw=1.5)
        ax.plot([left, right], [row, row], color=BLUE, lw=4)
        ax.plot(middle, row, "o", color="white", mec=BLUE, ms=7)
    ax.axvline(0, color=INK, lw=0.8, ls=":")
    ax.set(yticks=range(3), yticklabels=PREDICTORS[::-1], ylim=(-0.6, 2.6))
    ax.set(xlabel="effect of one standard deviation on loss", title="posterior, 50% and 90%")


def recap(fits: dict[str, VI]) -> Iterator[str]:
    """The evidence of each fit on one line."""
    yield f"{'':18}{'ELBO':>16}{'IWAE':>10}{'ESS':>8}{'k-hat':>8}  verdict"
    for name, vi in fits.items():
        d = vi.diagnostics()
        elbo = f"{d['elbo']:.3f} ± {d['elbo_se']:.3f}"
        outcome = d["outcome"].name.lower().replace("_", " ")
        yield f"{name:18}{elbo:>16}{d['iwae']:>10.3f}{d['ess']:>8.1%}{d['pareto_k']:>8.2f}  {outcome}"


def main() -> None:
    began = time.perf_counter()
    OUTPUT.mkdir(exist_ok=True)
    # ArviZ < 1 announces its successor at the first import of each day.
    warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing a major refactor", FutureWarning)

    schools, files = fit("eight schools", eight_schools, SE, EFFECT, coords={"school": list("ABCDEFGH")})
    files.append(pictures(schools, "eight_schools", lambda ax: funnel(schools, ax)))

    x = STACK_LOSS[:, :3]
    x = (x - x.mean(0)) / x.std(0)
    stack, more = fit("stack loss", robust_regression, x, STACK_LOSS[:, 3], coords={"predictor": PREDICTORS})
    files += [*more, pictures(stack, "stack_loss", lambda ax: intervals(stack, ax))]

    print("\n=== both ===", *recap({"eight schools": schools, "stack loss": stack}), sep="\n")
    print(f"\nWrote to {OUTPUT}, in {time.perf_counter() - began:.0f} s:", *files, sep="\n  ")


if __name__ == "__main__":
    main()
