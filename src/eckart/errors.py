"""What eckart refuses, and how it says so: one exception family, all faults in one message."""

from collections.abc import Sequence


class EckartError(Exception):
    """A refusal in the user's words: what arrived, what was expected, what to do."""

    @classmethod
    def of(cls, headline: str, faults: Sequence[str], *, shown: int = 12) -> "EckartError":
        """One error that lists every fault found, the first `shown` in full and the rest as a count."""
        lines = [f"  - {fault}" for fault in faults[:shown]]
        if len(faults) > shown:
            lines.append(f"  - and {len(faults) - shown} more")
        return cls("\n".join([headline, *lines]))


class SourceError(EckartError):
    """A SOURCE that cannot be found, or whose files must not be read."""


class FileFormatError(EckartError):
    """A file that is truncated, malformed or hostile."""


class MismatchError(EckartError):
    """Two checkpoints, or a checkpoint and a pattern, that do not belong together."""


class OptionError(EckartError):
    """An option whose value cannot be met."""


class OutputError(EckartError):
    """An output that cannot, or must not, be written."""


class NotFiniteError(EckartError):
    """A tensor that holds NaN or Inf, met while it was streamed."""


class MissingExtraError(EckartError):
    """An optional library that is not installed; the message names the extra that brings it."""

    @classmethod
    def for_extra(cls, extra: str, purpose: str) -> "MissingExtraError":
        """The error for `purpose`, which needs what `pip install 'eckart[extra]'` installs."""
        return cls(f"{purpose} needs the '{extra}' extra: pip install 'eckart[{extra}]'")
