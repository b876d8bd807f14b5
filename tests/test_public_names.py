"""What a user sees of the package, and how it is cited."""

import re
from pathlib import Path

import pytest

import pyro_nflows

ROOT = Path(__file__).parents[1]


def test_only_public_names_are_completed() -> None:
    assert set(dir(pyro_nflows)) == {*pyro_nflows.__all__, "__version__"}
    assert all(hasattr(pyro_nflows, name) for name in dir(pyro_nflows))


@pytest.mark.parametrize(
    ("file", "line"), [("CITATION.cff", r"^version: (.+)$"), ("README.md", r"^  version = \{(.+)\}")]
)
def test_citations_are_of_this_version(file: str, line: str) -> None:
    cited = re.search(line, (ROOT / file).read_text(), re.MULTILINE)
    built = re.search(r"^version = (.+)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    assert cited is not None
    assert built is not None
    assert cited[1] == built[1]


def test_the_readme_counts_the_guides() -> None:
    counted = re.search(r"(\d+) guides \|", (ROOT / "README.md").read_text())
    assert counted is not None
    assert int(counted[1]) == sum(name.startswith("Auto") for name in pyro_nflows.__all__)


def test_files_that_the_readme_links_to_are_there() -> None:
    readme = (ROOT / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)", readme) if "//" not in link]
    links += re.findall(r'<img src="([^"]+)"', readme)
    assert {"docs/posteriors.png", "docs/becoming.gif", "docs/coming_from.md"} <= set(links)
    assert [link for link in links if not (ROOT / link).exists()] == []
