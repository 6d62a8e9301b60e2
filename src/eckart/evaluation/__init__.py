"""A language model on text: its loss, and the part of a fine-tune's gain that an adapter recovers."""

from eckart.evaluation.applied import adapter_applied
from eckart.evaluation.gain import GainCallback, GainReport, measure_gain, measure_gains
from eckart.evaluation.loss import LossResult, WindowCallback, text_loss
from eckart.evaluation.model import load_model, load_tokenizer

__all__ = [
    "GainCallback",
    "GainReport",
    "LossResult",
    "WindowCallback",
    "adapter_applied",
    "load_model",
    "load_tokenizer",
    "measure_gain",
    "measure_gains",
    "text_loss",
]
