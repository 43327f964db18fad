"""`tilewright verify`: it finds what was damaged, what is not reproducible, and what has changed; and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
from commands import KERNELS, command, write_recipe, write_tif

import tilewright
from tilewright.errors import InputError
from tilewright.kernels.load import load_kernel
from tilewright.pipeline.ledger import Ledger

if TYPE_CHECKING:
    from tilewright.pipeline.progress import Status

SMOOTH = """
import torch

import tilewright


@tilewright.kernel(
    inputs={"image": {"bands": 1}},
    radius=4,
    outputs={
        "o": {"kind": "value", "range": [0, 1]},
        "high": {"kind": "class", "classes": ["low", "high"], "threshold": 0.5, "range": [0, 1]},
    },
)
def smooth(x):
    mean = torch.nn.functional.avg_pool2d(x, 9, 1, 4)
    return {"o": mean, "high": mean}
"""
SIZES = ("--tile", 32, "--shard", 48, "--threads", 1, "--batch", 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of kernels, an image with a hole, and a finished run of them in ``out``."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "mine.py").write_text(KERNELS + SMOOTH)
    values = np.random.default_rng(5).random((1, 100, 120), dtype="float32")
    values[:, 60:70, 100:110] = np.nan
    write_tif(folder / "image.tif", values, nodata=np.nan)
    applied(folder / "mine.py", folder / "image.tif", folder / "out")
    return folder


@pytest.fixture
def mine(made: Path, tmp_path: Path) -> Path:
    """The file of kernels, to be changed."""
    return Path(shutil.copy(made / "mine.py", tmp_path / "mine.py"))


@pytest.fixture
def image(made: Path) -> Path:
    """The image."""
    return made / "image.tif"


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged."""
    return Path(shutil.copytree(made / "out", tmp_path / "out"))


def applied(mine: Path, image: Path, out: Path, *more: object) -> Path:
    done = command("apply", f"{mine}:smooth", image, "--out", out, *SIZES, *more)
    assert (done.status, done.err) == (0, "")
    return out


def damage(out: Path, row: int, col: int, by: float) -> None:
    """Write another value into one pixel of the finished Zarr, as a disk that forgets would."""
    import zarr

    array = zarr.open_array(str(out / "result.zarr"), path="0/o", mode="r+")
    array[row, col] = array[row, col] + by


@pytest.mark.parametrize(
    "more",
    [("--stitch", "cut"), ("--stitch", "blend"), ("--only", "cog"), ("--only", "zarr")],
    ids=lambda m: m[1],
)
def test_every_shard_of_a_run_is_as_computed(
    mine: Path, image: Path, tmp_path: Path, more: tuple[str, str]
) -> None:
    out = applied(mine, image, tmp_path / "out", *more)
    found = tilewright.verify(out, sample=None)
    assert (found.equal, found.exit_code, found.recomputed) == (True, 0, True)
    assert len(found.checks) == found.shards == found.durable
    for check in found.checks:
        assert check.ledger == check.recomputed == check.stored
    assert (found.digest is None) == (more[1] == "cog")
    shown = command("verify", out, "--all")
    assert shown.status == 0, shown
    assert f"{found.shards} equal" in shown.out


def test_a_sample_is_random_and_can_be_repeated(out: Path) -> None:
    first = json.loads(command("verify", out, "--sample", 3, "--json").out)
    assert len(first["checks"]) == 3
    again = json.loads(command("verify", out, "--sample", 3, "--seed", first["seed"], "--json").out)
    assert [c["shard"] for c in again["checks"]] == [c["shard"] for c in first["checks"]]
    seeds = [[c.shard for c in tilewright.verify(out, sample=3, seed=s).checks] for s in (1, 2, 3)]
    assert len({tuple(names) for names in seeds}) > 1


def test_a_damaged_pixel_is_found_and_named(out: Path) -> None:
    damage(out, 50, 10, 0.25)
    found = tilewright.verify(out, sample=None)
    (bad,) = found.mismatches
    assert (found.exit_code, bad.shard, bad.odd) == (1, "1.0", ("stored",))
    (one,) = bad.outputs
    assert (one.output, one.stored_in, one.pixels) == ("o", "zarr", 1)
    assert one.largest == pytest.approx(0.25, abs=1e-6)
    assert found.digest is not None
    assert found.digest[0] != found.digest[1]
    shown = command("verify", out, "--all")
    assert shown.status == 1
    assert "stored differs from the others; 1 pixels of o in the zarr differ by at most 0.25" in shown.out


def test_a_broken_file_and_a_lost_one(out: Path) -> None:
    chunk = out / "result.zarr" / "0" / "o" / "c" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[40:60] = bytes(20)
    chunk.write_bytes(data)
    (out / "result.zarr" / "0" / "o" / "c" / "1" / "1").unlink()  # Zarr reads nodata where a chunk is missing
    found = {check.shard: check for check in tilewright.verify(out, sample=None).mismatches}
    assert found.keys() == {"0.0", "1.1"}
    assert found["0.0"].problem is not None or found["0.0"].odd == ("stored",)
    assert found["1.1"].odd == ("stored",)
    (lost,) = found["1.1"].outputs
    assert lost.largest is None or lost.largest == 0


