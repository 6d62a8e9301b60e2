"""What the labs share: checked numbers, figures and tables on the page, pictures that move."""

from labkit.checks import check
from labkit.mode import QUICK
from labkit.pictures import packed, picture
from labkit.shown import show, table

__all__ = ["QUICK", "check", "packed", "picture", "show", "table"]
