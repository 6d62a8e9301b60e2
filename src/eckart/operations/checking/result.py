"""What a check found: the adapter in numbers, and a verdict for each runtime."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eckart.adapter.outline import AdapterOutline
from eckart.operations.checking.runtimes import Rule, RuntimeName
from eckart.result import Result

LISTED = 2  # names in a sentence


@dataclass(frozen=True)
class Finding:
    """A rule that applies to an adapter, and the names of the parts."""

    rule: Rule
    names: Sequence[str]

    @property
    def text(self) -> str:
        """The reason with the first names: `does not support DoRA: a.q_proj, a.v_proj and 30 more`."""
        shown = ", ".join(self.names[:LISTED])
        more = f" and {len(self.names) - LISTED} more" if len(self.names) > LISTED else ""
        return f"{self.rule.reason}: {shown}{more}" if self.names else self.rule.reason


@dataclass(frozen=True)
class Verdict:
    """Whether a runtime takes an adapter as it is.

    Attributes:
        runtime: the runtime.
        version: whose source the rules are from.
        findings: the rules that apply.
        fix: the command that makes the adapter fit; None if it does, or if none can.
    """

    runtime: RuntimeName
    version: str
    findings: Sequence[Finding]
    fix: str | None

    @property
    def loads(self) -> bool:
        """Whether the runtime loads the adapter, perhaps with an option, or without a part of it."""
        return not self.texts("refuses")

    @property
    def fits(self) -> bool:
        """Whether it loads all of the adapter, with the same numbers."""
        return self.loads and not self.texts("ignores")

    def texts(self, effect: str) -> list[str]:
        """What the runtime refuses, ignores or needs."""
        return [finding.text for finding in self.findings if finding.rule.effect == effect]

    def to_json(self) -> dict[str, Any]:
        """The entry of `runtimes`."""
        return {
            "version": self.version,
            "loads": self.loads,
            "refused": self.texts("refuses"),
            "ignored": self.texts("ignores"),
            "needs": self.texts("needs"),
            "fix": self.fix,
        }


@dataclass(frozen=True, repr=False)
class CheckResult(Result):
    """What an adapter is, and which runtimes load it.

    Attributes:
        source: the adapter as the user named it.
        base: the model as the user named it.
        outline: the adapter's headers.
        verdicts: of each runtime.
        asked: the runtimes that the user asked about; none for all.
        misfit: why the adapter does not fit the base; None if it does, or no base was given.
    """

    source: str
    base: str | None
    outline: AdapterOutline
    verdicts: Mapping[RuntimeName, Verdict]
    asked: tuple[RuntimeName, ...] = ()
    misfit: str | None = None

    @property
    def fits(self) -> bool:
        """Whether it fits the base, and every runtime asked about loads all of it."""
        return self.misfit is None and all(self.verdicts[name].fits for name in self.asked)

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of layers by kind, rank and scale, and of tensors by data type; the most common first."""
        layers = list(self.outline.values())
        counted = {
            "kinds": Counter(self._kind(name) for name in self.outline),
            "ranks": Counter(str(layer.rank) for layer in layers),
            "scales": Counter(f"{layer.scaling:.4g}" for layer in layers),
            "dtypes": Counter(str(tensor.dtype) for tensor in self.outline.tensors()),
        }
        return {what: dict(counts.most_common()) for what, counts in counted.items()}

    def _kind(self, name: str) -> str:
        layer = self.outline[name]
        extras = [word for word, part in (("DoRA", layer.magnitude), ("bias", layer.bias)) if part is not None]
        return " with ".join([layer.kind, *([" and ".join(extras)] if extras else [])])

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """One row per runtime."""
        return [{"runtime": name, **verdict.to_json()} for name, verdict in self.verdicts.items()]

    def to_json(self) -> dict[str, Any]:
        """The `eckart-check/1` object."""
        outline = self.outline
        metadata = outline.config.get("metadata")
        return {
            "format": "eckart-check/1",
            "source": self.source,
            "base": self.base,
            "misfit": self.misfit,
            "adapter": {
                "format": outline.format,
                "layers": len(outline),
                **self.counts(),
                "saved": list(outline.modules_to_save),
                "params": outline.params,
                "bytes": outline.nbytes,
                "base_model": outline.base_model,
                "task_type": outline.task_type,
                "metadata": metadata if isinstance(metadata, dict) else {},
            },
            "runtimes": {name: verdict.to_json() for name, verdict in self.verdicts.items()},
            "fits": self.fits,
        }
