"""A summary has every scalar, and prints what fits on a screen."""

import numpy as np
import pytest
import torch

from pyro_nflows.diagnostics.summary import MOST, Summary, by_weights

GENERATOR = torch.Generator().manual_seed(0)
SAMPLES = {
    "mu": torch.randn(1000, generator=GENERATOR),
    "county": 3 + 2 * torch.randn(1000, 85, generator=GENERATOR),
    "pair": torch.randn(1000, 2, 2, generator=GENERATOR),
}


def names(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines()[1:]]


def test_numbers_are_those_of_the_draws() -> None:
    frame = Summary(SAMPLES, by_weights(250.0), prob=0.8).frame
    assert list(frame.columns) == ["mean", "std", "median", "10.0%", "90.0%", "mcse"]
    assert len(frame) == 1 + 85 + 4
    values = SAMPLES["county"][:, 7].double()
    expected = [values.mean(), values.std(), *values.quantile(torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64))]
    np.testing.assert_allclose(frame.loc["county[7]"], [*expected, values.std() / 250**0.5])


def test_long_sites_are_shortened_unless_asked_for() -> None:
    shown = names(str(Summary(SAMPLES)))
    assert len(shown) == 1 + MOST + 1 + 4
    assert shown[:2] == ["mu", "county[0]"]
    assert shown[-7:] == ["...", "county[83]", "county[84]", "pair[0,0]", "pair[0,1]", "pair[1,0]", "pair[1,1]"]
    assert '... 73 more: summary(var_names=["county"]) prints them' in str(Summary(SAMPLES))
    assert len(str(Summary(SAMPLES)).splitlines()[0]) == len("county[83]") + 5 * 10  # the words widen no column
    assert names(str(Summary(SAMPLES, var_names="county"))) == [f"county[{i}]" for i in range(85)]
    assert names(str(Summary(SAMPLES, var_names=["pair", "mu"])))[-1] == "mu"


def test_kinds_of_columns() -> None:
    assert Summary(SAMPLES, by_weights(9.0), kind="diagnostics").columns == ["mcse"]
    assert Summary(SAMPLES, by_weights(9.0), kind="stats").columns == ["mean", "std", "median", "5.0%", "95.0%"]
    assert Summary(SAMPLES, by_weights(9.0))["mcse"].loc["mu"] == pytest.approx(float(SAMPLES["mu"].std()) / 3)


def test_notes_are_below_and_html_has_the_printed_rows() -> None:
    summary = Summary({"a<b": torch.zeros(5), "mu": torch.ones(5)}, notes=["all is well"])
    assert str(summary).endswith("\n\nall is well")
    table = summary.to_html()
    assert "a&lt;b" in table
    assert table.count("<tr>") == 3
    assert "all is well" not in table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"var_names": ["muu"]}, r"var_names has \['muu'\], but the sites are \['mu', 'county', 'pair'\]"),
        ({"kind": "some"}, "kind must be one of .*, got 'some'"),
        ({"prob": 90}, "prob must be between 0 and 1, got 90"),
    ],
)
def test_mistakes_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Summary(SAMPLES, **options)  # type: ignore[arg-type]


def test_sites_without_scalars() -> None:
    assert len(Summary({"none": torch.zeros(5, 0), "mu": torch.zeros(5)})) == 1
    assert names(str(Summary({"none": torch.zeros(5, 0), "mu": torch.zeros(5)}))) == ["mu"]
