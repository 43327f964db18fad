"""`verify`: is a result what the run would compute again, and is it still what the run wrote?"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from tilewright.errors import InputError, TilewrightError
from tilewright.rebuild import opened_run, plain

if TYPE_CHECKING:
    import os
    from contextlib import ExitStack

    from tilewright.kernels.contract import Kernel
    from tilewright.pipeline.grid import Shard
    from tilewright.pipeline.job import Job
    from tilewright.pipeline.progress import Progress
    from tilewright.pipeline.stored import StoredRasters
    from tilewright.pipeline.verify import ShardCheck
    from tilewright.rebuild import FinishedRun

__all__ = ["Verification", "verify"]


@dataclass(frozen=True)
class Verification:
    """What `verify` found."""

    out: str
    """The run."""
    shards: int
    """Shards of the run."""
    durable: int
    """Of these, shards with a line in the ledger: fewer where the run was interrupted."""
    checks: tuple[ShardCheck, ...]
    """A line a shard that was checked, row-major; empty for records."""
    recomputed: bool
    """True where the shards were computed again; False where they were only read back."""
    seed: int | None
    """Of the random choice of shards, to repeat it; None where all were checked."""
    changed: tuple[str, ...] = ()
    """``key: then -> now`` for all that the answer depends on and that has changed since the run."""
    problem: str | None = None
    """Why nothing could be computed again."""
    digest: tuple[str, str] | None = None
    """(of the report, of the pixels as they are) where that was compared: all shards of a Zarr, or records."""

    @property
    def mismatches(self) -> tuple[ShardCheck, ...]:
        """The shards that are not equal."""
        return tuple(check for check in self.checks if not check.equal)

    @property
    def equal(self) -> bool:
        """True where nothing that was checked disagrees."""
        return not self.mismatches and (self.digest is None or self.digest[0] == self.digest[1])

    @property
    def exit_code(self) -> int:
        """0 all equal, 1 a mismatch, 2 not verified: nothing was computed again."""
        return 1 if not self.equal else (0 if self.recomputed else 2)


def verify(
    out: str | os.PathLike[str],
    *,
    sample: int | None = 20,
    seed: int | None = None,
    anyway: bool = False,
    kernel: Kernel | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Compute random shards of a run again, read them back, and compare both with the ledger.

    Inputs, kernel and settings are those that the run recorded; of a run of a recipe the Items of its
    snapshot are read, and nothing is searched. Where what the answer depends on has changed since (other
    files, another kernel, another build of torch), nothing is computed again unless ``anyway`` is set; what
    is stored is read back and compared with the ledger all the same.

    Parameters
    ----------
    out
        Folder of a run or its address in an object store, finished or interrupted.
    sample
        Shards to check, chosen at random; None checks all, and of a finished run the digest of the report too.
    seed
        Of the choice; a new one each time unless given, and told in the result.
    anyway
        True computes again although something has changed.
    kernel
        For a run that was given its kernel as an object.
    device
        Instead of the run's own; results agree across devices to 1e-4 of the range, not to the bit.
    progress
        Called with a `Status` after each shard.

    Raises
    ------
    InputError
        Where there is no run, it holds no finished shard, or a number makes no sense.
    TilewrightError
        Where a shard fails when it is computed again.
    """
    if sample is not None and sample < 1:
        raise InputError(f"sample is {sample}", place="--sample", remedy="give a number of at least 1")
    with opened_run(out) as run:
        names = list(run.ledger.entries)
        if not names:
            raise InputError("no shard of the run is finished yet", place=str(out))
        if sample is not None and sample < len(names):
            seed = secrets.randbelow(2**32) if seed is None else seed
            names = Random(seed).sample(sorted(names), sample)  # noqa: S311 - a choice, not a secret
        else:
            seed = None
        if "digest" not in run.ledger.entries[names[0]]:
            return _of_records(run)
        job, changed, problem = _job(run, kernel, device, anyway)
        return _checked(run, job, names, seed, progress, changed, problem)


def _shards(run: FinishedRun) -> list[Shard]:
    return list(run.tiling.shards(run.grid.shape))


