"""Stable Diffusion 1 and 2."""

from eckart.formats.families.encoders import clip
from eckart.formats.families.family import Family, denoiser
from eckart.formats.families.unet import unet

FAMILY = Family(
    "sd",
    "Stable Diffusion 1 and 2",
    (
        # sd-scripts trains these models as diffusers builds them.
        denoiser(
            "unet",
            unet(blocks=4, down=(0, 1, 2), up=(1, 2, 3), deep=False),
            kohya=("diffusers", "original"),
        ),
        clip(
            "text_encoder",
            "clip_l",
            "lora_te_",
            "lora_te1_",
            cond_stage_model__transformer__="diffusers",
            cond_stage_model__model__="original",
            text_encoders__clip_h__transformer__="diffusers",
        ),
    ),
    ("UNet2DConditionModel",),
)
