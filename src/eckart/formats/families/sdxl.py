"""Stable Diffusion XL."""

from eckart.formats.families.encoders import clip
from eckart.formats.families.family import Family, denoiser, modules
from eckart.formats.families.unet import unet

_LABELS = modules({"label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2"})
FAMILY = Family(
    "sdxl",
    "Stable Diffusion XL",
    (
        denoiser(
            "unet", (*unet(blocks=3, down=(1, 2), up=(0, 1), deep=True), *_LABELS), kohya=("original", "diffusers")
        ),
        clip("text_encoder", "clip_l", "lora_te1_", "lora_te_", conditioner__embedders__0__transformer__="diffusers"),
        clip("text_encoder_2", "clip_g", "lora_te2_", conditioner__embedders__1__model__="original"),
    ),
    ("UNet2DConditionModel",),
)
