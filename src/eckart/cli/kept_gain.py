"""Options of `combine` that judge a combination by a text of each adapter, and choose its weights by them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from eckart.cli.options import in_group
from eckart.cli.progress import StderrProgress
from eckart.cli.quality import QUALITY, require_transformers
from eckart.errors import EckartError, OptionError

if TYPE_CHECKING:
    from eckart.adapter import Adapter
    from eckart.evaluation import HeldOut, KeptGain, SearchedWeights

AUTO = "auto"

EvalTexts = Annotated[
    list[str] | None,
    in_group(
        *(QUALITY, "--eval"),
        metavar="TEXT",
        help="Held-out data of each adapter, in their order, on which to measure how much of its gain is kept, in any "
        "form that train takes. Repeatable.",
    ),
]


@dataclass
class KeptGains:
    """How a combination is judged: by a text of each adapter.

    Attributes:
        base: the model.
        names: of the adapters.
        adapters: the adapters.
        texts: what the result is reported on.
        search_texts: what weights are chosen on, apart from `texts`; empty if they are given.
        found: the weights that were chosen.
        kept: the result, once it was measured.
    """

    base: str
    names: Sequence[str]
    adapters: "Sequence[Adapter]"
    texts: "Sequence[HeldOut]"
    search_texts: "Sequence[HeldOut]" = ()
    found: "SearchedWeights | None" = None
    kept: "list[KeptGain]" = field(default_factory=list)

    def search(self, combine: "Callable[[tuple[float, ...]], Adapter]") -> list[float]:
        """The weights that keep most of the gains on the first half of each text."""
        from eckart.evaluation import KeptGainMeter, search_weights, text_losses

        with StderrProgress() as progress:
            losses = text_losses(self.base, self.search_texts, progress=progress)
            meter = KeptGainMeter(self._model, self.adapters, losses, texts="first half of text")
            self.found = search_weights(len(self.adapters), combine, meter)
        return list(self.found.weights)

    def measure(self, combination: "Adapter") -> "list[KeptGain]":
        """What the combination keeps; measured once."""
        if not self.kept:
            from eckart.evaluation import KeptGainMeter, text_losses

            with StderrProgress() as progress:
                losses = text_losses(self.base, self.texts, progress=progress)
                half = "second half of text" if self.search_texts else "text"
                self.kept = KeptGainMeter(self._model, self.adapters, losses, texts=half).measure(combination)
        return self.kept

    def facts(self) -> dict[str, Any]:
        """The fields `eval` and `weights` of the command's JSON."""
        rows = zip(self.names, self.kept, strict=True) if self.kept else ()
        return {
            "eval": [{"adapter": name, **each.to_json()} for name, each in rows],
            "weights": list(self.found.weights) if self.found else None,
        }

    def card_facts(self) -> list[tuple[str, str]]:
        """The gains for a model card."""
        from eckart.operations.card import code, percent, shown_name

        shares = [
            f"{code(shown_name(name))} {percent(each.gain_kept)}"
            for name, each in zip(self.names, self.kept, strict=True)
            if each.gain_kept is not None
        ]
        weights = [("Weights", ", ".join(f"{weight:.3g}" for weight in self.found.weights))] if self.found else []
        return [*weights, *([("Gain kept on each adapter's text", ", ".join(shares))] if shares else [])]

    @cached_property
    def _model(self) -> Any:
        from eckart.evaluation import load_model

        return load_model(self.base)


def kept_gains(
    names: Sequence[str],
    adapters: "Sequence[Adapter]",
    texts: Sequence[str] | None,
    *,
    base: str | None,
    weights: str | None,
    shard: object,
) -> KeptGains | None:
    """What was asked for, its texts read and checked; None without a text.

    Raises:
        OptionError: there is not one text for each adapter, or no base, or weights are to be found without a text.
        EckartError: a text cannot be read, or is too short; see `held_out_for`.
    """
    is_search = weights == AUTO
    if not texts:
        if is_search:
            msg = "`weights=auto` chooses weights by the gains they keep; name a text of each adapter with `eval`"
            raise OptionError(msg)
        return None
    if len(texts) != len(adapters):
        msg = f"{len(texts)} texts for {len(adapters)} adapters; `eval` takes one for each, in their order"
        raise OptionError(msg)
    if is_search and shard is not None:
        msg = "`weights=auto` and `shard` exclude each other: find the weights first, and share the work with them"
        raise OptionError(msg)
    named = dict.fromkeys(adapter.base_model for adapter in adapters if adapter.base_model)
    if base is None and len(named) != 1:
        msg = f"`eval` needs the model, and the adapters name {' and '.join(named) or 'none'}; give it as `base`"
        raise OptionError(msg)
    for text in texts:
        require_transformers(text)
    from eckart.training import held_out_for

    model = base or next(iter(named))
    contents = [held_out_for(model, text) for text in texts]
    with StderrProgress() as progress:
        for fact in (fact for content in contents for fact in content.notes):
            progress.note(fact[0].upper() + fact[1:])
    if not is_search:
        return KeptGains(model, names, adapters, contents)
    try:
        halves = [content.halves() for content in contents]
    except EckartError:
        msg = "a text is too short: `weights=auto` uses its first half, and the result is measured on its second"
        raise EckartError(msg) from None
    return KeptGains(model, names, adapters, [second for _, second in halves], [first for first, _ in halves])
