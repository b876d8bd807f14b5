"""Can the draws be trusted? Weights, their tail, bounds, verdicts, ranks and inverses."""

from .weights import (
    Estimate,
    Tail,
    elbo,
    ess,
    fit_tail,
    gpd_fit,
    k_threshold,
    log_evidence,
    min_num_samples,
    pareto_k,
    psis,
    psis_resample,
    tail_length,
)

__all__ = [
    "Estimate",
    "Tail",
    "elbo",
    "ess",
    "fit_tail",
    "gpd_fit",
    "k_threshold",
    "log_evidence",
    "min_num_samples",
    "pareto_k",
    "psis",
    "psis_resample",
    "tail_length",
]
