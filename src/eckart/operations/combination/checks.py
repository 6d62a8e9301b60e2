"""Why adapters cannot be combined: every module and tensor that does not fit."""

from collections import Counter
from collections.abc import Iterator
from math import fsum

from eckart.adapter.outline import LayerOutline
from eckart.errors import MismatchError, OptionError
from eckart.formats.peft_tokens import FIELD, embedding_of, is_token_rows
from eckart.operations.combination.frame import tokens_or_reason
from eckart.operations.combination.plan import CombinePlan


def check_plan(plan: CombinePlan) -> None:
    """Refuse adapters that cannot be combined.

    Raises:
        MismatchError: every module and tensor that does not fit, with the reason.
        OptionError: the budget is too small.
    """
    faults = [*_layer_faults(plan), *_saved_faults(plan), *_added_faults(plan)]
    if faults:
        msg = "these adapters cannot be combined"
        raise MismatchError.listing(msg, faults)
    _ = plan.placed  # refuses keys that do not fit the base
    if plan.mixture.method == "shared" and plan.choice is not None and plan.choice.rank is None:
        msg = "`shared` is computed for one `rank`; energy, error and budget choose ranks of the other methods"
        raise OptionError(msg)
    if plan.choice is not None and (budget := plan.choice.budget) is not None:
        plan.costs(in_bytes=budget.in_bytes).check(budget, plan.needed())


def _layer_faults(plan: CombinePlan) -> Iterator[str]:
    models = dict.fromkeys(adapter.base_model for adapter in plan.adapters)
    names = f"; the adapters name the models {', '.join(map(str, models))}" if len(models) > 1 else ""
    all_layers = (layer for outline in plan.outlines for layer in outline.values())
    biased = plan.adapters[0].format == "peft" and any(layer.bias is not None for layer in all_layers)
    for name, terms in plan.terms.items():
        layers = plan.layers(name)
        for what, property_of in (("kinds", _kind), ("shapes", _shape)):
            values = [property_of(layer) for layer in layers]
            if any(value != values[0] for value in values):
                each = ", ".join(f"{value} in adapter {i + 1}" for i, value in zip(terms, values, strict=True))
                yield f"{name}: the {what} differ: {each}{names}"
                break
        if biased and layers[0].kind in ("embedding", "expert"):
            yield f"{name}: other modules have a trained bias (lora_bias), which PEFT cannot mix with this kind"
        if set(plan.savers.get(f"{name}.weight", ())) - set(terms):
            yield f"{name}: one adapter updates it, and another saves it in full"
        if plan.keeps_dora or all(layer.magnitude is None for layer in layers):
            continue
        if plan.mixture.is_in_core:
            yield f"{name}: a DoRA layer, whose update has no low rank; `eckart.to_lora` makes it plain first"
        elif plan.base is None:
            yield f"{name}: a DoRA layer, whose update depends on the weight; give the model as `base`"


def _saved_faults(plan: CombinePlan) -> Iterator[str]:
    for name, terms in plan.savers.items():
        shapes = {tuple(plan.outlines[i].modules_to_save[name].shape) for i in terms}
        weight = fsum(plan.weights[i] for i in terms)
        if len(shapes) > 1:
            yield f"{name}: saved in full with the shapes {' and '.join(map(str, sorted(shapes)))}"
        elif is_token_rows(name):
            yield from _rows_faults(plan, name, weight)
        elif weight != 1 and plan.base is None and not plan.is_copy_of_base(name):
            yield (
                f"{name}: saved in full with weights that sum to {weight:g}, so the result depends on the "
                "model's tensor; give the model as `base`"
            )


def _added_faults(plan: CombinePlan) -> Iterator[str]:
    for name, terms in plan.adders.items():
        shapes = {tuple(plan.outlines[i].added[name].shape) for i in terms}
        if len(shapes) > 1:
            yield f"{name}: differences with the shapes {' and '.join(map(str, sorted(shapes)))}"
    counts = Counter(name for outline in plan.outlines for name in outline.carried)
    yield from (f"{name}: several adapters carry it, and one file has one" for name, n in counts.items() if n > 1)


def _rows_faults(plan: CombinePlan, name: str, weight: float) -> Iterator[str]:
    tokens = [tokens_or_reason(name, outline) for outline in plan.outlines if name in outline.modules_to_save]
    embedding = embedding_of(name)
    if embedding in plan.savers or embedding.removesuffix(".weight") in plan.terms:
        yield f"{name}: one adapter trains single tokens, and another changes all of them"
    elif any(each != tokens[0] for each in tokens):
        yield f"{name}: the adapters train different tokens ({FIELD})"
    elif weight != 1:
        yield f"{name}: rows of tokens with weights that sum to {weight:g}; they must sum to 1"


def _kind(layer: LayerOutline) -> str:
    return layer.kind


def _shape(layer: LayerOutline) -> tuple[int, ...]:
    return (*layer.lora_B.shape[:1], *layer.lora_A.shape[1:])
