r"""Draw the thumbnails of the home page from the pictures of the built tutorials.

    python docs/gallery.py [FOLDER]

reads ``docs/_build/html/tutorials`` (run ``make docs`` first) and writes ``docs/_static/gallery/NN.png``; they are kept
beside the sources, so that a page built without running the tutorials has them too.
"""

import argparse
import pathlib
import re
from collections.abc import Sequence

from PIL import Image

HERE = pathlib.Path(__file__).parent
#: Where the first picture is not the one that says most: its place in the page.
CHOSEN = {"03": 2, "04": 1, "07": 3, "08": 2, "13": 1, "14": 1, "16": 4, "17": 3, "18": 4}
SIZE = (480, 270)
#: Of a wider picture only one end is shown, the left one unless it is named here.
WIDEST = 2.0
RIGHT = {"01"}


def thumbnail(file: pathlib.Path, right: bool) -> Image.Image:
    """The picture, or an end of it, in the middle of a white card."""
    picture = Image.open(file).convert("RGB")
    width = min(picture.width, int(WIDEST * picture.height))
    left = picture.width - width if right else 0
    picture = picture.crop((left, 0, left + width, picture.height))
    picture.thumbnail(SIZE, Image.Resampling.LANCZOS)
    card = Image.new("RGB", SIZE, "white")
    card.paste(picture, tuple((whole - part) // 2 for whole, part in zip(SIZE, picture.size)))
    return card.quantize(64, dither=Image.Dither.NONE)


def main(argv: Sequence[str] | None = None) -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=HERE / "_build" / "html")
    folder = parser.parse_args(argv).folder / "tutorials"
    out = HERE / "_static" / "gallery"
    out.mkdir(parents=True, exist_ok=True)
    for page in sorted(folder.glob("[0-9][0-9]_*.html")):
        pictures = re.findall(r'<img[^>]* src="([^"]*_images/[^"]+)"', page.read_text(encoding="utf-8"))
        number = page.name[:2]
        card = thumbnail(folder / pictures[CHOSEN.get(number, 0)], number in RIGHT)
        card.save(out / f"{number}.png", optimize=True)


if __name__ == "__main__":
    main()
