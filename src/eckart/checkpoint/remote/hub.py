"""Repositories of models on the Hugging Face hub: in the hub's cache where they are complete, otherwise by ranges."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from eckart.checkpoint.remote.http import HttpTransport
from eckart.checkpoint.remote.listing import Found
from eckart.checkpoint.remote.transport import RemoteStat
from eckart.checkpoint.remote.urls import without_secrets

# What a model needs of its top folder; diffusers folders and other formats of the same weights would multiply it.
_ALLOWED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md", "LICENSE*", "NOTICE*"]


class HubError(Exception):
    """A repository that cannot be had, with the reason in one line."""


@dataclass(frozen=True)
class HubRepository:
    """One commit of a repository.

    Attributes:
        name: ORG/NAME.
        commit: its hash: what is read is of this commit, whatever is pushed meanwhile.
        files: address and size of each file, by name.
    """

    name: str
    commit: str
    files: dict[str, Found]


class HubTransport(HttpTransport):
    """Reads files of one commit, with the user's token if the user is logged in."""

    def __init__(self, commit: str) -> None:
        from huggingface_hub.utils import build_hf_headers

        headers = {name.lower(): value for name, value in build_hf_headers().items()}
        token = headers.pop("authorization", None)
        super().__init__(auth=_authorized(token) if token else None, headers=headers, version=commit)
        self._commit = commit

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the token: the other process finds its own."""
        return type(self), (self._commit,)


def cached_snapshot(name: str, revision: str | None) -> Path | None:
    """The folder of a revision in the hub's cache, complete or not; None if there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=_ALLOWED))
    except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
        return None


def find_repository(name: str, revision: str | None) -> HubRepository:
    """The present commit of a revision, and its files.

    Raises:
        HubError: there is none, it is not shown to this user, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if HF_HUB_OFFLINE:
        reason = "it is not in the hub's cache, and HF_HUB_OFFLINE is set"
        raise HubError(reason)
    # The base of its errors is that of its library of HTTP, and so also of failing connections.
    of_http = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
    try:
        found = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=10)
    except (*of_http, HFValidationError, OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise HubError(without_secrets(reason)[:300]) from None
    commit = found.sha or revision or "main"
    files: dict[str, Found] = {
        each.rfilename: (
            hf_hub_url(name, each.rfilename, revision=commit),
            RemoteStat(each.size or 0, commit),
        )
        for each in found.siblings or ()
        if not each.rfilename.startswith("consolidated")
    }
    return HubRepository(name, commit, files)


def _authorized(token: str) -> Any:
    """Adds the token to a request; an object of `requests`, so that no .netrc replaces it."""
    from requests.auth import AuthBase

    class Token(AuthBase):
        def __call__(self, request: Any) -> Any:
            request.headers["Authorization"] = token
            return request

    return Token()
