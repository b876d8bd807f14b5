"""What the documentation's own tools do: formulas without a network, and pages that are looked at in a browser."""

import importlib.util
import os
import pydoc
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def tool(name: str) -> ModuleType:
    """A module of the folder of the documentation, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def formulas() -> Any:
    pytest.importorskip("latex2mathml")
    pytest.importorskip("sphinx")
    return tool("formulas")


def made(formulas: Any, tex: str) -> str:
    from docutils import nodes

    return formulas.mathml(nodes.math(tex, tex), "inline")


def test_a_function_stands_apart_from_its_argument(formulas: Any) -> None:
    space = '<mspace width="0.167em" />'
    assert f"<mi>log</mi>{space}<mi>w</mi>" in made(formulas, r"\log w")
    assert f"</msub>{space}<mi>D</mi>" in made(formulas, r"\log_2 D")
    assert space not in made(formulas, r"\log(w) + D x")


def test_bars_are_close_and_hats_narrow(formulas: Any) -> None:
    bar = '<mo stretchy="false" lspace="0" rspace="0">|</mo>'
    assert made(formulas, r"\lvert x \rvert").count(bar) == 2
    assert '<mover accent="true"><mi>k</mi><mo stretchy="false">^</mo></mover>' in made(formulas, r"\hat k")
    assert "<mo>∼</mo>" in made(formulas, r"u \sim q")


def test_a_formula_over_several_lines_is_a_table(formulas: Any) -> None:
    from docutils import nodes

    tex = r"a &= b \\ c &= d"
    assert formulas.mathml(nodes.math_block(tex, tex), "block").count("<mtr>") == 2


PAGE = """<!doctype html><meta name="viewport" content="width=device-width"><div class="content">
<p style="width: 600px">wide</p><pre style="width: 200px; overflow: auto">{code}</pre>
<img src="nothing.png"><script src="https://pages.invalid/x.js"></script></div>"""


@pytest.mark.slow
def test_a_page_that_does_not_fit_is_found(tmp_path: Path) -> None:
    pages = tool("check_pages")
    names = [os.environ["CHROMIUM"]] if "CHROMIUM" in os.environ else pages.BROWSERS
    if not any(map(shutil.which, names)):
        pytest.skip("no browser")
    (tmp_path / "index.html").write_text(PAGE.format(code="x" * 100))
    (tmp_path / "fits.html").write_text("<!doctype html><p>All is well")
    found = pages.check(tmp_path, ["index.html", "fits.html"], [1280, 390], 60.0)
    assert {(row["page"], row["width"], row["kind"]) for row in found} == {
        ("index.html", 390, "wider than the window"),
        ("index.html", 1280, "wider than its column"),
        *(("index.html", width, kind) for width in (1280, 390) for kind in ("missing picture", "from another machine")),
    }


def test_it_says_what_to_build(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="make docs first"):
        tool("check_pages").main([str(tmp_path)])


REFERENCE = re.compile(r":(?:mod|class|func|meth|data|exc):`(?:[^`<]*<)?~?(pyro_nflows[\w.]+)>?`")


MODULE = re.compile(r":mod:`(?:[^`<]*<)?~?(pyro_nflows[\w.]+)>?`")
SECTION = re.compile(r"^\.\. (?:auto)?module:: (pyro_nflows[\w.]*)", re.MULTILINE)


def referred_to(reference: re.Pattern[str] = REFERENCE) -> set[str]:
    """Whole names that the pages, the tutorials and the docstrings refer to."""
    root = DOCS.parent
    pages = [*DOCS.glob("*.md"), *(DOCS / "api").glob("*.md"), *(root / "tutorials").glob("*.md")]
    texts = [page.read_text(encoding="utf-8").replace("{", ":").replace("}", ":") for page in pages]
    texts += [source.read_text(encoding="utf-8") for source in (root / "pyro_nflows").rglob("*.py")]
    return {name for text in texts for name in reference.findall(text)}


def test_every_name_that_is_referred_to_is_there() -> None:
    names = referred_to()
    assert len(names) > 100
    missing = []
    for name in sorted(names):
        try:
            pydoc.resolve(name)
        except (ImportError, pydoc.ErrorDuringImport):
            missing.append(name)
    assert not missing


def test_every_module_that_is_referred_to_has_its_place_in_the_api() -> None:
    """Without one, the reference leads nowhere, and the pages are not built."""
    pages = [page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md")]
    found = {name for page in pages for name in SECTION.findall(page)}
    assert len(found) > 50
    assert referred_to(MODULE) <= found
