"""The page's data of a sweep."""

from typing import TYPE_CHECKING, Any

from eckart.report.page.numbers import Numbers
from eckart.report.page.render import rendered

if TYPE_CHECKING:
    from eckart.training import Sweep


def sweep_page(sweep: "Sweep", *, title: str) -> str:
    """The page of one sweep."""
    return rendered({"sweeps": [sweep_data(title, sweep.to_json())]}, Numbers(), title=title)


def sweep_data(title: str, sweep: dict[str, Any]) -> dict[str, Any]:
    """The page's view of a `sweep.json`.

    Raises:
        KeyError, TypeError: a field is missing, or has another type.
    """
    spot = sweep["sweet_spot"]
    return {
        "title": title,
        "model": sweep["about"]["model"],
        "base_loss": sweep["base_loss"],
        "heldout_tokens": sweep["heldout_tokens"],
        "settings": sweep["settings"],
        "cells": [
            {key: cell[key] for key in ("rank", "target", "seed", "loss", "seconds", "peak_bytes", "error")}
            for cell in sweep["cells"]
        ],
        "sweet_spot": spot and {key: spot[key] for key in ("rank", "target", "params", "noise", "probability")},
    }
