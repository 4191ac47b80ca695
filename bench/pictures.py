"""The pictures of the README: the first screen of a run's page, and the layers of an analysis.

    granplugin apply recipes/digits_mobilenet.yaml
    granplugin analyze recipes/digits_mobilenet.yaml --set rules.rescue.weight=per_tensor --out runs/coarse
    python bench/pictures.py runs/digits_mobilenet runs/coarse

Both pages are made again, with this version of the package, and Chromium draws them.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from granplugin.pipelines.report import report

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
sys.path.insert(0, str(HERE.parent / "tests"))
from browser import Browser, browser  # noqa: E402


def draw(
    tab: Browser, page: Path, target: Path, size: tuple[int, int], part: str, below: int = 0
) -> None:
    """What `size` shows from `below` the top of the element `part` on, in 256 colours."""
    tab.size(*size)
    tab.open(page)
    tab.ask(f"document.getElementById('{part}').scrollIntoView(); scrollBy(0, {below})")
    tab.ask("document.querySelectorAll('.modebar').forEach(each => each.remove())")
    with tempfile.TemporaryDirectory() as scratch:
        shot = Path(scratch) / "shot.png"
        tab.picture(shot, *size)
        picture = Image.open(io.BytesIO(shot.read_bytes())).convert("RGB")
    picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        target, optimize=True
    )


def main(run: Path, analysis: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch, browser(Path(scratch) / "profile") as tab:
        pages = [
            report(folder, Path(scratch) / f"{at}.html")
            for at, folder in enumerate((run, analysis))
        ]
        draw(tab, pages[0], DOCS / "report.png", (1240, 1080), "verdict")
        draw(tab, pages[1], DOCS / "layers.png", (1240, 560), "layers", 24)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
