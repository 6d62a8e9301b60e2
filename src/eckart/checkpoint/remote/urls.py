"""URLs as SOURCEs: how they are recognised, joined, and shown without what may be secret in them."""

import re
from urllib.parse import quote, urlsplit, urlunsplit

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://.+", re.DOTALL)  # two letters at least: C:// is a drive
_SECRETS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+://)(?:[^\s/?#]*@)?(?P<path>[^\s?#'\"]*)(?:[?#][^\s'\"]*)?")
_HUB = "hf://"  # here, an @ begins a revision


def is_url(text: str) -> bool:
    """Whether a SOURCE is a URL."""
    return _URL.fullmatch(text) is not None


def shown_url(url: str) -> str:
    """A URL without user, password, query and fragment, which may grant access."""
    return without_secrets(url) if not url.startswith(_HUB) else re.sub(r"[?#].*", "", url)


def without_secrets(text: str) -> str:
    """A text of another library, with every URL in it as `shown_url` shows it."""
    return _SECRETS.sub(lambda url: url["scheme"] + url["path"], text)


def joined(url: str, name: str) -> str:
    """The URL of a file in a folder; a query, such as a signature for the whole folder, is kept."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}", fragment=""))


def parent_and_name(url: str) -> tuple[str, str]:
    """The URL of the folder of a file, and the file's name in it."""
    parts = urlsplit(url)
    parent, _, name = parts.path.rpartition("/")
    return urlunsplit(parts._replace(path=parent, fragment="")), name
