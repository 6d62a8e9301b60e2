"""The refusal of pickled weights, with the lines of Python that convert them without losing a tensor or a name."""

import json
from pathlib import Path

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_AUTO_CLASSES = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForMultipleChoice": "AutoModelForMultipleChoice",
    "ForImageClassification": "AutoModelForImageClassification",
    "ForPreTraining": "AutoModelForPreTraining",
    "Model": "AutoModel",
}


def pickled_fault(path: Path) -> str:
    """Why a pickled file is not read, and how to convert it.

    A model of transformers is converted by the class that wrote it: any other drops or renames tensors. Of any other
    file the tensors are copied under their own names.
    """
    return f"{path}: pickled weights can run code when opened and are never read; if you trust them, {_remedy(path)}"


def _remedy(path: Path) -> str:
    if path.name.startswith("pytorch_model") and (model := _class_of(path.parent)):
        loaded = f"transformers.{model}.from_pretrained({str(path.parent)!r}, dtype='auto')"
        return f"convert them with transformers: {loaded}.save_pretrained('NEW_FOLDER')"
    name = {"pytorch_model": "model"}.get(path.stem, path.stem) + ".safetensors"
    return (
        "copy the tensors: safetensors.torch.save_file({name: tensor.clone().contiguous() for name, tensor in "
        f"torch.load({str(path)!r}, weights_only=True).items()}}, {str(path.with_name(name))!r})"
    )


def _class_of(folder: Path) -> str | None:
    """The class that loads every tensor of a model folder: transformers' automatic one, or the one that is named."""
    try:
        named = json.loads((folder / "config.json").read_bytes())["architectures"][0]
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
    if not isinstance(named, str) or not named.isidentifier():
        return None
    return next((auto for end, auto in _AUTO_CLASSES.items() if named.endswith(end)), named)
