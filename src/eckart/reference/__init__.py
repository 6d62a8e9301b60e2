"""LoRA and DoRA from scratch, in NumPy: read these first. The tests compare the real layers with them."""

from eckart.reference.dora import DoRA
from eckart.reference.kinds import Gather, one_hot, patches
from eckart.reference.lora import Gradients, LoRA

__all__ = ["DoRA", "Gather", "Gradients", "LoRA", "one_hot", "patches"]
