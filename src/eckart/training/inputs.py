"""Whether model and data exist, before torch and the libraries of training are imported, which takes seconds."""

from eckart.evaluation.model import folder_and_gguf_file
from eckart.formats.sources import open_model
from eckart.training.records import find_files


def check_inputs(model: str, *data: str | None) -> None:
    """Refuse a MODEL or DATA that does not exist or is of another kind; of files only headers are read.

    Raises:
        SourceError, FileFormatError: there is no such model or data, or it cannot be read.
        OptionError: the model is an adapter.
    """
    open_model(model, role="a model", instead="merge it into its base, and train the merged model")
    folder_and_gguf_file(model)
    for source in data:
        if source is not None:
            find_files(source)
