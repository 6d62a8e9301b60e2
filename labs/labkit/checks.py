"""Numbers of a lesson: computed, printed, and compared with the text."""

from numbers import Integral


def check(name: str, value: float, expected: float, within: float = 0.0) -> None:
    """Print a computed number, and stop the lab if it differs from the text.

    Args:
        name: what the number is, in a reader's words.
        value: as computed.
        expected: the number in the text.
        within: largest allowed difference, in the same unit; 0 for counts.

    Raises:
        AssertionError: the difference is larger, or the value is NaN.
    """
    if not abs(value - expected) <= within:
        allowed = f" ± {_text(within)}" if within else ""
        msg = f"{name}: computed {_text(value)}, but the lesson says {_text(expected)}{allowed}"
        raise AssertionError(msg)
    print(f"✓ {name}: {_text(value)}")


def _text(number: float) -> str:
    """Counts with thousands separators, other numbers with four digits, booleans as words."""
    if isinstance(number, bool):
        return "yes" if number else "no"
    if isinstance(number, Integral):
        return f"{number:,}"
    return f"{number:.4g}"
