"""Sphinx configuration: ``make docs`` builds with it, without a network, every warning an error."""

import importlib.metadata
import os
import pathlib
import shutil
import sys

HERE = pathlib.Path(__file__).parent


def copy_tutorials() -> None:
    """Bring the tutorials, which live beside the package, under the one folder that Sphinx reads."""
    shutil.rmtree(HERE / "tutorials", ignore_errors=True)
    (HERE / "tutorials").mkdir()
    for tutorial in sorted((HERE.parent / "tutorials").glob("[0-9]*.md")):
        shutil.copy2(tutorial, HERE / "tutorials")


copy_tutorials()
sys.path.insert(0, str(HERE))

project = "pyro_nflows"
author = "The pyro_nflows contributors"
copyright = author
release = version = importlib.metadata.version("pyro-nflows")

extensions = [
    "formulas",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3

# Tutorials run afresh at every build: a cache would not notice that the package changed.
# For a quick look at the prose: PYRO_NFLOWS_DOCS_EXECUTE=off make docs
nb_execution_mode = os.environ.get("PYRO_NFLOWS_DOCS_EXECUTE", "force")
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
# Progress bars; a cell that has something to say on stderr can ask for it with `mystnb: {output_stderr: show}`.
nb_output_stderr = "remove"

# A reference in the text that leads nowhere is a warning. Types in signatures may be names of the inside.
nitpicky = True
nitpick_ignore_regex = [("py:(class|obj)", ".*"), ("py:.*", "(?!pyro_nflows).*[.].*")]

autodoc_default_options = {"members": True, "show-inheritance": True}
# Types are written once, in annotations. A docstring inherited from torch or Pyro describes something else.
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
add_module_names = False

html_theme = "furo"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_domain_indices = False  # the page "API" is the way in
html_title = f"pyro_nflows {release}"