def _job(
    run: FinishedRun, kernel: Kernel | None, device: str | None, anyway: bool
) -> tuple[Job | None, tuple[str, ...], str | None]:
    """Return the job, if it can and may be carried out again, what has changed since, and why not."""
    from tilewright.pipeline.ledger import differences

    try:
        job = run.job(kernel, device)
    except (TilewrightError, OSError, KeyError) as error:
        told = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        return None, (), f"the run cannot be made again: {told}"
    changed = tuple(differences(run.about, plain(job.fingerprint)))
    if job.tiling != run.tiling or job.grid.shape != run.grid.shape:
        return None, changed, "grid or tiling have changed: its shards are not those of the ledger"
    if changed and not anyway:
        return (
            None,
            changed,
            "what the answer depends on has changed; --anyway computes it again all the same",
        )
    return job, changed, None


def _checked(
    run: FinishedRun,
    job: Job | None,
    names: list[str],
    seed: int | None,
    progress: Progress | None,
    changed: tuple[str, ...],
    problem: str | None,
) -> Verification:
    from contextlib import ExitStack

    from tilewright.pipeline.progress import SHARDS, Status
    from tilewright.pipeline.verify import check_shards

    every, wanted = _shards(run), set(names)
    chosen = [shard for shard in every if shard.name in wanted]
    checks = []
    with ExitStack() as stack:
        zarr, cogs, missing = _stored(run, stack)
        any_of = zarr or cogs
        scale = any_of.geobox.shape[0] // run.grid.shape[0] if any_of else 1
        if any_of is None and job is not None:
            scale = job.kernel.spec.scale
        for check in check_shards(job, chosen, scale, run.ledger.entries, zarr, cogs):
            checks.append(check)
            if progress:
                progress(Status(SHARDS, len(checks), len(chosen)))
        readable = seed is None and len(names) == len(every) and all(c.problem is None for c in checks)
        digest = _whole(run, zarr) if readable else None
    return Verification(
        out=run.place,
        shards=len(every),
        durable=len(run.ledger.entries),
        checks=tuple(checks),
        recomputed=job is not None,
        seed=seed,
        changed=changed,
        problem="; ".join(text for text in (problem, missing) if text) or None,
        digest=digest,
    )


def _stored(
    run: FinishedRun, stack: ExitStack
) -> tuple[StoredRasters | None, StoredRasters | None, str | None]:
    """Open what the run keeps: (Zarr, COGs, what is missing)."""
    from tilewright.pipeline.objects import is_remote
    from tilewright.pipeline.store import ResultStore
    from tilewright.pipeline.stored import CogRasters, ZarrRasters

    outputs = run.report.outputs if run.report else {"zarr": "result.zarr"}
    files = {name: f"{run.place}/{file}" for name, file in outputs.items() if file.endswith(".tif")}
    place = run.place
    if run.report is None and run.ledger.header["layout"]["only"] == "cog":
        place = str(run.folder)  # a Zarr that is not kept is local, wherever the COGs go
    missing = [file for file in files.values() if not is_remote(file) and not Path(file).exists()]
    zarr = None
    if "zarr" in outputs:
        try:
            zarr = ZarrRasters(ResultStore.open(f"{place}/{outputs['zarr']}"))
        except TilewrightError as error:
            missing.append(str(error))
    there = {name: file for name, file in files.items() if file not in missing}
    cogs = CogRasters(there, stack) if there else None
    return zarr, cogs, f"not there any more: {', '.join(missing)}" if missing else None


def _whole(run: FinishedRun, zarr: Any) -> tuple[str, str] | None:
    """Return the digest of the report and that of all stored pixels."""
    from tilewright.pipeline.digest import result_digest

    return (run.report.digest, result_digest(zarr.store)) if run.report and zarr is not None else None


def _of_records(run: FinishedRun) -> Verification:
    """Compare the table of a run of records with its report: the ledger holds no digest of their shards."""
    from tilewright.pipeline.outputs import RECORDS
    from tilewright.pipeline.tiles import table_digest

    path = run.folder / RECORDS
    if run.report is None or not path.exists():
        raise InputError(
            "records are verified by their finished table, and it is not here",
            place=run.place,
            remedy="finish the run, or fetch its table into the folder",
        )
    return Verification(
        out=run.place,
        shards=len(_shards(run)),
        durable=len(run.ledger.entries),
        checks=(),
        recomputed=False,
        seed=None,
        problem="records are not computed again, only their table is compared with the report;"
        " run them again into another folder and use tilewright diff",
        digest=(run.report.digest, table_digest(path)),
    )
