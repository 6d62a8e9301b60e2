"""Work on the nodes of a Ray cluster: the bytes of one machine, whatever is lost on the way."""

import gc
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from eckart.checkpoint import open_checkpoint
from eckart.checkpoint.writer import TensorSpec, open_files
from eckart.engine import Execution, Task, connection, run_tasks
from eckart.engine.cluster import _batches
from eckart.errors import ClusterError, EckartError, MissingExtraError, OptionError, OutputError, SourceError
from eckart.operations import analyze, combine, compare, extract, merge, quantize, resize, unmerge

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="Ray starts several nodes on one machine only on Linux"),
    pytest.mark.filterwarnings("ignore"),  # of Ray's own code
]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no node could import it
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
PATIENCE = 120  # seconds for what must happen
MEASURED = re.compile(rb'"(seconds|peak_rss_bytes)": [^,}]*|(threads|nodes)')


class Cluster:
    """A head that does no work, and nodes of one core, all on this machine."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as Nodes

        self.nodes = Nodes(initialize_head=True, head_node_args=NODE | {"num_cpus": 0, "include_dashboard": False})
        assert self.nodes.address
        self.address = self.nodes.address
        self.added = [self.add(), self.add()]

    def add(self) -> object:
        return self.nodes.add_node(**NODE)  # type: ignore[arg-type]

    def kill(self, node: object) -> None:
        self.nodes.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        ray.shutdown()
        self.nodes.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = None
    for last in (False, False, True):
        try:
            cluster = Cluster()
            break
        except Exception:  # a machine that is busy with other work takes longer than the 30 s that Ray waits
            if last:
                raise
    assert cluster is not None
    yield cluster
    cluster.close()
    del cluster
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of Ray's processes, here rather than in a later test
        gc.collect()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, its fine-tune, and two adapters of it."""
    folder = tmp_path_factory.mktemp("cluster")
    generator = torch.Generator().manual_seed(5)
    shapes = {f"model.layers.{layer}.mlp.{name}_proj.weight": (96, 64) for layer in range(6) for name in ("up", "gate")}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    tuned = {name: weight + 0.1 * torch.randn(weight.shape, generator=generator) for name, weight in base.items()}
    for name, weights in (("base", base), ("tuned", tuned)):
        (folder / name).mkdir()
        save_file(weights, folder / name / "model.safetensors", metadata={"format": "pt"})
        (folder / name / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    extract(folder / "base", folder / "tuned", rank=4, output=folder / "adapter")
    extract(folder / "base", folder / "tuned", rank=2, output=folder / "other")
    merge(folder / "base", folder / "adapter", folder / "merged")
    return folder


def content(output: Path) -> dict[str, bytes]:
    files = sorted(path for path in output.rglob("*") if path.is_file())
    return {path.relative_to(output).as_posix(): MEASURED.sub(b"", path.read_bytes()) for path in files}


OPERATIONS: dict[str, Callable[[Path, Execution], object]] = {
    "analyze": lambda out, how: analyze("tuned", "base", output=out, execution=how),
    "analyze adapter": lambda out, how: analyze("adapter", output=out, execution=how),
    "extract": lambda out, how: extract("base", "tuned", rank=4, output=out, execution=how),
    "extract budget": lambda out, how: extract("base", "tuned", budget="40KB", output=out, execution=how),
    "resize": lambda out, how: resize("adapter", energy=0.5, output=out, execution=how),
    "combine": lambda out, how: combine(["adapter", "other"], output=out, execution=how),
    "merge": lambda out, how: merge("base", "adapter", out, execution=how),
    "unmerge": lambda out, how: unmerge("merged", ["adapter"], out, execution=how),
    "quantize": lambda out, how: quantize("base", out, execution=how),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_on_two_nodes_writes_the_bytes_that_threads_write(name, cluster, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)  # the sources are relative paths
    for how in (Execution(device="cpu", workers=2), Execution(device="cpu", ray=cluster.address)):
        OPERATIONS[name](tmp_path / ("nodes" if how.ray else "threads"), how)
    assert content(tmp_path / "nodes") == content(tmp_path / "threads")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nodes", "threads"]


def test_a_comparison_on_two_nodes_gives_the_numbers_of_threads(cluster, folder):
    found = [
        compare(folder / "base", folder / "tuned", execution=how).to_json()
        for how in (Execution(device="cpu", workers=2), Execution(device="cpu", ray=cluster.address))
    ]
    assert found[0]["matrices"] == found[1]["matrices"]


def logged(log: Path, name: str, seconds: float = 0.0) -> str:
    with log.open("a") as file:
        file.write(f"{name}\n")
    time.sleep(seconds)
    return name


def slow_tasks(log: Path, count: int, seconds: float) -> list[Task[str]]:
    return [Task(f"t{i}", 2**20, 1, lambda i=i: logged(log, f"t{i}", seconds)) for i in range(count)]


def test_of_a_node_that_is_killed_only_what_was_in_progress_is_done_again(cluster, tmp_path):
    doomed, log, results = cluster.add(), tmp_path / "log", []
    execution = Execution(device="cpu", ray=cluster.address)
    execution.check()
    tasks = slow_tasks(log, 36, 0.25)
    for task, result in run_tasks(tasks, stage="test", execution=execution):
        results.append((task.name, result))
        if len(results) == 6:
            cluster.kill(doomed)
    assert sorted(results) == sorted((task.name, task.name) for task in tasks)
    begun = log.read_text().split()
    assert set(begun) == {task.name for task in tasks}
    assert len(begun) <= len(tasks) + max(map(len, _batches(tasks, slots=3)))


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: {}["a"], KeyError, "'a'"),
        (lambda: torch.linalg.cholesky(-torch.eye(2)), RuntimeError, "not positive-definite"),
        (lambda: bytearray(2**60), ClusterError, "ran out of memory at model.q_proj: process fewer matrices at once"),
    ],
)
def test_a_task_that_fails_is_named_and_not_repeated(call, kind, message, cluster, tmp_path):
    log = tmp_path / "log"

    def fail() -> None:
        logged(log, "begun")
        call()

    task = Task("model.q_proj", 2**20, 1, fail)
    execution = Execution(device="cpu", ray=cluster.address)
    execution.check()
    with pytest.raises(kind, match=message) as raised:
        list(run_tasks([task], stage="test", execution=execution))
    assert log.read_text() == "begun\n"
    assert "model.q_proj" in f"{raised.value} {raised.value.__notes__ if hasattr(raised.value, '__notes__') else ''}"


