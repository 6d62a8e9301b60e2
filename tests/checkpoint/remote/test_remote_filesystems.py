"""Sources in file systems of fsspec: an S3 server of this machine, and memory."""

import subprocess
import sys

import fsspec
import pytest

from eckart.checkpoint import open_checkpoint
from eckart.errors import EckartError, MissingExtraError, SourceError
from eckart.operations import analyze, extract

from .conftest import needed_bytes

S3 = "s3://bucket/models"
SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def s3_url():
    """An S3 server that keeps its objects in memory."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.kill()


@pytest.fixture
def s3(s3_url, originals, monkeypatch) -> fsspec.AbstractFileSystem:
    """The file system of a bucket with the models, with the credentials of the environment."""
    settings = {"AWS_ENDPOINT_URL": s3_url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "very-secret"}
    for name, value in (settings | {"AWS_DEFAULT_REGION": "us-east-1"}).items():
        monkeypatch.setenv(name, value)
    bucket = fsspec.filesystem("s3")
    if not bucket.exists("bucket"):
        bucket.mkdir("bucket")
        bucket.put(str(originals), "bucket/models", recursive=True)
    return bucket


def test_models_in_a_bucket_give_the_same_adapter_as_on_disk(s3, originals, tmp_path) -> None:
    extract(originals / "base", originals / "tuned", rank=3, output=tmp_path / "local")
    extract(f"{S3}/base", f"{S3}/tuned", rank=3, output=tmp_path / "remote")
    local, remote = (tmp_path / each / "adapter_model.safetensors" for each in ("local", "remote"))
    assert remote.read_bytes() == local.read_bytes()
    texts = [file for file in (tmp_path / "remote").iterdir() if file.suffix != ".safetensors"]
    assert not any("very-secret" in file.read_text() for file in texts)


def test_one_file_in_a_bucket_is_a_source(s3, originals) -> None:
    remote, local = open_checkpoint(f"{S3}/tuned/model.safetensors"), open_checkpoint(originals / "tuned")
    assert remote.config == local.config
    assert all(remote.read(name).equal(local.read(name)) for name in local.tensors)


def test_ranges_and_not_files_are_read_from_a_bucket(s3, originals, monkeypatch) -> None:
    read = []
    plain = s3.cat_file

    def counted(path, start=None, end=None):
        read.append(end - start)
        return plain(path, start=start, end=end)

    monkeypatch.setattr(s3, "cat_file", counted)
    analyze(f"{S3}/tuned")
    needed = needed_bytes(originals / "tuned")
    assert needed < sum(read) <= 1.02 * needed


def test_an_object_that_is_replaced_midway_is_an_error(s3, originals) -> None:
    s3.put(str(originals / "tuned"), "bucket/replaced", recursive=True)
    remote = open_checkpoint("s3://bucket/replaced")
    s3.put(str(originals / "base" / "model-00001-of-00002.safetensors"), "bucket/replaced/model.safetensors")
    with pytest.raises(EckartError, match="the file changed while it was being read"):
        remote.read(next(iter(remote.tensors)))


REFUSED = {
    "s3://bucket/nothing": "no such file or folder",
    "s3://no-such-bucket/model": "no such file or folder",
}


@pytest.mark.parametrize("source", REFUSED)
def test_what_is_not_in_a_bucket_is_one_sentence(source, s3) -> None:
    with pytest.raises(SourceError, match=REFUSED[source]) as error:
        open_checkpoint(source)
    assert len(str(error.value).splitlines()) == 1


def test_a_source_in_memory_is_read(originals) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(originals / "tuned"), "/tuned", recursive=True)
    remote, local = open_checkpoint("memory://tuned"), open_checkpoint(originals / "tuned")
    assert all(remote.read(name).equal(local.read(name)) for name in local.tensors)
    memory.rm("/tuned", recursive=True)


def test_a_file_url_is_a_path(originals) -> None:
    assert open_checkpoint(f"file://{originals}/tuned").folder == originals / "tuned"


def test_a_failing_read_is_repeated_and_a_short_one_too(originals, monkeypatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(originals / "tuned"), "/failing", recursive=True)
    remote, local = open_checkpoint("memory://failing"), open_checkpoint(originals / "tuned")
    plain, left = type(memory).cat_file, [OSError("reset"), "short", TimeoutError("late")]

    def failing(self, path, start=None, end=None, **options):
        fault = left.pop() if left else None
        if isinstance(fault, Exception):
            raise fault
        return plain(self, path, start=start, end=end, **options)[: 3 if fault else None]

    monkeypatch.setattr(type(memory), "cat_file", failing)
    assert all(remote.read(name).equal(local.read(name)) for name in local.tensors)
    assert left == []
    memory.rm("/failing", recursive=True)


@pytest.mark.parametrize(("kind", "library"), [("gs", "pip install gcsfs"), ("sftp", ".*paramiko")])
def test_a_kind_of_url_whose_library_is_missing_says_what_to_install(kind, library) -> None:
    with pytest.raises(MissingExtraError, match=f"reading {kind}:// needs another library: {library}"):
        open_checkpoint(f"{kind}://bucket/model")


def test_a_file_system_that_cannot_be_reached_is_one_sentence() -> None:
    with pytest.raises(SourceError, match=r"^ftp://127.0.0.1:9/model: cannot be read \(.*refused\)$"):
        open_checkpoint("ftp://127.0.0.1:9/model")


def test_without_credentials_nothing_is_asked(s3_url, monkeypatch, tmp_path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(SourceError, match=r"^s3://bucket/model: access was refused \(Unable to locate credentials\)"):
        open_checkpoint("s3://bucket/model")
    fsspec.filesystem("s3").clear_instance_cache()


def test_refused_access_is_one_sentence_without_secrets_of_urls(s3, monkeypatch) -> None:
    denied = PermissionError("Access Denied for https://me:secret@host/x?X-Amz-Signature=abc")
    monkeypatch.setattr(s3, "info", lambda *_, **__: (_ for _ in ()).throw(denied))
    with pytest.raises(SourceError, match=r"s3://bucket/models/base: access was refused \(Access Denied") as error:
        open_checkpoint(f"{S3}/base")
    assert "secret" not in str(error.value)
    assert "Signature" not in str(error.value)
