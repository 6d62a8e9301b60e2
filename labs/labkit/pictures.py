"""Interactive pictures: one HTML file each, without network, for notebooks and pages."""

import base64
import html
import json
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from labkit.shown import put

# Fits the height of the frame to its content, also when the window changes.
FIT = """<script>
const fit = () => frameElement?.style.setProperty("height", `${document.body.getBoundingClientRect().height + 2}px`);
addEventListener("resize", fit);
fit();
</script>"""


def picture(name: str, data: object, *, alt: str) -> None:
    """Put an interactive picture on the page, in a separate frame.

    Args:
        name: name of a file `labkit/NAME.html`, in which `/*DATA*/null` is replaced by the data.
        data: what it draws; must be JSON-serializable.
        alt: what it shows, for screen readers.
    """
    text = Path(__file__).with_name(f"{name}.html").read_text(encoding="utf-8")
    page = text.replace("/*DATA*/null", json.dumps(data).replace("</", "<\\/")).replace("</html>", f"{FIT}</html>")
    style = "width:100%;height:600px;border:0"
    frame = f'<iframe style="{style}" title="{html.escape(alt)}" srcdoc="{html.escape(page)}"></iframe>'
    put(f'<div class="picture">{frame}</div>', f"[picture] {alt}")


def packed(numbers: ArrayLike) -> str:
    """Numbers as text that a page decodes fast: float32, row by row, in base64."""
    return base64.b64encode(np.ascontiguousarray(numbers, dtype="<f4").tobytes()).decode()
