"""Numbers as people read them: bytes, seconds, counts, ranks with their range."""

from collections.abc import Sequence

from eckart.linalg import Interval

Number = int | float | Interval | None


def bytes_text(count: float) -> str:
    """Bytes in decimal units, as disks and model cards count them: `4.9 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def seconds_text(seconds: float) -> str:
    """A duration: `0.8 s`, `75 s`, `12 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def count_text(count: int) -> str:
    """A number of parameters: `576`, `135 M`, `8.03 B`."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= 0.9995 * size:  # which three digits round to one of this unit
            return f"{count / size:.3g} {unit}"
    return str(count)


def percent_text(share: float, digits: int = 3) -> str:
    """A share in percent; a tiny one, which rounding errors decide, only as a limit: `12.3%`, `< 0.001%`, `0%`."""
    if 0 < abs(share) < 1e-5:
        return "< 0.001%"
    return f"{100 * share:.{digits}g}%"


def shape_text(shape: Sequence[int]) -> str:
    """`576×1536`."""
    return "×".join(map(str, shape))


def number_text(number: Number) -> str:
    """A statistic: a float with three digits, an integer as it is, `12–40` if bounded, `–` if undefined."""
    if number is None:
        return "–"
    if isinstance(number, Interval):
        return f"{number_text(number.lower)}–{number_text(number.upper)}"
    return str(number) if isinstance(number, int) else f"{number:.3g}"
