"""A script of sd-scripts as its users run it, from a checkout: `sd_scripts` runs it in a process.

What the scripts import to train (datasets, image libraries, model builders) is not installed here, and they do not use
it: of that, the few functions that they call are defined here. Their arithmetic is all their own.
"""

import json
import runpy
import sys
from pathlib import Path
from types import ModuleType

from safetensors.torch import load_file


def load_models(_v2: bool, folder: str) -> tuple:
    """The models in a folder of sd_scripts.py, in the place of a checkpoint's."""
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)  # so that both text encoders are the same
    unet = UNet2DConditionModel(**json.loads((Path(folder) / "unet.json").read_text()))
    unet.load_state_dict(load_file(Path(folder) / "unet/diffusion_pytorch_model.safetensors"))
    return CLIPTextModel(CLIPTextConfig(**json.loads((Path(folder) / "text.json").read_text()))), None, unet


def define(name: str, **names: object) -> None:
    """Define a module of the checkout."""
    module = ModuleType(name)
    vars(module).update(names)
    sys.modules[name] = module
    if "." in name:
        setattr(sys.modules["library"], name.rpartition(".")[2], module)


def main() -> None:
    checkout, script, *arguments = sys.argv[1:]
    define("library")
    define("library.utils", setup_logging=lambda *_, **__: None)
    define("library.train_util", precalculate_safetensors_hashes=lambda *_: ("", ""))
    define(
        "library.model_util",
        is_safetensors=lambda name: name.endswith(".safetensors"),
        load_models_from_stable_diffusion_checkpoint=load_models,
        get_model_version_str_for_sd1_sd2=lambda *_: "sd_v1",
    )
    define("library.sdxl_model_util")
    define("library.sai_model_spec")
    define("library.sdxl_original_unet", SdxlUNet2DConditionModel=type("SdxlUNet2DConditionModel", (), {}))
    sys.path.insert(0, str(Path(checkout) / "networks"))
    sys.argv = [script, *arguments]
    runpy.run_path(str(Path(checkout) / "networks" / script), run_name="__main__")


if __name__ == "__main__":
    main()
