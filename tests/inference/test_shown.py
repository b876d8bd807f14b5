"""A fit fits on a screen: as text, in a notebook, and in a figure."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow, flows
from pyro_nflows.diagnostics.calibration import Calibration
from pyro_nflows.diagnostics.verdict import Outcome
from pyro_nflows.inference.refined import Mixing

Y = torch.linspace(-1, 1, 30, dtype=torch.float64)


def many(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("row", len(y)):
        z = pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0))
        pyro.sample("y", dist.Normal(mu + z, 1.0), obs=y)


def line() -> VI:
    guide = AutoFlow(many, lambda dim: flows.realnvp(dim, 2, (4,)))
    return VI(guide, num_steps=60, seed=0, engine="eager", progress_bar=False)


@pytest.fixture(scope="module")
def fitted() -> VI:
    return line().run(Y)


def test_text_is_short_and_says_what_to_make_of_it(fitted: VI) -> None:
    assert repr(line()) == "VI(AutoFlow), not run yet"
    for shown in (repr(fitted), repr(fitted.posterior)):
        assert fitted.verdict().sentence in shown
        assert "31 latents" in shown
        assert "log evidence" in shown
        assert len(shown.splitlines()) == 3
    chains = fitted.refine(50, num_chains=2, method="independence")
    assert repr(chains).splitlines()[-1] == chains.verdict().sentence
    assert chains.verdict().sentence in chains._repr_html_()


def test_a_history_is_a_line(fitted: VI) -> None:
    shown = repr(fitted.history)
    assert len(shown) < 120
    assert f"{fitted.history.num_steps} steps in {len(fitted.history.rounds)} rounds" in shown
    assert "tensor" not in shown
    assert repr(type(fitted.history)()) == "History(0 steps in 0 rounds, 0.0 s)"


def test_outcomes_are_names_not_templates() -> None:
    assert repr(Outcome.TRUST) == "Outcome.TRUST"
    assert repr(Mixing.APART) == "Mixing.APART"
    assert repr(Calibration.CALIBRATED) == "Calibration.CALIBRATED"


def test_html_has_the_verdict_the_evidence_and_a_short_table(fitted: VI) -> None:
    shown = fitted._repr_html_()
    assert shown is not None
    assert fitted.verdict().sentence in shown
    assert "log evidence" in shown
    assert shown.count("<tr>") < 20
    assert line()._repr_html_() is None


def test_looking_does_not_move_random_numbers(fitted: VI, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_rng_state()
    first, second = fitted.summary(), fitted.summary()
    repr(fitted)
    fitted._repr_html_()
    assert torch.equal(torch.get_rng_state(), before)
    assert str(first) == str(second)
    assert capsys.readouterr().out == f"{first}\n{second}\n"
    assert len(first) == 31
    assert len(str(first).splitlines()) < 25


def test_monte_carlo_errors_are_those_of_the_weights(fitted: VI) -> None:
    frame = fitted.summary().frame
    error = frame["std"] / (fitted.diagnostics()["ess"] * len(fitted.log_weight)) ** 0.5
    assert frame["mcse"].to_numpy() == pytest.approx(error.to_numpy(), rel=1e-6)
    exact = float(Y.sum()) / 2 / (1 + len(Y) / 2)
    assert abs(frame.loc["mu", "mean"] - exact) < 5 * frame.loc["mu", "mcse"]


def test_a_figure_has_the_course_the_weights_and_marginals(fitted: VI) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    with pyplot.rc_context({"backend": "agg"}):
        figure = fitted.plot()
        titles = [ax.get_title() for ax in figure.axes]
        assert figure.axes[0].get_ylabel() == "ELBO (nats)"
        ends = [drawn.get_xdata()[0] for drawn in figure.axes[0].lines if drawn.get_linestyle() == ":"]
        assert ends == fitted.history.rounds
        assert "ESS" in titles[1]
        assert titles[2:] == ["mu", *(f"z[{i}]" for i in range(7))]
        assert [ax.get_title() for ax in fitted.plot("mu").axes[2:]] == ["mu"]
        judged = line().judge(Y)
        assert "no steps of training" in [text.get_text() for text in judged.plot().axes[0].texts]
        pyplot.close("all")
    with pytest.raises(ValueError, match=r"^plot: var_names has \['nu'\]"):
        fitted.plot("nu")
