"""The files of a folder over HTTP, which gives no list: those that models have are asked for, and those of an index."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeAlias
from urllib.parse import urlsplit

from eckart.checkpoint.json_files import MOST_BYTES, parse_json
from eckart.checkpoint.remote.names import INDEX, is_weights
from eckart.checkpoint.remote.transport import CONNECTIONS, AccessError, RemoteStat, Transport
from eckart.checkpoint.remote.urls import joined, parent_and_name

Found: TypeAlias = tuple[str, RemoteStat | None]
"""How a transport names a file, and what is known of it already."""

_STEMS = ("model", "diffusion_pytorch_model", "adapter_model", "pytorch_lora_weights", "adapters")
_NAMES = (
    *("config.json", "adapter_config.json", "generation_config.json", "quantize_config.json", "README.md"),
    *(f"{stem}.safetensors" for stem in _STEMS),
    *(f"{stem}{INDEX}" for stem in _STEMS[:3]),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "tokenizer.model", "chat_template.jinja", "LICENSE", "NOTICE"),
)
_MOST_SHARDS = 10_000


def files_over_http(transport: Transport, url: str, name: str) -> dict[str, Found]:
    """The files of a model at a URL.

    Args:
        transport: reads them.
        url: of a folder, or of a file.
        name: of the file; empty if it is a folder.

    Raises:
        FileNotFoundError: there is none.
        AccessError: none is shown to this user.
        SourceError: the server cannot be reached, or does not answer as expected.
    """
    folder = parent_and_name(url)[0] if name else url
    found: dict[str, Found] = {name: (url, transport.stat(url))} if name else _existing(transport, folder, _NAMES)
    if name and not urlsplit(url).query:  # a query is most often a signature, of this file alone
        with suppress(FileNotFoundError, AccessError):
            found |= _existing(
                transport, folder, [each for each in _NAMES if not is_weights(each) and not each.endswith(INDEX)]
            )
    for index in [each for each in found if each.endswith(INDEX)]:
        found |= _existing(transport, folder, _shards(transport, *found[index]))
    return found


def _existing(transport: Transport, folder: str, names: Sequence[str]) -> dict[str, Found]:
    """Which of these files there are; public buckets say "forbidden" of what does not exist.

    Raises:
        FileNotFoundError, AccessError: the answer for all of them.
    """

    def ask(name: str) -> RemoteStat | FileNotFoundError | AccessError:
        try:
            return transport.stat(joined(folder, name))
        except (FileNotFoundError, AccessError) as error:
            return error

    if not names:
        return {}
    first, *rest = names
    answers = {first: ask(first)}  # alone, so that a host that does not exist is asked for once
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        answers |= zip(rest, pool.map(ask, rest), strict=True)
    found: dict[str, Found] = {
        name: (joined(folder, name), stat) for name, stat in answers.items() if isinstance(stat, RemoteStat)
    }
    if not found:
        raise next((error for error in answers.values() if isinstance(error, AccessError)), FileNotFoundError())
    return found


def _shards(transport: Transport, locator: str, stat: RemoteStat | None) -> list[str]:
    """The files that an index names; what is wrong with the index is said by who reads it."""
    if stat is None or not 0 < stat.size <= MOST_BYTES:
        return []
    buffer = bytearray(stat.size)
    transport.read_into(locator, memoryview(buffer), 0, stat)
    try:
        weight_map = parse_json(bytes(buffer))["weight_map"]
        names = {name for name in weight_map.values() if is_weights(name) and ".." not in name}
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    return sorted(names)[:_MOST_SHARDS]
