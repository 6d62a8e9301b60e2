"""Figures and tables on the page; plain text if a lab runs as a script."""

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from IPython import get_ipython
from IPython.display import HTML, display

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def show(figure: "Figure", alt: str) -> None:
    """Put a figure on the page.

    Args:
        figure: from `eckart.report.figures.style.new_figure`.
        alt: what it shows, for screen readers.
    """
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    data = base64.b64encode(image.getvalue()).decode()
    source = f"data:image/png;base64,{data}"
    put(f'<img class="figure" style="max-width:100%" alt="{html.escape(alt)}" src="{source}">', f"[figure] {alt}")


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> None:
    """Put a table on the page; cells are converted by `str`, so format numbers first."""
    head = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in headers)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    lines = [f"[table] {caption}", " | ".join(headers), *(" | ".join(map(str, row)) for row in rows)]
    markup = f'<table class="numbers">{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    put(markup, "\n".join(lines))


def put(markup: str, words: str) -> None:
    """Show markup in a notebook, plain text otherwise."""
    if get_ipython() is None:
        print(words)
    else:
        display(HTML(markup))