def test_a_worker_that_is_killed_every_time_is_no_endless_loop(cluster):
    execution = Execution(device="cpu", ray=cluster.address)
    execution.check()
    task = Task("model.q_proj", 2**20, 1, lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ClusterError, match=r"killed 4 times, most likely for lack of memory.*model\.q_proj"):
        list(run_tasks([task], stage="test", execution=execution))


def test_a_source_that_a_node_does_not_see_is_named_with_the_node_before_the_first_task(cluster, tmp_path):
    log, name = tmp_path / "log", os.uname().nodename

    class Elsewhere:
        def __reduce__(self) -> tuple[object, ...]:
            def missing() -> None:
                msg = "base: no such file here"
                raise SourceError(msg)

            return missing, ()

    elsewhere = Elsewhere()
    tasks = [*slow_tasks(log, 3, 0), Task("x", 2**20, 1, lambda: elsewhere)]
    execution = Execution(device="cpu", ray=cluster.address)
    execution.check()
    with pytest.raises(SourceError, match=f"^node {re.escape(name)}: base: no such file here$"):
        list(run_tasks(tasks, stage="test", execution=execution))
    assert not log.exists()


def test_weights_in_memory_are_not_sent(cluster, tmp_path):
    weights = {"model.layers.0.mlp.up_proj.weight": torch.randn(64, 64)}
    with pytest.raises(ClusterError, match="give the path of a folder or file that every node sees"):
        analyze(weights, output=tmp_path / "out", execution=Execution(device="cpu", ray=cluster.address))


def command(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "eckart", *arguments]
    return subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_command_that_is_killed_resumes_with_what_was_done(cluster, folder, tmp_path):
    extract(folder / "base", folder / "tuned", rank=4, output=tmp_path / "threads")
    arguments = ("extract", "base", "tuned", "--rank", "4", "--ray", cluster.address, "-o", str(tmp_path / "nodes"))
    partial = tmp_path / "nodes.partial"
    killed = command(folder, *arguments)
    wait_until(lambda: list(partial.glob("*.safetensors")) or killed.poll() is not None)
    killed.kill()
    killed.communicate()
    done = len(list(partial.glob("*.safetensors")))
    assert 0 < done < 12
    resumed = command(folder, *arguments)
    _, log = resumed.communicate(timeout=PATIENCE)
    assert resumed.returncode == 0, log
    assert f"resuming: {done} of 12 matrices" in log
    factors = "adapter_model.safetensors"
    assert (tmp_path / "nodes" / factors).read_bytes() == (tmp_path / "threads" / factors).read_bytes()


