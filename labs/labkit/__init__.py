"""Shared by the labs: checked numbers, figures and tables on the page, interactive pictures."""

from labkit.checks import check
from labkit.mode import QUICK
from labkit.pictures import packed, picture
from labkit.shown import show, table

__all__ = ["QUICK", "check", "packed", "picture", "show", "table"]
