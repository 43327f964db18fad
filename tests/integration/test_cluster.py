"""Runs on real Dask workers: the same bits, each tile once, and workers, schedulers and clients that die or hang."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fakes import ArraySource
from networks import SMALL_UNET_RADIUS, SMALL_UNET_STRIDE, small_unet
from running import image, job_of, make_kernel, with_holes

from tilewright.errors import ClusterError, InputError, KernelError, PlanError
from tilewright.pipeline.cluster import Cluster
from tilewright.pipeline.ledger import Ledger
from tilewright.pipeline.run import Request, Run, execute

if TYPE_CHECKING:
    from conftest import S3

    from tilewright.kernels.contract import Kernel
    from tilewright.pipeline.job import Job
    from tilewright.pipeline.report import Report

pytestmark = pytest.mark.integration

TESTS = Path(__file__).resolve().parents[1]
SCORE = {"out": {"kind": "score", "range": (0, 1)}}
GROUND = with_holes(image(400, 500))
WISHES = {"tile": 160, "shard": 160, "batch": 2}


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Two workers, each with a nanny that starts it again."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


def unet() -> Kernel:
    """A network with a radius and a stride."""
    network = small_unet(1, 1, scores=True)
    return make_kernel(network, radius=SMALL_UNET_RADIUS, stride=SMALL_UNET_STRIDE, outputs=SCORE)


def global_mean(seconds: float = 0.0) -> Kernel:
    """A kernel that sees its whole tile: no radius, so that tiles are blended; as slow as wanted."""

    def forward(x: Any) -> Any:
        time.sleep(seconds)
        return (x * 0.1 + x.mean(dim=(-1, -2), keepdim=True)).sigmoid()

    return make_kernel(forward, radius=None, outputs=SCORE)


def slow_job(seconds: float = 0.1) -> Job:
    return job_of(global_mean(seconds), ArraySource(GROUND), tile=96, shard=96, batch=2)


def run(job: Job, out: Path, cluster: Any = None, **keys: Any) -> Report:
    return execute(job, Request(out, "cluster", cluster=cluster), **keys)


def same(out: Path, report: Report, other: Path, known: Report) -> bool:
    """True where two results have the same pixels, and their COGs the same bytes."""
    cogs = [p.name for p in other.glob("*.tif")]
    assert cogs
    return report.digest == known.digest and all(
        (out / name).read_bytes() == (other / name).read_bytes() for name in cogs
    )


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """The result of `slow_job` in one process, without the waiting."""
    out = tmp_path_factory.mktemp("slow") / "out"
    report = run(slow_job(0.0), out)
    assert report.shards > 9
    return out, report


def check(job: Job, out: Path, report: Report, known: tuple[Path, Report]) -> None:
    """Check that a disturbed run of `slow_job` ended as an undisturbed one."""
    assert same(out, report, *known)
    assert report.reasons == known[1].reasons
    assert report.tiles_needed == known[1].tiles_needed
    names = {p.name for p in out.iterdir()}
    assert "margins.partial" not in names
    assert report.peak_worker_bytes <= report.projected_memory_bytes
    assert sorted(Ledger.read(out).entries) == sorted(s.name for s in Run(job, Request(out, "x")).shards)


@pytest.mark.parametrize(
    ("make", "wishes"),
    [(unet, {"stitch": "cut"}), (unet, {"stitch": "blend"}), (global_mean, {"shard": 300})],
    ids=["cut", "blend", "global"],
)
def test_one_process_and_two_workers_give_the_same_bytes(
    client: Any, tmp_path: Path, make: Callable[[], Kernel], wishes: dict[str, Any]
) -> None:
    job = job_of(make(), ArraySource(GROUND), **{**WISHES, **wishes})
    alone = run(job, tmp_path / "alone")
    assert alone.workers == 0
    for group in (None, 3):
        out = tmp_path / f"by-{group}"
        report = run(job, out, replace(Cluster.of(client), group=group))
        assert same(out, report, tmp_path / "alone", alone)
        assert report.work_factor == alone.work_factor == 1.0
        assert report.seam == alone.seam
        assert 1 <= report.workers <= 2
        assert 0 < report.peak_worker_bytes <= report.projected_memory_bytes


def test_two_intra_op_threads_have_the_same_bits_on_workers(client: Any, tmp_path: Path) -> None:
    """Dask's nannies start workers with one OpenMP thread; the run's number of threads is what counts."""
    job = job_of(unet(), ArraySource(GROUND[..., :300, :300]), **WISHES, threads=2)
    assert run(job, tmp_path / "a").digest == run(job, tmp_path / "b", client).digest


@contextmanager
def disturbed(out: Path, after: int, what: Callable[[], None]) -> Iterator[None]:
    """Do something once the ledger of ``out`` names ``after`` shards."""
    failed: list[BaseException] = []

    def wait() -> None:
        until = time.monotonic() + 90
        while time.monotonic() < until:
            path = out / "ledger.jsonl"
            if path.exists() and path.read_text().count('\n{"shard"') >= after:
                try:
                    what()
                except BaseException as error:  # noqa: BLE001 - shown by the test
                    failed.append(error)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=wait)
    thread.start()
    yield
    thread.join()
    assert not failed, failed


def pids(client: Any) -> list[int]:
    client.wait_for_workers(2, timeout=60)
    return sorted(client.run(os.getpid).values())


def test_a_killed_worker_costs_its_groups_and_no_bit(
    client: Any, tmp_path: Path, slow: tuple[Path, Report]
) -> None:
    out, job, victims = tmp_path / "out", slow_job(), pids(client)
    with disturbed(out, 4, lambda: os.kill(victims[0], signal.SIGKILL)):
        report = run(job, out, replace(Cluster.of(client), group=2))
    check(job, out, report, slow)
    assert any("begun again" in note for note in report.notes)
    assert (
        report.work_factor < 1.5
    )  # the margins of the dead outlive them: nothing but its groups is done again


def test_a_hanging_worker_is_given_up(client: Any, tmp_path: Path, slow: tuple[Path, Report]) -> None:
    out, job, victims = tmp_path / "out", slow_job(), pids(client)
    with disturbed(out, 4, lambda: os.kill(victims[0], signal.SIGSTOP)):
        report = run(job, out, replace(Cluster.of(client), group=2, patience=8))
    check(job, out, report, slow)
    assert any("hung" in note for note in report.notes)
    assert victims[0] not in pids(client)


def test_ctrl_c_keeps_what_is_durable(client: Any, tmp_path: Path, slow: tuple[Path, Report]) -> None:
    out, job = tmp_path / "out", slow_job()

    def stop(status: Any) -> None:
        if status.done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        run(job, out, client, progress=stop)
    kept = len(Ledger.read(out).entries)
    assert kept >= 5
    assert f"{kept} of" in " ".join(stopped.value.__notes__)
    report = run(job, out, client)
    assert report.shards_reused == kept
    check(job, out, report, slow)
    recomputed = report.tiles_run - report.tiles_needed
    assert 0 < recomputed < report.tiles_needed / 2  # the margins of what was durable


def test_a_finished_run_needs_no_workers(client: Any, tmp_path: Path, slow: tuple[Path, Report]) -> None:
    out = tmp_path / "out"
    first = run(slow_job(0.0), out, client)
    again = run(slow_job(0.0), out, Cluster("local:1"))
    assert again.digest == first.digest
    assert again.shards_reused == again.shards


def test_records_are_the_same_table(client: Any, tmp_path: Path) -> None:
    from tilewright.api import run_job

    outputs = {"embedding": {"kind": "vector", "bands": 2}}

    def forward(x: Any) -> Any:
        return {"embedding": x.flatten(1)[:, :2]}

    job = job_of(make_kernel(forward, outputs=outputs), ArraySource(image(300, 400)), tile=64, shard=128)
    alone = run_job(job, Request(tmp_path / "a", "records"))
    shared = run_job(job, Request(tmp_path / "b", "records", cluster=client))
    assert shared.digest == alone.digest
    assert shared.work_factor == 1.0


def test_an_object_store_takes_shards_from_two_workers(
    client: Any, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: tuple[Path, Report]
) -> None:
    import rasterio
    from obstore.store import from_url

    from tilewright.pipeline.store import ResultStore

    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    environment = dict(s3.environment)
    client.run(lambda: os.environ.update(environment))
    remote = f"{s3.url}/cluster-run"
    request = Request(tmp_path / "work", "cluster", cluster=client, remote=remote)
    report = execute(slow_job(0.0), request)
    assert report.digest == slow[1].digest
    assert report.work_factor == 1.0
    found = {entry["path"] for page in from_url(remote, **s3.options).list() for entry in page}
    assert "report.json" in found
    assert not any("margins.partial" in path for path in found)
    with rasterio.open(slow[0] / "out.tif") as cog:
        store = ResultStore.open(f"{remote}/result.zarr", options=s3.options)
        np.testing.assert_array_equal(store.read("out", store.grid.window), cog.read(1))


def test_an_error_on_a_worker_reaches_the_user_whole(client: Any, tmp_path: Path) -> None:
    def forward(x: Any) -> Any:
        if float(x.max()) > 0:  # not yet with the zeros of the probe
            return x[:, :, 1:]
        return x

    job = job_of(make_kernel(forward), ArraySource(image(300, 300)), **WISHES)
    with pytest.raises(KernelError, match=r"expected \[2, C, 160, 160\]"):
        run(job, tmp_path / "out", client)


def test_a_worker_with_other_libraries_is_refused(client: Any, tmp_path: Path) -> None:
    import torch

    def pretend(version: str) -> None:
        import torch

        torch.__version__ = torch.torch_version.TorchVersion(version)

    client.run(pretend, "1.0")
    try:
        with pytest.raises(
            ClusterError, match=r"has torch 1\.0, the client has .*; install the same versions"
        ):
            run(slow_job(0.0), tmp_path / "out", client)
    finally:
        client.run(pretend, str(torch.__version__))


def test_memory_is_that_of_a_worker(client: Any, tmp_path: Path) -> None:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, processes=False, memory_limit="300MiB", dashboard_address=None) as small,
        Client(small, set_as_default=False) as to_small,
        pytest.raises(PlanError, match="may use 240 MiB"),
    ):
        run(slow_job(0.0), tmp_path / "out", to_small)
    assert not (tmp_path / "out").exists()
    job = slow_job(0.0)
    modest = replace(job, settings=replace(job.settings, memory=100 << 20))
    with pytest.raises(PlanError, match="may use 100 MiB"):
        run(modest, tmp_path / "out", client)


@pytest.mark.parametrize("text", ["local:0", "local", "8786", "tcp:host", "http://host:1", ""])
def test_what_is_no_cluster_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="names no cluster"):
        Cluster.of(text)


def test_no_scheduler_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilewright.pipeline.cluster.CONNECT_S", 1.0)
    with pytest.raises(ClusterError, match=r"cluster tcp://127.0.0.1:9: no scheduler answers; start one"):
        run(slow_job(0.0), tmp_path / "out", "tcp://127.0.0.1:9")
    assert not (tmp_path / "out").exists()


def surroundings(*folders: Path) -> dict[str, str]:
    """Return the environment of a process that imports from ``folders``."""
    paths = [*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@dataclass
class Processes:
    """A scheduler and workers as ``dask scheduler`` and ``dask worker`` start them, on a port that stays."""

    folder: Path
    port: int

    def __post_init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def scheduler(self) -> subprocess.Popen[bytes]:
        """Start a scheduler and wait until it answers."""
        from distributed import Client

        process = self._start("scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard")
        until = time.monotonic() + 60
        while True:
            try:
                Client(self.address, timeout=2, set_as_default=False).close()
            except OSError:
                assert process.poll() is None, (self.folder / "dask.log").read_text()[-2000:]
                assert time.monotonic() < until
            else:
                return process

    def worker(self) -> subprocess.Popen[bytes]:
        """Start a worker; it joins when it is up."""
        return self._start("worker", self.address, "--nthreads", "1", "--memory-limit", "0", "--no-dashboard")

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / "dask.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments],
                cwd=self.folder,
                env=surroundings(TESTS),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a process with all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    folder = tmp_path / "dask"
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    running = Processes(folder, port)
    yield running
    for process in running.started:
        running.kill(process)


def test_workers_join_late_and_a_scheduler_restarts(
    processes: Processes, tmp_path: Path, slow: tuple[Path, Report]
) -> None:
    """First a worker joins a run that is under way; then all is killed and started again, and the run goes on."""
    scheduler, worker = processes.scheduler(), processes.worker()
    out, job = tmp_path / "out", slow_job(0.2)

    def restart() -> None:
        processes.kill(scheduler)
        processes.kill(worker)
        processes.scheduler()
        processes.worker()
        processes.worker()

    with disturbed(out, 3, restart):
        report = run(job, out, Cluster(processes.address, group=2, wait=120))
    check(job, out, report, slow)
    assert report.workers >= 2  # the one before, and one or both after


def test_a_lost_scheduler_is_one_line_and_the_run_resumes(
    processes: Processes, tmp_path: Path, slow: tuple[Path, Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilewright.pipeline.cluster.RECONNECT_S", 1.0)
    scheduler, out, job = processes.scheduler(), tmp_path / "out", slow_job()
    processes.worker()
    with (
        disturbed(out, 3, lambda: processes.kill(scheduler)),
        pytest.raises(ClusterError, match="scheduler was lost; finished shards are kept: start") as lost,
    ):
        run(job, out, Cluster(processes.address, wait=120))
    assert "\n" not in str(lost.value)
    report = run(job, out)  # the same command, in one process
    assert report.shards_reused >= 3
    check(job, out, report, slow)


SCRIPT = """
import sys
from pathlib import Path

from test_cluster import run, slow_job

if __name__ == "__main__":
    run(slow_job(), Path(sys.argv[1]), "local:2")
"""


@pytest.mark.slow
def test_a_killed_client_resumes(client: Any, tmp_path: Path, slow: tuple[Path, Report]) -> None:
    out, script = tmp_path / "out", tmp_path / "script.py"
    script.write_text(SCRIPT)
    env = surroundings(TESTS, TESTS / "integration")
    child = subprocess.Popen([sys.executable, str(script), str(out)], env=env)
    with disturbed(out, 4, lambda: os.kill(child.pid, signal.SIGKILL)):
        assert child.wait(120) == -signal.SIGKILL
    job = slow_job()
    report = run(job, out, client)
    assert report.shards_reused >= 4
    check(job, out, report, slow)
