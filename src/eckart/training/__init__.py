"""Training of language models on text."""

from eckart.training.sequences import pack_texts
from eckart.training.finetune import FinetuneResult, FinetuneSettings, StepCallback, finetune

__all__ = ["FinetuneResult", "FinetuneSettings", "StepCallback", "finetune", "pack_texts"]
