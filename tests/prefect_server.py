"""A real Prefect server and worker on loopback, in a scratch PREFECT_HOME: started, killed and started again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class PrefectServer:
    """``prefect server start`` and ``prefect worker start``; what they know is asked over HTTP."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": self.url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(home / "cache"),
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start_server(self) -> None:
        """Start the server, and wait until it is well."""
        self._start("server", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        self.wait(self._is_well, 90, "the server to be well")

    def start_worker(self, pool: str = "tilewright", name: str = "worker") -> None:
        """Start a worker, and wait until the server has seen it."""
        self._start(name, "prefect", "worker", "start", "--pool", pool, "--name", name)
        seen = lambda: any(  # noqa: E731
            one["name"] == name and one["status"] == "ONLINE"
            for one in self.ask(f"/work_pools/{pool}/workers/filter", {})
        )
        self.wait(seen, 90, "the worker to be seen")

    def _start(self, name: str, *command: str) -> None:
        log = (self.home / f"{name}.log").open("ab")
        self.processes[name] = subprocess.Popen(
            command,
            env=self.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=self.home,
        )

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """Signal a process and all of its children, and wait for its end."""
        import psutil

        process = self.processes.pop(name)
        if how == signal.SIGKILL:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.send_signal(how)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def close(self) -> None:
        """Stop all, the workers before the server."""
        for name in sorted(self.processes, key=lambda one: one == "server"):
            self.stop(name)

    def tilewright(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command line against this server."""
        done = subprocess.run(
            [str(BIN / "tilewright"), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
            cwd=self.home,
        )
        if check and done.returncode:
            raise AssertionError(f"{arguments}: {done.stdout}\n{done.stderr}\n{self.tail()}")
        return done

    def tail(self) -> str:
        """Return the ends of the logs, for a failing test."""
        return "\n".join(f"== {p.name}\n{p.read_text()[-3000:]}" for p in sorted(self.home.glob("*.log")))

    # -- what the server knows -----------------------------------------------------------------------------------

    def ask(self, path: str, body: Any | None = None) -> Any:
        """Ask the API: POST where there is a body, else GET."""
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        for left in (4, 3, 2, 1, 0):
            try:
                with urllib.request.urlopen(asked, timeout=20) as answer:
                    content = answer.read()
                break
            except urllib.error.HTTPError as error:
                if error.code != 503 or not left:  # 503: SQLite is busy
                    raise
                time.sleep(1)
        return json.loads(content) if content else None

    def _is_well(self) -> bool:
        try:
            return bool(self.ask("/health"))
        except OSError:
            return False

    def submit(self, deployment: str, **parameters: Any) -> str:
        """Make a flow run of a deployment; returns its id."""
        found = self.ask(f"/deployments/name/{deployment}")
        run = self.ask(f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters})
        return str(run["id"])

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """Return the flow runs of a deployment, the first first."""
        found = self.ask(f"/deployments/name/{deployment}")
        body = {"flow_runs": {"deployment_id": {"any_": [found["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return list(self.ask("/flow_runs/filter", body))

    def state(self, run: str) -> str:
        """Return the name of a flow run's state."""
        return str(self.ask(f"/flow_runs/{run}")["state"]["name"])

    def tasks(self, run: str) -> list[dict[str, Any]]:
        """Return the task runs of a flow run."""
        return list(self.ask("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}, "limit": 200}))

    def task_count(self, run: str) -> int:
        """Return how many task runs a flow run has."""
        return int(self.ask("/task_runs/count", {"flow_runs": {"id": {"any_": [run]}}}))

    def artifacts(self, run: str) -> list[dict[str, Any]]:
        """Return the artifacts of a flow run."""
        return list(self.ask("/artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}, "limit": 200}))

    def wait(self, done: Callable[[], Any], seconds: float, what: str) -> Any:
        """Wait until ``done`` gives something; fails with the logs."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if found := done():
                return found
            time.sleep(0.5)
        raise AssertionError(f"waited {seconds:.0f} s for {what}\n{self.tail()}")

    def ended(self, run: str, seconds: float = 120, name: str = "Completed") -> None:
        """Wait until a flow run has ended as ``name``."""
        final = ("Completed", "Failed", "Cancelled", "Crashed", "TimedOut")
        self.wait(lambda: self.state(run) in final, seconds, f"flow run {run} to end")
        assert self.state(run) == name, self.tail()


@contextmanager
def running(home: Path) -> Iterator[PrefectServer]:
    """Give a server that is well, and stop it in the end with all that was started on it."""
    made = PrefectServer(home)
    try:
        made.start_server()
        yield made
    finally:
        made.close()
