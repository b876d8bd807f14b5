r"""Open the built pages in a headless Chromium, on a laptop and on a telephone, and say what does not fit.

    python docs/check_pages.py [FOLDER] [--pages index.html,...] [--widths 1280,390] [--shots FOLDER]

``make check-pages`` runs it on ``docs/_build/html``. It fails where a page is wider than the window, where a picture is
missing, and where a page asks another machine for something; at 1,000 pixels and more also where a table, code or a
formula is wider than its column. The browser is ``chromium`` (Debian) or ``google-chrome``, or what the environment
variable ``CHROMIUM`` names. ``--shots`` writes a picture of each page at each width.
"""

import argparse
import functools
import http.server
import json
import os
import pathlib
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
#: What may be wider than the column on a small screen, since it is scrolled by itself.
BOXES = "pre, .table-wrapper, div.math, .cell_output .text_html"
WHERE_ALL_FITS = 1000

HARNESS = """<!doctype html><meta charset="utf-8"><title>Checking</title><body><script>
const jobs = JOBS, boxes = "BOXES", wide = WIDE;
const name = e => e.tagName.toLowerCase() + (e.className ? "." + String(e.className).trim().replace(/ +/g, ".") : "");
const words = e => (e.textContent || "").trim().replace(/\\s+/g, " ").slice(0, 60);

function look(frame, page, width) {
  const doc = frame.contentDocument, view = frame.contentWindow, found = [];
  const say = (kind, what) => found.push({page, width, kind, what});
  const root = doc.documentElement;
  for (const box of [root, ...doc.querySelectorAll(".content")]) {
    if (box.scrollWidth <= box.clientWidth + 1) continue;
    const edge = box.getBoundingClientRect().left + box.clientWidth + 1;
    const out = [...box.querySelectorAll("*")].filter(e =>
      e.getBoundingClientRect().right > edge && e.getBoundingClientRect().width > 0
      && !e.parentElement.closest(boxes) && !e.closest(".toc-drawer, .sidebar-drawer"));
    say("wider than the window", `${box.scrollWidth} > ${box.clientWidth} px: ` +
      out.slice(-2).map(e => `${name(e)} "${words(e)}"`).join(", "));
  }
  for (const box of doc.querySelectorAll(boxes))
    if (width >= wide && box.scrollWidth > box.clientWidth + 1)
      say("wider than its column", `${name(box)} ${box.scrollWidth} > ${box.clientWidth} px: "${words(box)}"`);
  for (const image of doc.images)
    if (!image.complete || !image.naturalWidth) say("missing picture", image.getAttribute("src"));
  for (const e of doc.querySelectorAll("script[src], img[src], iframe[src], link[rel=stylesheet], link[rel=icon]"))
    if (/^(https?:)?\\/\\//.test(e.getAttribute("src") || e.getAttribute("href")))
      say("from another machine", e.getAttribute("src") || e.getAttribute("href"));
  return found;
}

async function run() {
  let found = [];
  for (const [page, width] of jobs) {
    const frame = document.createElement("iframe");
    frame.style = `width: ${width}px; height: 900px; border: 0`;
    const loaded = new Promise(resolve => { frame.onload = resolve; });
    frame.src = "/" + page;
    document.body.append(frame);
    await loaded;
    await frame.contentDocument.fonts.ready;
    found = found.concat(look(frame, page, width));
    frame.remove();
  }
  await fetch("/__found__", {method: "POST", body: JSON.stringify(found)});
}
run().catch(error => fetch("/__found__", {method: "POST", body: JSON.stringify([{page: "", width: 0,
  kind: "the check itself failed", what: String(error)}])}));
</script>"""


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the pages, the harness, and takes what it found."""

    harness = b""
    found: "queue.Queue[bytes]"

    def do_GET(self) -> None:
        if self.path != "/__check__":
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(self.harness)

    def do_POST(self) -> None:
        self.found.put(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of each file."""


def browser() -> list[str]:
    """The command of a browser without a window."""
    names = [os.environ["CHROMIUM"]] if "CHROMIUM" in os.environ else BROWSERS
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        sys.exit(f"no browser: looked for {', '.join(names)}. Install chromium, or say CHROMIUM=/path/to/it")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses to run as root otherwise
    return [path, "--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run", *sandbox]


@contextmanager
def served(folder: pathlib.Path, harness: str) -> Iterator[tuple[str, "queue.Queue[bytes]"]]:
    """The folder on a port of this machine."""
    found: queue.Queue[bytes] = queue.Queue()
    handler = type("Given", (Handler,), {"harness": harness.encode(), "found": found})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", found
        server.shutdown()


def check(folder: pathlib.Path, pages: Sequence[str], widths: Sequence[int], seconds: float) -> list[dict[str, object]]:
    """What does not fit, page by page."""
    jobs = json.dumps([(page, width) for page in pages for width in widths])
    harness = HARNESS.replace("JOBS", jobs).replace("BOXES", BOXES).replace("WIDE", str(WHERE_ALL_FITS))
    # What the browser leaves running for a moment may still write there.
    profiles = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with served(folder, harness) as (address, found), profiles as profile:
        command = [*browser(), f"--user-data-dir={profile}", "--remote-debugging-port=0", f"{address}/__check__"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return json.loads(found.get(timeout=seconds))
        except queue.Empty:
            sys.exit(f"the browser had not looked at {len(pages)} pages after {seconds:.0f} s")
        finally:
            process.terminate()
            process.wait()


def shoot(folder: pathlib.Path, pages: Sequence[str], widths: Sequence[int], out: pathlib.Path) -> None:
    """A picture of each page at each width, the first 2,400 pixels of it."""
    out.mkdir(parents=True, exist_ok=True)
    for page in pages:
        for width in widths:
            file = out / f"{page.removesuffix('.html').replace('/', '-')}-{width}.png"
            command = [*browser(), f"--window-size={width},2400", f"--screenshot={file}", (folder / page).as_uri()]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main(argv: Sequence[str] | None = None) -> int:
    """Print what does not fit; 1 if anything does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = pathlib.Path(__file__).parent
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=here / "_build" / "html")
    parser.add_argument("--pages", help="some of them, with commas between; all otherwise")
    parser.add_argument("--widths", default="1280,390", help="pixels, with commas between")
    parser.add_argument("--shots", type=pathlib.Path, help="write a picture of each page into this folder")
    parser.add_argument("--seconds", type=float, default=300.0, help="after which it is given up")
    options = parser.parse_args(argv)
    folder = options.folder.resolve()
    if not (folder / "index.html").is_file():
        sys.exit(f"no index.html in {folder}: make docs first")
    every = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.html"))]
    built = [page for page in every if not page.startswith(("_modules", "_static", "genindex", "search"))]
    pages = options.pages.split(",") if options.pages else built
    widths = [int(width) for width in options.widths.split(",")]
    found = check(folder, pages, widths, options.seconds)
    for one in found:
        print(f"{one['page']} at {one['width']} px: {one['kind']}: {one['what']}")
    print(f"{len(pages)} pages at {' and '.join(map(str, widths))} px: {len(found) or 'nothing'} amiss")
    if options.shots:
        shoot(folder, pages, widths, options.shots)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
