"""The verdict: every outcome, and what its sentence says."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_nflows.diagnostics.findings import Faults, MissedMass, RowFit, Training
from pyro_nflows.diagnostics.row_verdict import with_rows
from pyro_nflows.diagnostics.verdict import Evidence, Outcome, judge
from pyro_nflows.diagnostics.weights import Estimate
from pyro_nflows.diagnostics.worth import effective, tail_index


def weights(kind: str) -> Tensor:
    """Log-weights of 10,000 draws, laid out as quantiles of their law."""
    p = (torch.arange(10_000) + 0.5) / 10_000
    return {
        "equal": torch.zeros(10_000),
        "light": 0.3 * torch.special.ndtri(p),
        "wide": 1.1 * torch.special.ndtri(p).clamp(max=2.0),
        "heavy": -0.9 * p.log(),
    }[kind]


def evidence(log_weight: Tensor, **kwargs: Any) -> Evidence:
    return Evidence(log_weight, **{"log_evidences": [], "means": [], "sd": torch.ones(1), **kwargs})


def starts(gap: float = 0.0, shift: float = 0.0) -> dict[str, Any]:
    estimates = [Estimate(torch.tensor(value), torch.tensor(0.001)) for value in (-3.0, -3.0 + gap)]
    return {"log_evidences": estimates, "means": [torch.zeros(2), torch.tensor([0.0, shift])], "sd": torch.ones(2)}


@pytest.mark.parametrize(
    ("given", "outcome", "says"),
    [
        (evidence(weights("equal")), Outcome.TRUST, "ESS is 100% of the draws"),
        (evidence(weights("light")), Outcome.TRUST, "Trust these draws"),
        (evidence(weights("wide")), Outcome.RESAMPLED, "importance-resampled"),
        (evidence(weights("heavy")), Outcome.DISTRUST, "is above 0.6"),
        (evidence(weights("light"), **starts()), Outcome.TRUST, "Trust these draws"),
        (evidence(weights("light"), **starts(gap=0.5)), Outcome.STARTS_DISAGREE, "log evidence -3.00 to -2.50"),
        (evidence(weights("light"), **starts(shift=0.5)), Outcome.STARTS_DISAGREE, "several modes"),
        (
            evidence(weights("light"), faults=Faults(not_finite="tau")),
            Outcome.NOT_FINITE,
            "(3 of 9 steps), first at site 'tau'",
        ),
        (evidence(weights("wide"), faults=Faults(vague=("tau", 151.0))), Outcome.RESAMPLED, "importance-resampled"),
        (
            evidence(weights("wide"), faults=Faults(vague=("tau", 92.7))),
            Outcome.TOO_FEW,
            "they are worth only 93 independent ones at site 'tau' (ESS 4",
        ),
        (
            evidence(torch.tensor([0.0, 0.0, 0.0, 0.1, 0.2] * 4)),  # a tail cannot be told from so few
            Outcome.TOO_FEW,
            "they are worth only 20 independent ones",
        ),
        (evidence(weights("heavy").mul(0.3).clamp(max=2.0)[:300]), Outcome.TOO_FEW, "independent ones"),
        (
            evidence(weights("heavy")[:200] * 0.5, faults=Faults(vague=("tau", 20.0))),
            Outcome.TOO_FEW,
            "independent ones (ESS",
        ),
    ],
)
def test_every_outcome(given: Evidence, outcome: Outcome, says: str) -> None:
    verdict = judge(given, Training(num_steps=9, skipped=3))
    assert verdict.outcome is outcome
    assert says in verdict.sentence
    assert "{" not in verdict.sentence


@pytest.mark.parametrize("kind", ["wide", "heavy"])
@pytest.mark.parametrize("missed", [0.0, 0.5])
def test_a_quick_fit_has_one_remedy(kind: str, missed: float) -> None:
    given = evidence(weights(kind), missed=MissedMass(missed, "mu", 3.0))
    default, quick = (judge(given, Training(quick=quick)).sentence for quick in (False, True))
    said = ". Only a Gaussian was fitted, by effort='quick'; effort='default' trains a flow."
    assert quick.endswith(said)
    assert default.startswith(quick.removesuffix(said))
    for other in ("more steps", "AutoCIF", "num_steps", "vi.refine"):
        assert other not in quick


@pytest.mark.parametrize(
    ("training", "says"),
    [
        (Training(was_right=True), " The start was already right: no training was needed."),
        (Training(was_right=True, descent=5), " The best Gaussian is right: no flow was trained."),
        (
            Training(was_right=True, descent=5, has_mixture=True),
            " The best mixture of Gaussians is right: no flow was trained.",
        ),
    ],
)
def test_a_start_is_called_right_only_where_its_draws_are_trusted(training: Training, says: str) -> None:
    assert judge(evidence(weights("equal")), training).sentence.endswith(says)
    resampled = judge(evidence(weights("wide")), training)
    assert resampled.outcome is Outcome.RESAMPLED
    assert " right" not in resampled.sentence
    assert resampled.sentence.endswith(" No flow was trained.")


def test_a_k_hat_just_above_its_threshold_is_shown_to_be_above(monkeypatch: pytest.MonkeyPatch) -> None:
    given = evidence(weights("heavy"))
    k_hat = tail_index(given.log_weight)
    monkeypatch.setattr("pyro_nflows.diagnostics.verdict.k_limit", lambda num, ess: k_hat - 0.0004)
    words = judge(given).sentence.split()
    shown, limit = (float(words[words.index(word) + 1].rstrip(";,")) for word in ("k-hat", "above"))
    assert shown > limit


@pytest.mark.parametrize(
    ("size", "outcome", "words"),
    [(0.05, Outcome.TRUST, "a tail of nearly equal weights"), (0.065, Outcome.TAILS, "but not far tails")],
)
def test_tails_alone_do_not_condemn(size: float, outcome: Outcome, words: str) -> None:
    """A high k-hat with a high ESS: a few draws in ten thousand that weigh more."""
    exceedances = ((torch.arange(300) + 0.5) / 300) ** -0.9 - 1
    verdict = judge(evidence(torch.cat([-1e-3 * torch.rand(9700), size * exceedances]).log1p()))
    assert verdict.outcome is outcome
    assert words in verdict.sentence


@pytest.mark.parametrize(("largest", "outcome"), [(0.08, Outcome.TRUST), (0.3, Outcome.TAILS)])
def test_the_shape_of_a_tail_of_even_weights_says_nothing(largest: float, outcome: Outcome) -> None:
    """A k-hat of 3, as of a guide that is right to a thousandth, where no weight is a tenth above their mean."""
    exceedances = ((torch.arange(300) + 0.5) / 300) ** -3.0
    weight = torch.cat([1 + 1e-9 * torch.rand(9700).double(), 1 + largest * exceedances / exceedances.max()])
    assert tail_index(weight.log()) > 2
    assert judge(evidence(weight.log())).outcome is outcome


@pytest.mark.parametrize(("k", "outcome"), [(0.5, Outcome.RESAMPLED), (0.67, Outcome.DISTRUST)])
def test_below_an_ess_of_a_half_k_hat_has_to_be_clearly_low(k: float, outcome: Outcome) -> None:
    """Quantiles of a Pareto distribution: below 0.7, but not by the standard error of a k-hat."""
    log_weight = -k * ((torch.arange(22_500) + 0.5) / 22_500).double().log()
    log_weight = torch.cat([log_weight, torch.full((60_000,), -30.0).double()])
    assert effective(log_weight) < 0.5
    assert tail_index(log_weight) < 0.7
    assert judge(evidence(log_weight)).outcome is outcome


def test_weights_that_rows_leave_uncertain_are_not_trusted() -> None:
    flat = judge(evidence(torch.zeros(1000)))
    for uneven, outcome in ((0.1, Outcome.TRUST), (0.5, Outcome.ROWS)):
        assert with_rows(flat, RowFit("groups", 2000, 17, 0.9, 0.2, uneven)).outcome is outcome


def test_the_verdict_tells_of_restarts_only_where_it_is_no() -> None:
    flat, heavy = torch.zeros(1000), -0.9 * ((torch.arange(1000) + 0.5) / 1000).log()
    for log_weight, tells in ((flat, False), (heavy, True)):
        sentence = judge(Evidence(log_weight, [], [], torch.ones(1)), Training(100, 0, 2)).sentence
        assert ("went back 2 times" in sentence) is tells
