"""LoRA and DoRA from nothing, in NumPy: read these first, the tests hold the real layers to them."""

from eckart.reference.dora import DoRA
from eckart.reference.kinds import Gather, one_hot, patches
from eckart.reference.lora import Gradients, LoRA

__all__ = ["DoRA", "Gather", "Gradients", "LoRA", "one_hot", "patches"]