@pytest.mark.parametrize(("kept", "odd"), [("both", "cog"), ("cog", "stored")])
def test_a_cog_that_was_changed(
    out: Path, mine: Path, image: Path, tmp_path: Path, kept: str, odd: str
) -> None:
    if kept == "cog":
        out = applied(mine, image, tmp_path / "alone", "--only", "cog")
    with rasterio.open(out / "o.tif") as dataset:
        values, profile = dataset.read(), dataset.profile
    values[0, 3, 4] += 0.5
    with rasterio.open(out / "o.tif", "w", **profile) as dataset:
        dataset.write(values)
    (bad,) = tilewright.verify(out, sample=None).mismatches
    assert (bad.shard, bad.odd) == ("0.0", (odd,))
    assert [(o.output, o.stored_in, o.pixels) for o in bad.outputs] == [("o", "cog", 1)]


def test_a_ledger_that_says_something_else(out: Path) -> None:
    ledger = out / "ledger.jsonl"
    digest = Ledger.read(out).entries["0.1"]["digest"]
    ledger.write_text(ledger.read_text().replace(digest, "0" * 64))
    (bad,) = tilewright.verify(out, sample=None).mismatches
    assert (bad.shard, bad.odd, bad.outputs) == ("0.1", ("ledger",), ())


def test_a_kernel_that_is_not_reproducible(mine: Path, image: Path, tmp_path: Path) -> None:
    mine.write_text(mine.read_text().replace("mean = ", "mean = 0.01 * torch.rand(()) + "))
    out = applied(mine, image, tmp_path / "out")
    found = tilewright.verify(out, sample=2, seed=0)
    assert found.exit_code == 1
    assert {check.odd for check in found.checks} == {("recomputed",)}
    assert all(
        0 < one.largest < 0.011 for check in found.checks for one in check.outputs if one.output == "o"
    )


def test_what_has_changed_is_said_and_nothing_computed_unless_anyway(
    mine: Path, image: Path, tmp_path: Path
) -> None:
    image = Path(shutil.copy(image, tmp_path / "image.tif"))
    out = applied(mine, image, tmp_path / "out")
    mine.write_text(mine.read_text().replace("9, 1, 4", "7, 1, 3"))
    shown = command("verify", out)
    assert shown.status == 2
    assert "read back" in shown.out
    assert "kernel.digest" in shown.out
    assert "--anyway" in shown.out
    anyway = command("verify", out, "--anyway")
    assert anyway.status == 1
    assert "recomputed differs from the others" in anyway.out
    damage(out, 50, 10, 0.25)
    assert command("verify", out, "--all").status == 1  # bit rot is found without computing anything
    mine.write_text(mine.read_text().replace("7, 1, 3", "9, 1, 4"))
    image.rename(tmp_path / "moved.tif")
    gone = tilewright.verify(out)
    assert not gone.recomputed
    assert gone.problem is not None
    assert "image.tif" in gone.problem


def test_an_interrupted_run(mine: Path, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def stop(status: Status) -> None:
        if status.done == 2:
            raise KeyboardInterrupt

    sizes = {"tile": 32, "shard": 48, "threads": 1, "batch": 2}
    with pytest.raises(KeyboardInterrupt):
        tilewright.apply(f"{mine}:smooth", image, out=out, stitch="blend", progress=stop, **sizes)
    found = tilewright.verify(out, sample=None)
    assert found.equal
    assert found.recomputed
    assert len(found.checks) == found.durable < found.shards
    assert found.digest is None


def test_a_run_of_a_recipe_is_made_again_from_its_snapshot(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", run={"tile": 32, "shard": 32})
    out = tmp_path / "out"
    assert command("run", recipe, "--out", out).status == 0
    recipe.unlink()
    found = json.loads(command("verify", out, "--sample", 2, "--json").out)
    assert (found["equal"], found["recomputed"], found["changed"]) == (True, True, [])


def test_statistics_and_a_kernel_as_an_object(mine: Path, image: Path, tmp_path: Path) -> None:
    twin = write_tif(tmp_path / "twin.tif", np.random.default_rng(6).random((1, 100, 120), dtype="float32"))
    out = tmp_path / "mad"
    assert command("apply", "ir-mad", image, twin, "--out", out, *SIZES).status == 0
    assert tilewright.verify(out, sample=2).exit_code == 0
    tilewright.apply(load_kernel(f"{mine}:twice"), image, out=tmp_path / "object", tile=32, shard=48)
    unknown = tilewright.verify(tmp_path / "object", sample=2)
    assert unknown.exit_code == 2
    assert "as an object" in str(unknown.problem)
    given = tilewright.verify(tmp_path / "object", sample=2, kernel=load_kernel(f"{mine}:twice"))
    assert given.exit_code == 0


def test_what_cannot_be_verified(out: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "it holds no run" in command("verify", tmp_path / "empty").line
    assert "no such folder" in command("verify", tmp_path / "nowhere").line
    with pytest.raises(InputError, match="sample"):
        tilewright.verify(out, sample=0)
    shutil.rmtree(out / "result.zarr")
    lost = tilewright.verify(out, sample=2)
    assert lost.problem is not None
    assert "result.zarr" in lost.problem
    assert all(check.recomputed == check.ledger for check in lost.checks)
