"""Uploading a finished output to the Hugging Face hub: everything that may refuse it is asked before the work."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from eckart.checkpoint.manifest import CARD, MANIFEST
from eckart.errors import OptionError, OutputError
from eckart.formats.table import CONFIG

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# The list of eckart's files is for --force on this machine, and TensorBoard's files are named after it.
_NOT_UPLOADED = [MANIFEST, "tensorboard/*"]


def check_push(repository: str) -> None:
    """Refuse an upload that the hub would refuse, before any work.

    Args:
        repository: ORG/NAME, where ORG is the user or one of the user's organizations.

    Raises:
        OptionError: the name is malformed, the hub is switched off or cannot be reached, nobody is logged in, or the
            user must not write there.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        is_valid = _NAME.fullmatch(repository) is not None
    except HFValidationError:
        is_valid = False
    if not is_valid:
        msg = f"`push` expects the name of a repository on the hub, ORG/NAME, got {repository[:120]!r}"
        raise OptionError(msg)
    if HF_HUB_OFFLINE:
        msg = "`push` uploads to the hub, but HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set; unset it"
        raise OptionError(msg)
    token = get_token()
    if not token:
        msg = "`push` uploads to the hub, and nobody is logged in: run hf auth login, or set HF_TOKEN"
        raise OptionError(msg)
    with _refusing("`push`: the hub did not accept the login", OptionError, token):
        user = HfApi().whoami()
    names = [user.get("name"), *(each.get("name") for each in user.get("orgs") or ())]
    owner = repository.partition("/")[0]
    if owner not in names:
        listed = ", ".join(str(name) for name in names if name)
        msg = f"`push={repository}`: you are logged in as {user.get('name')}, who may write to {listed}, not to {owner}"
        raise OptionError(msg)


def push(output: Path, repository: str, *, made_by: str) -> list[str]:
    """Upload an output, in one commit; a new repository is private.

    A README.md that the repository has stays, because its owner may have changed it.

    Args:
        output: the finished folder or file.
        repository: ORG/NAME; see `check_push`.
        made_by: the operation, for the commit's message.

    Returns:
        what to tell the user: the address, and what was not uploaded.

    Raises:
        OutputError: the upload failed; the output itself is complete.
    """
    from huggingface_hub import HfApi, get_token

    api = HfApi()
    message = f"Upload the result of eckart {made_by}"
    retry = f"{output} is complete, but its upload failed; repeat it with: hf upload {repository} {output}"
    with _refusing(retry, OutputError, get_token()):
        api.create_repo(repository, private=True, exist_ok=True)
        keeps_card = output.is_dir() and api.file_exists(repository, CARD)
        if output.is_dir():
            ignored = [*_NOT_UPLOADED, *([CARD] if keeps_card else [])]
            api.upload_folder(repo_id=repository, folder_path=output, ignore_patterns=ignored, commit_message=message)
        else:
            api.upload_file(
                path_or_fileobj=output, path_in_repo=output.name, repo_id=repository, commit_message=message
            )
    notes = [f"Uploaded to {api.endpoint}/{repository}; a new repository is private until you change that there"]
    if keeps_card:
        notes.append(f"{repository} keeps the {CARD} that it had")
    if _names_local_base(output):
        notes.append(f"{CONFIG} names the base by a path of this machine: set base_model_name_or_path to its hub name")
    return notes


def _names_local_base(output: Path) -> bool:
    """Whether an adapter's config names its base by a path."""
    file = output / CONFIG
    if not file.is_file():
        return False
    base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    return isinstance(base, str) and Path(base).is_absolute()


@contextmanager
def _refusing(what: str, error: type[Exception], token: str | None) -> Iterator[None]:
    """Turn an error of the hub's library into one sentence, without the token."""
    from huggingface_hub.errors import HfHubHTTPError

    # Its library of HTTP has had several names; the base of its errors is also that of failing connections.
    of_http = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
    try:
        yield
    except (*of_http, OSError, ValueError, RuntimeError) as failure:
        reason = (str(failure).strip() or type(failure).__name__).splitlines()[0]
        reason = reason.replace(token, "…") if token else reason
        msg = f"{what} ({reason[:300]})"
        raise error(msg) from None
