"""Sources over HTTP: the same bytes as from disk, little more read than is needed, and clear errors."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eckart.checkpoint import locate, open_checkpoint
from eckart.checkpoint.inputs import InputFiles
from eckart.checkpoint.remote.mounts import remote_cache
from eckart.errors import EckartError, FileFormatError, SourceError
from eckart.formats import load_adapter
from eckart.operations import analyze, compare, extract, merge, resize

from .conftest import needed_bytes
from .server import serving

WEIGHTS = "tuned/model.safetensors"


def contents(path: Path) -> dict[str, bytes]:
    """The files of an output, but for the card and the list of files, which name the sources."""
    return {file.name: file.read_bytes() for file in path.rglob("*") if file.suffix in (".safetensors", ".json")
            if file.name not in (".eckart.json", "adapter_config.json")}  # fmt: skip


@pytest.fixture
def tuned_once(originals, tmp_path):
    """A server of a copy of `tuned`, which a test may replace."""
    shutil.copytree(originals / "tuned", tmp_path / "served" / "tuned")
    with serving(tmp_path / "served") as files:
        yield files


def replace(files, **tensors) -> None:
    """Put another file of the same size in the place of the weights."""
    file = files.folder / WEIGHTS
    data = bytearray(file.read_bytes())
    data[-4:] = b"\1\2\3\4"
    file.write_bytes(data)


@pytest.mark.parametrize("model", ["base", "tuned", "base/model.safetensors.index.json", WEIGHTS])
def test_tensors_are_those_on_disk_bit_for_bit(model, server, originals) -> None:
    remote, local = open_checkpoint(f"{server.url}/{model}"), open_checkpoint(originals / model)
    assert remote.config == local.config != {}
    assert list(remote.tensors) == list(local.tensors) != []
    for name in local.tensors:
        assert remote.read(name).equal(local.read(name))
        assert remote.read_bytes(name) == local.read_bytes(name)
        assert remote.rows(name, 100, 300).equal(local.rows(name, 100, 300))


OPERATIONS = {
    "analyze": lambda at, out: analyze(f"{at}/tuned", base=f"{at}/base", output=out),
    "analyze adapter": lambda at, out: analyze(f"{at}/adapter", output=out),
    "extract": lambda at, out: extract(f"{at}/base", f"{at}/tuned", rank=3, output=out),
    "extract budget": lambda at, out: extract(f"{at}/base", f"{at}/tuned", budget="40k", output=out),
    "merge": lambda at, out: merge(f"{at}/base", [f"{at}/adapter"], out),
    "resize": lambda at, out: resize(f"{at}/adapter", rank=2, output=out),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_result_has_the_same_bytes_as_from_disk(operation, server, originals, tmp_path) -> None:
    OPERATIONS[operation](originals, tmp_path / "local")
    OPERATIONS[operation](server.url, tmp_path / "remote")
    local, remote = contents(tmp_path / "local"), contents(tmp_path / "remote")
    assert local
    for name in local:
        if name.endswith(".safetensors") or name == "tokenizer.json":
            assert remote[name] == local[name]
    assert remote.keys() == local.keys()


def test_a_comparison_gives_the_same_numbers(server, originals) -> None:
    def facts(at) -> str:
        result = compare(f"{at}/base", f"{at}/tuned").to_json()
        return re.sub(r'"seconds": [^,}]+', "", json.dumps(result).replace(str(at), "AT"))

    assert facts(server.url) == facts(originals)


READING = {
    "extract": lambda at: extract(f"{at}/base", f"{at}/tuned", rank=2),
    "extract budget": lambda at: extract(f"{at}/base", f"{at}/tuned", budget="40k"),
    "analyze": lambda at: analyze(f"{at}/tuned", base=f"{at}/base"),
    "compare": lambda at: compare(f"{at}/base", f"{at}/tuned"),
}


@pytest.mark.parametrize("operation", READING)
def test_hardly_more_than_the_matrices_is_read_and_no_tokenizer(operation, server, originals) -> None:
    READING[operation](server.url)
    needed = needed_bytes(originals / "base", originals / "tuned")
    assert needed < sum(server.sent.values()) <= 1.02 * needed
    assert server.sent.get("/base/tokenizer.json", 0) <= 1


def test_one_matrix_is_read_alone(server) -> None:
    analyze(f"{server.url}/tuned", target="layers.1.self_attn.q_proj")
    needed = 512 * 512 * 4
    assert needed < sum(server.sent.values()) <= needed + 50_000


def test_small_tensors_that_are_neighbours_are_read_together(tmp_path) -> None:
    tensors = {f"model.layers.{n}.q_proj.weight": torch.full((64, 64), float(n)) for n in range(300)}
    (tmp_path / "small").mkdir()
    save_file(tensors, tmp_path / "small" / "model.safetensors")
    with serving(tmp_path) as files:
        opened = open_checkpoint(f"{files.url}/small")
        assert all(opened.read(name).equal(tensor) for name, tensor in tensors.items())
    assert files.weights_requests <= 4
    assert sum(files.sent.values()) <= 1.02 * 300 * 64 * 64 * 4


def test_an_adapter_and_a_single_file_are_read_by_their_urls(server, originals) -> None:
    for source in ("adapter", "adapter/adapter_model.safetensors"):
        remote, local = load_adapter(f"{server.url}/{source}"), load_adapter(originals / source)
        assert list(remote) == list(local)
        assert all(remote[name].delta().equal(local[name].delta()) for name in local)


@pytest.mark.parametrize("faults", [["drop"], ["truncate"], [503, 429, 500], ["drop", 503, "truncate", "drop"]])
def test_a_failing_connection_is_repeated_until_the_bytes_are_right(faults, server, originals) -> None:
    remote, local = open_checkpoint(f"{server.url}/tuned"), open_checkpoint(originals / "tuned")
    server.faults, server.retry_after = list(faults), "0"
    name = next(name for name in local.tensors if "proj" in name)
    assert remote.read(name).equal(local.read(name))
    assert server.faults == []


def test_a_server_that_asks_to_wait_is_waited_for(server, monkeypatch) -> None:
    from eckart.checkpoint.remote import transport

    waits: list[float] = []
    monkeypatch.setattr(transport.time, "sleep", waits.append)
    remote = open_checkpoint(f"{server.url}/tuned")
    server.faults, server.retry_after = [429, 503], "7"
    remote.read(next(iter(remote.tensors)))
    assert waits == [7.0, 7.0]


def test_a_server_that_stays_broken_is_named_with_the_reason(server) -> None:
    remote = open_checkpoint(f"{server.url}/tuned")
    server.faults = [503] * 50
    with pytest.raises(SourceError, match=rf"{server.url}/{WEIGHTS}: cannot be read \(the server answered 503; 6 att"):
        remote.read(next(iter(remote.tensors)))


def test_a_file_that_is_replaced_midway_is_an_error(tuned_once, tmp_path) -> None:
    source, output = f"{tuned_once.url}/tuned", tmp_path / "out"
    tuned_once.after[4] = lambda: replace(tuned_once)
    with pytest.raises(EckartError, match=r"changed while it was being read|inputs changed during the run"):
        analyze(source, output=output)
    assert not output.exists()


def test_a_file_that_is_removed_midway_is_an_error(tuned_once) -> None:
    remote = open_checkpoint(f"{tuned_once.url}/tuned")
    (tuned_once.folder / WEIGHTS).unlink()
    with pytest.raises(EckartError, match=r"tuned/model.safetensors: the file changed"):
        remote.read(next(iter(remote.tensors)))


def test_a_version_is_the_same_in_every_process_and_another_after_a_change(tuned_once) -> None:
    digest = (
        "import sys; from eckart.checkpoint import open_checkpoint; print(open_checkpoint(sys.argv[1]).fingerprint())"
    )
    command = [sys.executable, "-c", digest, f"{tuned_once.url}/tuned"]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    replace(tuned_once)
    assert first == second != subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("states_version", [True, False])
def test_inputs_are_asked_for_again_at_the_end(states_version, tuned_once) -> None:
    tuned_once.states_version = states_version
    inputs = InputFiles(open_checkpoint(f"{tuned_once.url}/tuned").files)
    inputs.check_unchanged()
    replace(tuned_once)
    with pytest.raises(SourceError, match=r"model.safetensors: written, replaced or removed"):
        inputs.check_unchanged()


def test_a_server_without_ranges_is_refused_before_anything_is_read(server) -> None:
    server.ranges = False
    with pytest.raises(SourceError, match=r"does not send parts of a file; `cache=DIR` downloads it once"):
        open_checkpoint(f"{server.url}/tuned")
    assert [given["Range"] for _, path, given in server.requests if path == f"/{WEIGHTS}"] == ["bytes=0-0"]


def test_with_a_cache_a_server_without_ranges_is_read_once(server, originals, tmp_path) -> None:
    server.ranges = False
    with remote_cache(tmp_path / "cache"):
        remote, local = open_checkpoint(f"{server.url}/tuned"), open_checkpoint(originals / "tuned")
        assert all(remote.read(name).equal(local.read(name)) for name in local.tensors)


MISSING = [
    ("{url}/nothing", "no such file or folder"),
    ("{url}/base/model.gguf", "no such file or folder"),
    ("http://127.0.0.1:9/model", "cannot be read"),
    ("http://no-such-host.invalid/model", "cannot be read"),
    ("nosuch://bucket/model", "knows no such kind of URL"),
]


@pytest.mark.parametrize(("source", "message"), MISSING)
def test_what_is_not_there_is_one_sentence(source, message, server) -> None:
    with pytest.raises(SourceError, match=message) as error:
        open_checkpoint(source.format(url=server.url))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x"])
def test_a_redirection_out_of_http_is_refused(target, server) -> None:
    server.redirects[f"/{WEIGHTS}"] = target
    with pytest.raises(SourceError, match="neither http:// nor https://"):
        open_checkpoint(f"{server.url}/{WEIGHTS}")


def test_redirections_in_a_circle_are_refused(server) -> None:
    server.redirects[f"/{WEIGHTS}"] = f"/{WEIGHTS}"
    with pytest.raises(SourceError, match="redirects"):
        open_checkpoint(f"{server.url}/{WEIGHTS}")


def test_a_redirection_is_followed_once_and_again_when_its_address_expires(server, originals) -> None:
    server.redirects["/link/model.safetensors"] = f"{server.url}/{WEIGHTS}?signature=1"
    remote, local = open_checkpoint(f"{server.url}/link/model.safetensors"), open_checkpoint(originals / "tuned")
    for name in local.tensors:
        server.faults = [403]
        assert remote.read(name).equal(local.read(name))
    server.requests.clear()
    assert all(remote.read(name).equal(local.read(name)) for name in local.tensors)
    assert all("signature" in path for _, path, _ in server.requests)


HOSTILE = {
    "too long": b"\xff" * 8 + b"{}",
    "longer than the file": (10**7).to_bytes(8, "little") + b"{}",
    "empty": b"",
    "an error page": b"<!DOCTYPE html><html>not found</html>",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused_as_on_disk(name, tmp_path) -> None:
    (tmp_path / "model.safetensors").write_bytes(HOSTILE[name])
    with serving(tmp_path) as files, pytest.raises(FileFormatError, match=files.url):
        open_checkpoint(f"{files.url}/model.safetensors")


def test_an_index_cannot_name_what_is_not_in_its_folder(originals, tmp_path) -> None:
    shutil.copytree(originals / "base", tmp_path / "base")
    index = tmp_path / "base" / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    (tmp_path / "secret.safetensors").write_bytes(b"x")
    with serving(tmp_path) as files, pytest.raises(FileFormatError, match="points outside the folder"):
        open_checkpoint(f"{files.url}/base")
    assert not any("secret" in path for _, path, _ in files.requests)


def test_pickled_weights_are_refused_by_their_url(tmp_path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with serving(tmp_path) as files, pytest.raises(SourceError, match="pickled weights"):
        locate(f"{files.url}/pytorch_model.bin")


def test_errors_of_files_name_the_url_and_not_where_they_are_mounted(tmp_path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"hidden_size": "large"}')
    save_file({"a": torch.ones(2, 2)}, tmp_path / "model" / "model.safetensors")
    with serving(tmp_path) as files, pytest.raises(FileFormatError, match=rf"^{files.url}/model/config.json") as error:
        open_checkpoint(f"{files.url}/model")
    assert "eckart-remote" not in str(error.value)
