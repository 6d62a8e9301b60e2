"""The connection of this process to a Ray cluster, and what its nodes have in common with this machine."""

import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

from eckart.errors import ClusterError, MissingExtraError
from eckart.version import __version__

EXTRA = "cluster"
ANSWER_SECONDS = 5  # within which a head accepts a connection
PROBE_SECONDS = 120  # within which a node starts a worker and answers
_HEAD = "the Ray cluster at {address} does not answer"
_START = "start Ray on its head and nodes with `ray start`"


@dataclass(frozen=True)
class Node:
    """A machine of the cluster that has cores to work with."""

    id: str
    name: str
    cpus: float
    gpus: float
    memory_bytes: int


def connect(address: str) -> None:
    """Connect this process to a cluster whose nodes have the same versions, unless it is connected already.

    Args:
        address: `HOST:PORT` of the head, or `auto` for the cluster that this machine is part of.

    Raises:
        MissingExtraError: Ray is not installed.
        ClusterError: no cluster answers there, it has no node to work on, or a node has other versions.
    """
    if find_spec("ray") is None:
        raise MissingExtraError.for_extra(EXTRA, "`ray`")
    hook = sys.excepthook
    import ray

    sys.excepthook = hook  # Ray's waits for the head, also for one that is gone

    if not ray.is_initialized():
        if address != "auto":
            _require_head(address)
        _initialize(ray, address)
    found = nodes()
    if not found:
        msg = f"the Ray cluster at {address} has no node with a core to work on; {_START}"
        raise ClusterError(msg)
    check_versions(dict(zip([node.name for node in found], on_each(found, _versions_there()), strict=True)))


def nodes() -> list[Node]:
    """The nodes that are alive and have at least one core."""
    import ray

    alive = [(node, node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return [
        Node(node["NodeID"], node["NodeManagerHostname"], has["CPU"], has.get("GPU", 0), int(has.get("memory", 0)))
        for node, has in alive
        if has.get("CPU", 0) >= 1
    ]


def on_each(found: Sequence[Node], function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function returns on each node, or the exception of Ray for a node that does not answer."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(function)
    asked = [
        remote.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
        ).remote(*arguments)
        for node in found
    ]
    answers: list[Any] = []
    for reference in asked:
        try:
            answers.append(ray.get(reference, timeout=PROBE_SECONDS))
        except RayError as error:
            answers.append(error)
    return answers


def check_versions(by_node: Mapping[str, Mapping[str, str | None] | Exception]) -> None:
    """Refuse nodes on which other code would compute.

    Args:
        by_node: the versions on each node by its name, or why it did not answer.

    Raises:
        ClusterError: a node has other versions, or did not answer; with all of them.
    """
    here, faults = _versions(), []
    for node, there in by_node.items():
        if isinstance(there, Exception):
            faults.append(f"{node}: does not answer ({_first_line(there)})")
            continue
        for name, version in here.items():
            if there[name] is None:
                faults.append(f"{node}: {name} is not installed; here it is {version}")
            elif there[name] != version:
                faults.append(f"{node}: has {name} {there[name]}; here it is {version}")
    if faults:
        msg = "every node of the cluster needs the versions of this machine"
        raise ClusterError.listing(msg, faults)


def head_answers() -> bool:
    """Whether the head of the cluster that this process is connected to still accepts connections."""
    import ray

    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    return _answers(host, int(port))


def lost_head() -> ClusterError:
    """The error for a head that is gone."""
    import ray

    headline = _HEAD.format(address=ray.get_runtime_context().gcs_address)
    return ClusterError(
        f"{headline} any more: finished work is kept next to the output; start the cluster and repeat the command"
    )


def _versions() -> dict[str, str]:
    python = ".".join(map(str, sys.version_info[:2]))
    return {"eckart": __version__, "Python": python, "torch": metadata.version("torch")}


def _versions_there() -> Callable[[], dict[str, str | None]]:
    """The function that tells a node's versions; it is sent itself, as a node may have no eckart to import it from."""

    def versions() -> dict[str, str | None]:
        import contextlib
        import importlib
        import importlib.metadata
        import sys

        found: dict[str, str | None] = {"Python": ".".join(map(str, sys.version_info[:2])), "eckart": None}
        try:
            found["torch"] = importlib.metadata.version("torch")
        except importlib.metadata.PackageNotFoundError:
            found["torch"] = None
        with contextlib.suppress(ImportError):
            found["eckart"] = importlib.import_module("eckart.version").__version__
        return found

    return versions


def _require_head(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16 or "/" in host:
        msg = f"`ray` must be auto or the HOST:PORT that `ray start` shows on the head, got {address!r}"
        raise ClusterError(msg)
    if not _answers(host.strip("[]"), int(port)):
        msg = f"{_HEAD.format(address=address)}; {_START}"
        raise ClusterError(msg)


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=ANSWER_SECONDS):
            return True
    except OSError:
        return False


def _initialize(ray: Any, address: str) -> None:
    """Connect, quietly, and leave it to this program what a signal does."""
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises errors of many kinds for a cluster that is of no use
        with suppress(Exception):
            ray.shutdown()
        headline = _HEAD.format(address=address)
        msg = f"{headline} as expected ({_first_line(error)}); {_START}"
        raise ClusterError(msg) from None
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, handler)
    worker: Any = import_module("ray._private.worker")
    show = worker.print_to_stdstream
    # What Ray reports of lost workers would otherwise end up in the output of a command.
    worker.print_to_stdstream = lambda data, **options: show(data | {"is_err": True}, **options)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
