"""Run the README's examples as a reader would paste them: every ``python`` fence, in order, in one session.

``python tests/run_readme.py [--installed]``; with ``--installed`` the package must come from an installed wheel,
which is also checked for the marker that makes its type annotations count.
"""

import argparse
import os
import pathlib
import re
import sys
import tempfile

README = pathlib.Path(__file__).parent.parent / "README.md"


def examples(text: str) -> list[str]:
    """The source of each fence, moved down to its own lines so that a traceback points into the README."""
    fences = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return ["\n" * text.count("\n", 0, fence.start(1)) + fence[1] for fence in fences]


def run(readme: pathlib.Path = README) -> None:
    sources = examples(readme.read_text(encoding="utf-8"))
    if not sources:
        raise ValueError(f"{readme}: got no ```python fence, expected at least one")
    session = {"__name__": "__main__"}
    for source in sources:
        exec(compile(source, str(readme), "exec"), session)
    print(f"{readme.name}: {len(sources)} examples ran")


def check_installed() -> None:
    import pyro_nflows

    package = pathlib.Path(pyro_nflows.__file__).parent
    if "site-packages" not in package.parts:
        raise ValueError(f"got pyro_nflows from {package}, expected an installed wheel")
    if not (package / "py.typed").is_file():
        raise ValueError(f"got no py.typed in {package}: list it in setup.cfg under options.package_data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--installed", action="store_true", help="insist on an installed wheel")
    installed = parser.parse_args().installed
    os.environ.setdefault("MPLBACKEND", "Agg")
    sys.path[:] = [path for path in sys.path if path != str(pathlib.Path(__file__).parent)]  # tests/arviz is no arviz
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        if installed:
            check_installed()
        run()
        os.chdir(README.parent)


if __name__ == "__main__":
    main()
