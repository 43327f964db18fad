"""The Prefect server of the environment: whether it answers, and flow runs that are handed to it.

Importing this module imports Prefect (`pip install tilewright[flows]`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tilewright.errors import InputError, TilewrightError
from tilewright.flows.quiet import quiet

with quiet():
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.deployments import run_deployment
    from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
    from prefect.settings import get_current_settings

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

__all__ = ["FlowRunFailed", "connected", "server_url", "submit", "wait_for"]

PATIENCE = 5.0
"""Seconds that a server may take to say that it is well."""
POLL = 2.0
"""Seconds between two looks at a flow run."""
_REMEDY = (
    "start one by `prefect server start`, and set PREFECT_API_URL, for example http://127.0.0.1:4200/api"
)


class FlowRunFailed(TilewrightError):
    """A flow run that was handed to a server did not complete."""


def server_url() -> str:
    """Return the address of the server's API; raises `InputError` where none is set."""
    url = get_current_settings().api.url
    if not url:
        raise InputError("no Prefect server is set", place="PREFECT_API_URL", remedy=_REMEDY)
    return str(url).rstrip("/")


@contextmanager
def connected() -> Iterator[SyncPrefectClient]:
    """Give a client of the server; raises `InputError` in one line where it does not answer within `PATIENCE`."""
    url = server_url()
    try:
        # Asked by hand: Prefect's client tries again for half a minute, and then shows its stack.
        httpx.get(f"{url}/health", timeout=PATIENCE).raise_for_status()
    except httpx.HTTPError as error:
        raise InputError(
            f"the Prefect server does not answer ({type(error).__name__})", place=url, remedy=_REMEDY
        ) from error
    try:
        with get_client(sync_client=True) as client:
            yield client
    except (httpx.HTTPError, PrefectHTTPStatusError) as error:
        first = str(error).splitlines()[0]
        raise InputError(
            f"the Prefect server refused: {first}", place=url, remedy="see the server's log"
        ) from error


def submit(deployment: str, parameters: Mapping[str, Any]) -> tuple[UUID, str]:
    """Hand a run of ``flow/deployment`` to the server; return its id and its page's address.

    Raises `InputError` where the server does not answer, has no such deployment, or does not take the parameters.
    """
    with connected() as client:
        try:
            client.read_deployment_by_name(deployment)
        except ObjectNotFound as error:
            raise InputError(
                f"the server has no deployment {deployment!r}",
                place=server_url(),
                remedy=f"make it by `tilewright deploy {deployment.partition('/')[0]}`",
            ) from error
        found: Any = run_deployment(deployment, parameters=dict(parameters), timeout=0, as_subflow=False)
    ui = get_current_settings().ui_url or server_url().removesuffix("/api")
    return found.id, f"{ui}/runs/flow-run/{found.id}"


def wait_for(run: UUID, say: Callable[[str], Any]) -> None:
    """Wait until a flow run has ended, and tell each of its states; raises `FlowRunFailed` where it failed.

    A server that goes away meanwhile is waited for: the run goes on without it.
    """
    from time import sleep

    before, away = "", False
    while True:
        try:
            with get_client(sync_client=True) as client:
                state = client.read_flow_run(run).state
        except (httpx.HTTPError, PrefectHTTPStatusError):
            if not away:
                say("the server does not answer; the run goes on, and so does this wait")
            away = True
            sleep(POLL)
            continue
        away = False
        if state is not None and state.name != before:
            before = str(state.name)
            say(f"{state.name}{f': {state.message}' if state.message and state.is_final() else ''}")
        if state is not None and state.is_final():
            if state.is_completed():
                return
            raise FlowRunFailed(
                f"ended as {state.name}",
                place=f"flow run {run}",
                remedy="see its log; the same command resumes",
            )
        sleep(POLL)
