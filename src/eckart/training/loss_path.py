"""Which path a training step takes from hidden states to the loss; `train` and `plan` both ask here.

A logit for every token and every word of the vocabulary takes more memory than all else, and two paths avoid it. Both
read the weight of the output layer without calling that layer, so that they need a plain one.
"""

from typing import TYPE_CHECKING, Literal, get_args

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LossPath = Literal["pieces", "fused", "logits"]
"""`pieces`: loss and gradient behind a frozen output layer, a few tokens at a time (`eckart.nn.head_loss`); `fused`:
TRL's loss, which supports scaled or capped logits, experts and an output layer that trains; `logits`: all logits."""

LOSS_PATHS: tuple[LossPath, ...] = get_args(LossPath)  # from least to most memory
FUSED_TILE = 32768  # words of the vocabulary that TRL's loss processes at a time


def loss_path(model: "PreTrainedModel") -> LossPath:
    """The path of least memory that gives the model's own loss, according to its modules and its config.

    Needs no values: the model may be on the meta device. Its adapter must be in place already.
    """
    head = model.get_output_embeddings()
    follows_body = model.base_model is not model and any(child is head for child in model.children())
    if type(head) is not nn.Linear or not follows_body:
        return "logits"
    trains = any(parameter.requires_grad for parameter in head.parameters())
    if trains or has_router_loss(model) or logit_transform(model) != (None, 1.0):
        return "fused"
    return "pieces"


def has_router_loss(model: "PreTrainedModel") -> bool:
    """Whether the load of the model's experts is balanced by a loss of its own."""
    config = model.config.get_text_config()
    return hasattr(config, "output_router_logits") and bool(getattr(config, "router_aux_loss_coef", 0.0))


def logit_transform(model: "PreTrainedModel") -> tuple[float | None, float]:
    """The value at which a model caps its logits, or None, and the factor by which it scales them."""
    config = model.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if (scale := getattr(config, name, None)) is not None:
            return softcap, scale
    scaling = getattr(config, "logits_scaling", None)
    if not scaling:
        return softcap, 1.0
    return softcap, scaling if config.model_type == "hyperclovax" else 1 / scaling
