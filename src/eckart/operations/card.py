"""The model card of an output: README.md, with the metadata that the hub shows, and what was done in which numbers.

It is the same for the same inputs and command: no time, no path of this machine. The license is the user's to state.
"""

import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from eckart.checkpoint.links import link_fault
from eckart.checkpoint.manifest import CARD, sealed_card, unsealed_card
from eckart.checkpoint.remote.urls import without_secrets
from eckart.version import __version__

if TYPE_CHECKING:
    from eckart.adapter import AdapterOutline
    from eckart.operations.adapter_result import AdapterResult

COMMAND: ContextVar[str | None] = ContextVar("COMMAND", default=None)
"""The command line that is running, for the cards of its outputs; None in Python."""

RECIPE: ContextVar[tuple[str, str] | None] = ContextVar("RECIPE", default=None)
"""The heading and the YAML of the recipe that is running; None outside one."""

Facts = Sequence[tuple[str, str]]
_MOST_BYTES = 2**20  # of an untrusted card
_LICENSE = re.compile(r"^(license|license_name|license_link): *([^\n#|>&*!{\[]{1,200}?) *$", re.MULTILINE)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(?=$|@)")
_ASKED = "# license: to be filled in, such as apache-2.0; the license of the base model applies too"


def write_card(
    folder: Path,
    title: str,
    facts: Facts,
    *,
    base: str | None,
    metadata: Mapping[str, Any],
    source: Path | None = None,
) -> None:
    """Write README.md into a folder of an output.

    Args:
        folder: the folder, not yet under its final name.
        title: in Markdown, such as `LoRA adapter of` and the base in `code`.
        facts: what is known of it, by name, in Markdown.
        base: the base model: a name on the hub is stated in the metadata.
        metadata: fields for the hub, such as `library_name` and `tags`.
        source: folder of the adapter or model that this one is another form of, whose license is kept.
    """
    from huggingface_hub import ModelCardData

    fields: dict[str, Any] = {**metadata, **(license_fields := license_of(source))}
    if hub_name := _name_on_hub(base):
        fields["base_model"] = hub_name
    else:
        fields.pop("base_model_relation", None)
    head = ModelCardData(**fields).to_yaml().strip()
    command = COMMAND.get()
    lines = [
        *("---", head, *([] if license_fields else [_ASKED]), "---", "", f"# {title}", ""),
        *([f"Made by eckart {__version__}:", "", *_block(command), ""] if command else []),
        *([recipe[0], "", *_block(recipe[1].rstrip(), "yaml"), ""] if (recipe := RECIPE.get()) else []),
        *(f"- {name}: {value}" for name, value in facts),
        *([] if command else [f"- Made by eckart {__version__}"]),
    ]
    _write(folder, "\n".join(lines) + "\n")


def add_facts(folder: Path, facts: Facts) -> None:
    """Add to the card in a folder what was measured after it was written."""
    card = unsealed_card((folder / CARD).read_text(encoding="utf-8")) or ""
    _write(folder, card + "".join(f"- {name}: {value}\n" for name, value in facts))


def write_adapter_card(folder: Path, result: "AdapterResult", source: Path | None) -> None:
    """The card of an adapter that was extracted, resized or combined; of `source` see `write_card`."""
    outline = result.adapter.outline()
    sources = {"extract": "the update of the fine-tune", "resize": "the adapter", "combine": "the combination"}
    of_what = sources.get(result.made_by, "the update")
    least = f"; the least possible at these ranks is {percent(result.error_lower_bound)}"
    facts = [*facts_of(outline), (f"Relative error of {of_what}", f"{percent(result.error)}{least}")]
    metadata = metadata_of(outline, result.made_by)
    write_card(folder, title_of(outline), facts, base=outline.base_model, metadata=metadata, source=source)


def title_of(outline: "AdapterOutline") -> str:
    """The heading of an adapter's card."""
    of_base = f" of {code(shown_name(outline.base_model))}" if outline.base_model else ""
    return f"{'DoRA' if _is_dora(outline) else 'LoRA'} adapter{of_base}"


def facts_of(outline: "AdapterOutline") -> list[tuple[str, str]]:
    """The ranks and the size of an adapter."""
    ranks = [layer.rank for layer in outline.values()]
    low, high = min(ranks), max(ranks)
    shown = f"{low}" if low == high else f"{median(ranks):g} ({low}–{high})"
    facts = [("Rank", f"{shown}, in {len(ranks):,} layers"), ("Parameters", f"{outline.params:,}")]
    if outline.modules_to_save:
        facts.append(("Tensors saved in full", f"{len(outline.modules_to_save):,}"))
    return facts


def metadata_of(outline: "AdapterOutline", made_by: str) -> dict[str, Any]:
    """The fields of an adapter's card for the hub."""
    library = {"peft": "peft", "diffusers": "diffusers", "mlx": "mlx"}.get(outline.format)
    tags = ["eckart", f"eckart-{made_by}", "dora" if _is_dora(outline) else "lora"]
    return {"base_model_relation": "adapter", "library_name": library, "tags": tags}


def percent(share: float) -> str:
    """A share as a percentage of three digits."""
    return f"{100 * share:.3g} %"


def code(text: str) -> str:
    """Untrusted text as a Markdown code span: on one line, and with more backticks around it than in it."""
    printable = "".join(character if character.isprintable() else "�" for character in text)[:200]
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", printable)), default=0))
    space = " " if printable[:1] in ("`", " ", "") or printable[-1:] in ("`", " ") else ""
    return f"{fence}{space}{printable}{space}{fence}"


def shown_name(model: str) -> str:
    """A model's name without what it says of this machine: the name on the hub, or the last part of a path or URL."""
    return _name_on_hub(model) or without_secrets(model).rstrip("/\\").replace("\\", "/").rpartition("/")[2]


def license_of(folder: Path | None) -> dict[str, str]:
    """The license that the card in a folder states, by the names of its fields; a link out of it is not read."""
    text = card_of(folder) if folder else ""
    front = re.match(r"---\n(.*?)\n---(\n|$)", text, re.DOTALL)
    found = _LICENSE.findall(front[1]) if front else ()
    return {name: value.strip("\"'") for name, value in found}


def card_of(folder: Path) -> str:
    """The text of the card in a folder; empty if there is none, or a link out of it."""
    card = folder / CARD
    if not card.is_file() or link_fault(card, card.parent) or card.stat().st_size > _MOST_BYTES:
        return ""
    return card.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n")


def _name_on_hub(model: str | None) -> str | None:
    """The name of a model on the hub, also from a path in the hub's cache; None for another path."""
    if model is None:
        return None
    if cached := re.search(r"(?:^|[\\/])models--([\w.-]+?)--([\w.-]+)(?=$|[\\/])", model):
        return f"{cached[1]}/{cached[2]}"
    match = _HUB_NAME.match(model)
    return match[0] if match and not Path(model).expanduser().exists() else None


def _is_dora(outline: "AdapterOutline") -> bool:
    return any(layer.magnitude is not None for layer in outline.values())


def _write(folder: Path, card: str) -> None:
    (folder / CARD).write_bytes(sealed_card(card).encode())


def _block(command: str, language: str = "bash") -> list[str]:
    """A command or a recipe in a Markdown code block, which it cannot end."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", command)), default=0))
    return [f"{fence}{language}", command, fence]
