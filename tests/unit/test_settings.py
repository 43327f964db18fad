"""Settings and the tiling that follows from them: what is chosen, and what is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import ArraySource
from running import image, job_of, make_kernel

from tilewright.errors import InputError, TilewrightError
from tilewright.kernels.contract import KernelSpec
from tilewright.pipeline.grid import Tiling
from tilewright.pipeline.intraop import usable_cores
from tilewright.pipeline.settings import Settings, choose_tiling, parse_size, resolve_device

BIG = (20_000, 20_000)


def spec(**keys: Any) -> KernelSpec:
    return KernelSpec.parse(
        {"inputs": {"x": {}}, "outputs": {"y": {"kind": "score"}}, "radius": 16, **keys}, "spec"
    )


def tiling(shape: tuple[int, int] = BIG, bytes_per_pixel: int = 8, keys: Any = None, **wishes: Any) -> Tiling:
    return choose_tiling(spec(**(keys or {})), Settings(**wishes), shape, bytes_per_pixel)


def test_the_default_tile_follows_the_radius() -> None:
    assert (tiling().tile, tiling().halo, tiling().core) == (512, 16, 480)
    assert (tiling(keys={"radius": 100}).tile, tiling(keys={"radius": 100}).core) == (792, 592)
    assert tiling(keys={"radius": 200}).tile == 1024
    assert tiling(keys={"radius": 5}).shard == 2480, "the core is a multiple of 16, or the shard were 4,016"
    assert tiling(keys={"tile": {"default": 256}}).tile == 256
    assert tiling(keys={"tile": 224, "radius": None}).tile == 224


def test_the_halo_is_the_radius_rounded_up_to_the_stride() -> None:
    chosen = tiling(keys={"radius": 29, "stride": 8})
    assert (chosen.halo, chosen.core % 8, chosen.taper) == (32, 0, 0)


def test_a_small_raster_does_not_pay_for_a_large_tile() -> None:
    assert tiling((100, 70)).tile == 144
    assert tiling((1, 1)).tile == 48


def test_global_context_is_blended_and_a_radius_is_cut() -> None:
    blended = tiling(keys={"radius": None})
    assert (blended.tile, blended.taper, blended.lead) == (512, 32, 32)
    assert tiling(stitch="blend").taper == 32
    assert tiling(keys={"radius": None}, stitch="cut").taper == 0
    near = tiling(keys={"radius": None, "radius_at": {"eps": 0.01, "px": 40}})
    assert (near.taper, near.halo) == (0, 40)


def test_the_shard_is_a_multiple_of_core_and_16_and_bounded_by_what_is_read() -> None:
    assert tiling(shard=1000).shard == 1440
    assert tiling().shard == 2400
    heavy = tiling(bytes_per_pixel=4096)
    assert heavy.shard == 480
    assert heavy.shard**2 * 4096 < 4 * (256 << 20)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"tile": 0}, "--tile: tile is 0"),
        ({"shard": -1}, "--shard: shard is -1"),
        ({"batch": 0}, "--batch"),
        ({"threads": 0}, "--threads"),
        ({"memory": 0}, "--memory"),
        ({"stitch": "glue"}, "unknown stitch 'glue'; known: cut, blend"),
        ({"precision": "fp64"}, "known: fp32, bf16, fp16"),
        ({"boundary": "wrap"}, "known: reflect, fill"),
        ({"on_error": "ignore"}, "known: raise, reason"),
        ({"tile": 32}, "leaves no core in a tile of 32 px; use a tile of at least 33 px"),
        ({"tile": 24, "stitch": "blend"}, "leaves no core"),
        ({"device": "tpu"}, "--device"),
        ({"device": "cuda:99"}, "--device"),
    ],
)
def test_a_bad_wish_is_one_line(wishes: dict[str, Any], message: str) -> None:
    kernel = make_kernel(lambda x: x, radius=16, outputs={"out": {"kind": "score"}})
    with pytest.raises(TilewrightError) as caught:
        job_of(kernel, ArraySource(image(50, 50)), **wishes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("rule", "tile"), [(224, 256), ({"multiple": 14}, 512), ({"multiple": 32, "maximum": 256}, 512)]
)
def test_a_tile_that_the_kernel_does_not_take_is_refused(rule: Any, tile: int) -> None:
    with pytest.raises(TilewrightError, match="does not suit kernel"):
        tiling(keys={"tile": rule}, tile=tile)


def test_precision_where_the_kernel_forbids_it() -> None:
    kernel = make_kernel(lambda x: x, autocast=False)
    with pytest.raises(InputError, match="does not allow bf16"):
        job_of(kernel, ArraySource(image(50, 50)), precision="bf16")


def test_what_is_resolved_depends_on_nothing_but_kernel_tile_and_machine() -> None:
    def resolved(tile: int, shape: tuple[int, int] = BIG, keys: Any = None, **wishes: Any) -> Settings:
        cut = Tiling.choose(tile=tile, radius=16)
        return Settings(device="cpu", **wishes).resolve(spec(**(keys or {})), cut, shape)

    found = resolved(512)
    assert (found.stitch, found.boundary, found.threads) == ("cut", "reflect", 1)
    assert resolved(512, keys={"concurrent": False}).threads == usable_cores()
    assert resolved(512, keys={"boundary": "fill"}).boundary == "fill"
    assert (resolved(512).batch, resolved(256).batch) == (1, 4)
    assert resolved(4096).batch == 1
    assert resolved(4096, batch=7).batch == 7
    assert resolved(64, (50, 60)).batch == 4  # no filler where the grid holds fewer tiles


def test_a_rounded_wish_is_said() -> None:
    kernel = make_kernel(lambda x: x, radius=3, stride=8)
    job = job_of(kernel, ArraySource(image(50, 50)), tile=70, shard=50)
    assert len(job.notes) == 2
    assert "tile 70 px became 64 px" in job.notes[0]
    assert "shard 50 px became 96 px" in job.notes[1]


@pytest.mark.parametrize(
    ("text", "size"), [("8GiB", 8 << 30), ("512 MB", 512_000_000), ("1.5k", 1500), (7, 7), ("64", 64)]
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "8 parsec", "-", "1e", "eight", "inf", "nan", "-3GB"])
def test_no_size(text: str) -> None:
    with pytest.raises(InputError, match="--memory"):
        Settings(memory=parse_size(text))


def test_the_cpu_is_always_there() -> None:
    assert resolve_device("cpu") == "cpu"
