"""Pictures that move: one HTML file each, which asks no network and works inside a notebook and inside a page."""

import base64
import html
import json
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from labkit.shown import put

# A frame is as high as what is in it, also when the window changes.
FIT = """<script>
const fit = () => frameElement?.style.setProperty("height", `${document.body.getBoundingClientRect().height + 2}px`);
addEventListener("resize", fit);
fit();
</script>"""


def picture(name: str, data: object, *, alt: str) -> None:
    """Put an interactive picture on the page, in a frame of its own.

    Args:
        name: of a file `labkit/NAME.html`, in which `/*DATA*/null` stands where the data go.
        data: what it draws, as JSON has it.
        alt: what it shows, for readers who hear the page.
    """
    text = Path(__file__).with_name(f"{name}.html").read_text(encoding="utf-8")
    page = text.replace("/*DATA*/null", json.dumps(data).replace("</", "<\\/")).replace("</html>", f"{FIT}</html>")
    style = "width:100%;height:600px;border:0"
    frame = f'<iframe style="{style}" title="{html.escape(alt)}" srcdoc="{html.escape(page)}"></iframe>'
    put(f'<div class="picture">{frame}</div>', f"[picture] {alt}")


def packed(numbers: ArrayLike) -> str:
    """Numbers as text that a page reads fast: float32, row after row, in base64."""
    return base64.b64encode(np.ascontiguousarray(numbers, dtype="<f4").tobytes()).decode()
