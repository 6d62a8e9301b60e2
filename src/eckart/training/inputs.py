"""Whether model and data exist, before torch and the libraries of training are imported, which takes seconds."""

from collections.abc import Iterable, Iterator

from eckart.checkpoint import Checkpoint
from eckart.checkpoint.module_tree import naming_by_rules
from eckart.checkpoint.naming import PRESETS, is_suffix, nearest_patterns
from eckart.errors import MismatchError
from eckart.evaluation.model import folder_and_gguf_file
from eckart.formats.sources import open_model
from eckart.training.records import find_files


def check_inputs(model: str, *data: str | None, target: Iterable[str] = ()) -> None:
    """Refuse a MODEL or DATA that does not exist or is of another kind; of files only headers are read.

    Args:
        model: the model.
        data: training and held-out data.
        target: patterns of modules to adapt. Only names are checked here, and only if the model's files name its
            modules as transformers does.

    Raises:
        SourceError, FileFormatError: there is no such model or data, or it cannot be read.
        MismatchError: the model has no module of a name.
        OptionError: the model is an adapter.
    """
    opened = open_model(model, role="a model", instead="merge it into its base, and train the merged model")
    folder_and_gguf_file(model)
    for source in data:
        if source is not None:
            find_files(source)
    if faults := list(_name_faults(opened, target)):
        msg = "the adapter does not fit the model"
        raise MismatchError.listing(msg, faults)


def _name_faults(model: Checkpoint, target: Iterable[str]) -> Iterator[str]:
    """Names whose last part no module has; how names begin may differ between the files and transformers."""
    naming = naming_by_rules(model)
    if naming is None:
        return
    modules = dict.fromkeys(naming(name).rpartition(".")[0] for name in (*model.tensors, *model.tied))
    known = {part for module in modules for part in module.split(".")}
    for pattern in target:
        is_name = pattern not in PRESETS and is_suffix(pattern)
        if is_name and pattern.rpartition(".")[2] not in known:
            near = ", ".join(nearest_patterns(pattern, modules))
            yield f"{pattern!r} matches nothing; nearest: {near}"
