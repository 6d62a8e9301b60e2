"""From kohya's flattened names to the modules of a language model and back.

Underscores are ambiguous: `to_out_0` may be `to_out.0` or `to.out.0`. So the model's names are flattened and compared.
Image and video models have tables instead (`formats.families`).
"""

import re
from collections.abc import Iterable
from functools import partial

from eckart.adapter.adapter import Adapter
from eckart.formats.families.recognize import unknown_modules
from eckart.formats.lora_file import without_keys
from eckart.formats.model_names import Model, flattened
from eckart.formats.renaming import Move, Renaming, rescaled, shaped, twice

_LANGUAGE_MODEL = re.compile(r"lora_te_(?:model_)?layers_\d+_(?:self_attn|mlp)_")


def to_modules(adapter: Adapter, model: Model | None) -> Renaming:
    """From kohya's names to the model's."""
    moves: list[Move] = []
    faults, unknown = [], []
    for name in adapter:
        modules = model.modules(name) if model else []
        if len(modules) == 1:
            fit = partial(shaped, view=model.views.get(modules[0]) if model else None)
            moves.append(Move(modules[0], (name,), fit, fit))
        elif modules:
            faults.append(f"{name}: may be {' or '.join(modules)}")
        elif model:
            faults.append(f"{name}: no module of this name in {model.source}")
        else:
            unknown.append(name)
    if is_of_language_model(unknown):
        reason = "of a language model, or of one that encodes text for an image model: give its model as `base`"
        faults += [f"{name}: {reason}, or its `family`" for name in unknown]
    else:
        faults += unknown_modules(unknown, remedy="; or give its model as `base`")
    faults += twice([(move.new, move.old[0]) for move in moves])
    return Renaming(moves, faults, is_pipeline=model.is_pipeline if model else True)


def is_of_language_model(names: Iterable[str]) -> bool:
    """Whether an adapter's names are those of one language model, by itself or as an image model's text encoder."""
    names = list(names)
    return all(name.startswith("lora_te") for name in names) and any(map(_LANGUAGE_MODEL.match, names))


def from_modules(adapter: Adapter, _model: Model | None = None) -> Renaming:
    """From the names of a language model's modules to kohya's.

    A module is `lora_te_` and its name without the leading `model.`: sd-scripts names text encoders that are language
    models this way, and ComfyUI finds them.
    """
    pairs = [(f"lora_te_{flattened(name.removeprefix('model.'))}", name) for name in adapter]
    faults = twice(pairs)
    outlines = adapter.outline()
    bias = "it has a trained bias (lora_bias), which only ComfyUI would add, of all that read kohya's format"
    faults += [f"{name}: {bias}" for name, layer in outlines.items() if layer.bias is not None]
    moves = [rescaled(Move(new, (name,), shaped, shaped)) for new, name in pairs]
    return Renaming(moves, faults, config=without_keys(adapter.config))
