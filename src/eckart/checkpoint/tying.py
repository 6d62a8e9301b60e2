"""Which weights a model shares under several names: embeddings of encoder and decoder, the output layer, its bias.

Saving drops all but one name of each. Source: `_tied_weights_keys` of transformers' models.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from eckart.checkpoint.naming import is_output_layer

TIE = "tie_word_embeddings"
_INPUT_EMBEDDINGS = (
    *("embed_tokens", "wte", "word_embeddings", "shared", "embed_in", "tokens_embed", "tok_embeddings"),
    "embeddings",
)
# End of the class's name, its output layer, and the start of a name that shows it where classes have several.
_OUTPUT_LAYERS = (
    ("WhisperForConditionalGeneration", "proj_out.weight", ""),
    ("ForMaskedLM", "cls.predictions.decoder.weight", "cls.predictions."),
    ("ForPreTraining", "cls.predictions.decoder.weight", "cls.predictions."),
    ("ForMaskedLM", "lm_head.decoder.weight", "lm_head."),
    ("ForMaskedLM", "vocab_projector.weight", "vocab_projector."),
    ("ForMaskedLM", "generator_lm_head.weight", "generator_predictions."),
    ("ForMaskedLM", "predictions.decoder.weight", "predictions."),
    ("ForMaskedLM", "decoder.weight", "decoder.bias"),
    ("ForCausalLM", "lm_head.weight", ""),
    ("LMHeadModel", "lm_head.weight", ""),
    ("ForConditionalGeneration", "lm_head.weight", ""),
)
# In these, `tie_word_embeddings: false` also switches off a factor of the output layer, so it stays as it is.
_SCALED_HEADS = {"t5", "mt5", "umt5", "longt5", "pop2piano", "switch_transformers", "udop"}


def tied_weights(names: Collection[str], config: Mapping[str, Any]) -> dict[str, str]:
    """The weights that a file leaves out: each with the stored one that it shares."""
    return {
        name: stored[0]
        for group in _groups(names, config)
        if (stored := [name for name in group if name in names])
        for name in group
        if name not in names
    }


def stored_twice(names: Collection[str], config: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Weights that a file stores under each of these names although the model may share them."""
    stored = (tuple(name for name in group if name in names) for group in _groups(names, config))
    return [group for group in stored if len(group) > 1]


def is_vocabulary(name: str) -> bool:
    """Whether a tensor has an entry for each token: an input embedding, an output layer, or the bias of one."""
    module = name.rpartition(".")[0]
    last = module.rpartition(".")[2]
    return _is_input_embedding(name) or is_output_layer(module) or (last == "predictions" and name.endswith(".bias"))


def untied_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the model with a weight of its own for every name, as transformers 4 and 5 read it."""
    if config.get("model_type") in _SCALED_HEADS:
        return dict(config)
    inner = {
        key: untied_config(value)
        for key, value in config.items()
        if isinstance(value, dict) and (TIE in value or "vocab_size" in value)
    }
    return {**config, **inner, TIE: False}


def _groups(names: Collection[str], config: Mapping[str, Any]) -> Iterator[list[str]]:
    """Names that share one weight if the model ties them, the one that saving keeps first."""
    embeddings = [name for name in names if _is_input_embedding(name)]
    embeddings.sort(key=lambda name: not name.endswith("shared.weight"))
    head = _output_layer(names, config)
    group = embeddings[:1]
    if not group and head in names:
        group = [_missing_embedding(names)]
    if group and group[0].endswith("shared.weight"):
        model = group[0].removesuffix("shared.weight")
        parts = [f"{model}{part}." for part in ("encoder", "decoder")]
        group += [f"{part}embed_tokens.weight" for part in parts if any(name.startswith(part) for name in names)]
    if head and group and config.get(TIE) is not False:
        group.append(head)
    if group:
        yield group
    if head and head.endswith("decoder.weight"):
        owner = head.removesuffix("decoder.weight")
        if f"{owner}bias" in names or f"{owner}decoder.bias" in names:
            yield [f"{owner}bias", f"{owner}decoder.bias"]


def _output_layer(names: Collection[str], config: Mapping[str, Any]) -> str | None:
    classes = [str(name) for name in config.get("architectures") or ()]
    heads = (
        head
        for end, head, sign in _OUTPUT_LAYERS
        if any(cls.endswith(end) for cls in classes) and (not sign or any(name.startswith(sign) for name in names))
    )
    return next(heads, None)


def _is_input_embedding(name: str) -> bool:
    module, _, leaf = name.rpartition(".")
    return leaf == "weight" and module.rpartition(".")[2] in _INPUT_EMBEDDINGS


def _missing_embedding(names: Collection[str]) -> str:
    """Name of the input embedding in a model with these layers."""
    if any(name.startswith("transformer.h.") for name in names):
        return "transformer.wte.weight"
    return "model.embed_tokens.weight"
