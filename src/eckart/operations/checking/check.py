"""What an adapter is, and whether each runtime will load it as it is: from headers alone, without torch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from eckart.adapter.adapter import Adapter
from eckart.adapter.outline import AdapterOutline
from eckart.checkpoint.open import open_checkpoint
from eckart.errors import MismatchError, OptionError
from eckart.formats.model_names import Base, Model
from eckart.formats.peft_config import PeftConfig, read_config
from eckart.formats.sources import is_adapter, name_of, open_adapter
from eckart.formats.table import CONFIG
from eckart.operations.checking.parts import is_of_pipeline
from eckart.operations.checking.remedies import command, steps_of
from eckart.operations.checking.result import CheckResult, Finding, Verdict
from eckart.operations.checking.runtimes import RUNTIMES, Rule, Runtime, RuntimeName, Step


def check(
    adapter: Adapter | str | Path, runtimes: Sequence[RuntimeName] = (), *, base: Base | None = None
) -> CheckResult:
    """What an adapter is, whether runtimes load it, what they would ignore, and the command that makes it fit.

    Args:
        adapter: the adapter, or its SOURCE; only headers are read.
        runtimes: the runtimes to ask about; all of them by default.
        base: the model: names and shapes are compared with it.

    Raises:
        SourceError, FileFormatError: the adapter cannot be read.
        OptionError: a runtime that does not exist.
    """
    unknown = [name for name in runtimes if name not in RUNTIMES]
    if unknown:
        msg = f"`runtimes` must be among {', '.join(RUNTIMES)}, got {', '.join(unknown)}"
        raise OptionError(msg)
    if isinstance(base, str | Path) and is_adapter(base):
        msg = f"{base} is an adapter, not a model: `base` is the model that the adapter was made for"
        raise OptionError(msg)
    opened = open_adapter(adapter)
    outline, config = as_stored(opened)
    source = name_of(adapter)
    model = str(base) if isinstance(base, str | Path) else None
    verdicts: dict[RuntimeName, Verdict] = {}
    for name in runtimes or RUNTIMES:
        found = findings(outline, config, RUNTIMES[name])
        fix = command(name, steps_of(found), outline, source=source, base=model)
        verdicts[name] = Verdict(name, RUNTIMES[name].version, found, fix)
    fault = None if base is None else _misfit(opened, base)
    return CheckResult(source, model, outline, verdicts, tuple(runtimes), fault)


def as_stored(adapter: Adapter) -> tuple[AdapterOutline, PeftConfig | None]:
    """The outline of an adapter in the format of its files, and their PEFT config if there is one.

    PEFT folders named like the components of a pipeline are one adapter, but no runtime takes them so.
    """
    outline = adapter.outline()
    configs = [file for file in adapter.files if file.name == CONFIG]
    if outline.format == "diffusers" and configs:
        return replace(outline, format="peft"), None
    return outline, read_config(configs[0]) if outline.format == "peft" and configs else None


def findings(outline: AdapterOutline, config: PeftConfig | None, runtime: Runtime) -> list[Finding]:
    """The rules of a runtime that apply to an adapter, each with the names of the parts."""
    reason = f"loads {runtime.loads}, and this is one of the format {outline.format}"
    if runtime.pipelines not in (None, is_of_pipeline(outline)):
        kinds = ("diffusion pipelines", "language models")
        loaded, other = kinds if runtime.pipelines else kinds[::-1]
        return [_whole(f"loads adapters of {loaded}, and this is one of {other}", None)]
    reason = f"loads {runtime.loads}, and this adapter is in the format {outline.format}"
    of_format = [] if outline.format in runtime.formats else [_whole(reason, "format")]
    rules = [rule for rule in runtime.rules if rule.within in (None, outline.format)]
    applying = ((rule, tuple(rule.finds(outline, config))) for rule in rules)
    return of_format + [Finding(rule, names) for rule, names in applying if names]


def _whole(reason: str, step: Step | None) -> Finding:
    """A refusal of the adapter as a whole."""
    return Finding(Rule("refuses", lambda _, __: (), reason, "", step), ())


def _misfit(adapter: Adapter, base: Base) -> str | None:
    """Why an adapter does not fit a base; None if it does."""
    from eckart.operations.fitting import fitted
    from eckart.operations.placement import find_places

    try:
        if adapter.format == "diffusers":
            faults = Model.of(base).misfits(adapter.outline())
            if faults:
                msg = f"the adapter does not fit {base}"
                raise MismatchError.listing(msg, faults)
        else:
            checkpoint = open_checkpoint(base)  # type: ignore[arg-type]
            find_places(checkpoint, [fitted(adapter, checkpoint).outline()])
    except MismatchError as fault:
        return str(fault)
    return None
