"""Pictures that move: one HTML file each, which asks no network and works inside a notebook and inside a page."""

import html
import json
from pathlib import Path

from labkit.shown import put


def picture(name: str, data: object, *, alt: str, height_px: int) -> None:
    """Put an interactive picture on the page, in a frame of its own.

    Args:
        name: of a file `labkit/NAME.html`, in which `/*DATA*/null` stands where the data go.
        data: what it draws, as JSON has it.
        alt: what it shows, for readers who hear the page.
        height_px: of the frame; its width is the page's.
    """
    text = Path(__file__).with_name(f"{name}.html").read_text(encoding="utf-8")
    page = text.replace("/*DATA*/null", json.dumps(data).replace("</", "<\\/"))
    frame = f'style="width:100%;height:{height_px}px;border:0" title="{html.escape(alt)}"'
    put(f'<iframe class="picture" {frame} srcdoc="{html.escape(page)}"></iframe>', f"[picture] {alt}")
