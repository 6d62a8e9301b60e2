"""The families of image and video models: one file and one line for each."""

from eckart.formats.families import (
    flux1,
    flux2,
    hidream,
    hunyuan_video,
    ltx_video,
    lumina2,
    qwen_image,
    sd,
    sd3,
    sdxl,
    wan,
    z_image,
)
from eckart.formats.families.family import Family

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        sd.FAMILY,
        sdxl.FAMILY,
        sd3.FAMILY,
        flux1.FAMILY,
        flux2.FAMILY,
        qwen_image.FAMILY,
        z_image.FAMILY,
        wan.FAMILY,
        hunyuan_video.FAMILY,
        ltx_video.FAMILY,
        lumina2.FAMILY,
        hidream.FAMILY,
    )
}