@pytest.mark.parametrize("address", ["cluster", "host:port", "http://localhost:1", ":6379", "localhost:0"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ClusterError, match="`ray` must be auto or the HOST:PORT"):
        connection._require_head(address)


def test_an_address_that_does_not_answer_is_refused():
    with pytest.raises(ClusterError, match="the Ray cluster at localhost:1 does not answer; start Ray"):
        connection._require_head("localhost:1")


def test_a_missing_ray_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(connection, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="`ray` needs the 'cluster' extra: pip install"):
        Execution(ray="auto").check()


def test_a_share_of_a_clusters_work_is_refused():
    from eckart.engine import Shard

    with pytest.raises(OptionError, match="leave `shard` out"):
        Execution(ray="auto", shard=Shard(1, 2)).check()


def test_nodes_with_other_versions_are_refused_and_named():
    here = connection._versions()
    connection.check_versions({"a": dict(here)})
    nodes = {"b": here | {"eckart": "0.0.1"}, "c": here | {"Python": "3.99"}, "d": here | {"eckart": None}}
    with pytest.raises(ClusterError) as raised:
        connection.check_versions({"a": dict(here), **nodes, "e": TimeoutError("no answer")})
    lines = str(raised.value).splitlines()
    assert len(lines) == 5
    assert f"b: has eckart 0.0.1; here it is {here['eckart']}" in lines[1]
    assert "c: has Python 3.99" in lines[2]
    assert "d: eckart is not installed" in lines[3]
    assert "e: does not answer (no answer)" in lines[4]


def test_every_node_tells_its_versions(cluster):
    Execution(device="cpu", ray=cluster.address).check()
    found = connection.on_each(connection.nodes(), connection._versions_there())
    assert found == [connection._versions()] * 2


def test_gpus_that_no_node_has_are_refused(cluster):
    execution = Execution(device="cuda", ray=cluster.address)
    execution.check()
    with pytest.raises(ClusterError, match="no node of the cluster has a GPU"):
        list(run_tasks([Task("x", 1, 1, int)], stage="test", execution=execution))


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_a_checkpoint_is_opened_elsewhere_only_if_its_files_are_the_same(change, tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"up_proj.weight": torch.ones(4, 4)}, file)
    sent = pickle.dumps(open_checkpoint(file))
    assert torch.equal(pickle.loads(sent).read("up_proj.weight"), torch.ones(4, 4))
    file.unlink()
    if change == "replaced":
        save_file({"up_proj.weight": torch.zeros(4, 4)}, file)
    with pytest.raises(SourceError, match=r"model\.safetensors.*on a file system that every node sees"):
        pickle.loads(sent)


def test_an_output_is_written_elsewhere_only_into_the_same_files(tmp_path):
    spec = TensorSpec.of("weight", torch.ones(4))
    with open_files(tmp_path, {"model.safetensors": [spec]}) as files:
        sent = pickle.dumps(files)
        pickle.loads(sent).write("weight", torch.ones(4))
    assert (tmp_path / "model.safetensors").read_bytes().endswith(torch.ones(4).numpy().tobytes())
    (tmp_path / "model.safetensors").rename(tmp_path / "other")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(OutputError, match="the output must be on a file system that they share"):
        pickle.loads(sent)


@pytest.mark.parametrize(("sizes", "slots"), [([1] * 100, 2), ([2**30] * 5, 2), ([0] * 7, 4), ([2**20, 1, 0], 64)])
def test_batches_contain_every_task_once_and_leave_several_to_each_core(sizes, slots):
    tasks = [SimpleNamespace(nbytes=size) for size in sizes]
    batches = _batches(tasks, slots)  # type: ignore[arg-type]
    assert [number for batch in batches for number in batch] == list(range(len(sizes)))
    assert len(batches) >= min(len(sizes), 2 * slots)


def test_an_error_of_a_cluster_is_an_eckart_error():
    assert issubclass(ClusterError, EckartError)


WAITING = """
import sys, time
from eckart.engine import Execution, Task, run_tasks
execution = Execution(device="cpu", ray=sys.argv[1])
execution.check()
tasks = [Task(f"t{i}", 2**20, 1, lambda: time.sleep(0.5)) for i in range(400)]
for task, _ in run_tasks(tasks, stage="test", execution=execution):
    print(task.name, flush=True)
"""


def test_a_head_that_is_killed_ends_the_work_with_what_to_do(cluster):  # the last test: nothing is left of the cluster
    line = [sys.executable, "-c", WAITING, cluster.address]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline()
    ray.shutdown()
    cluster.kill(cluster.nodes.head_node)
    _, log = process.communicate(timeout=PATIENCE)
    assert "does not answer any more: finished work is kept next to the output" in log
    assert process.returncode == 1
