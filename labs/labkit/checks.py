"""A number of the lesson, computed, printed, and held to what the text says of it."""

from numbers import Integral


def check(name: str, value: float, expected: float, within: float = 0.0) -> None:
    """Print a computed number, and stop the lab where it is not what the text says.

    Args:
        name: what the number is, as a reader would say it.
        value: as computed.
        expected: as the text has it.
        within: the greatest difference allowed, in the same unit; none for counts.

    Raises:
        AssertionError: the difference is greater, or the value is no number.
    """
    if not abs(value - expected) <= within:
        allowed = f" ± {_text(within)}" if within else ""
        msg = f"{name}: computed {_text(value)}, but the lesson says {_text(expected)}{allowed}"
        raise AssertionError(msg)
    print(f"✓ {name}: {_text(value)}")


def _text(number: float) -> str:
    """Counts in full with thousands, everything else with four digits; what is true or false in a word."""
    if isinstance(number, bool):
        return "yes" if number else "no"
    if isinstance(number, Integral):
        return f"{number:,}"
    return f"{number:.4g}"
