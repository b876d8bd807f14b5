"""Pictures of a fit and of ranks; matplotlib is imported when the first is drawn."""

from .fits import plot_density, plot_elbo, plot_weights
from .overview import plot_overview
from .paths import plot_path
from .ranks import plot_calibration, plot_ecdf, plot_ranks

__all__ = [
    "plot_calibration",
    "plot_density",
    "plot_ecdf",
    "plot_elbo",
    "plot_overview",
    "plot_path",
    "plot_ranks",
    "plot_weights",
]
