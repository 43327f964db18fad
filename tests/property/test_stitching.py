"""How a grid is cut: for any sizes every pixel has one tile, one shard, and every tile one owner (pains 4, 15)."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tilewright.errors import GridError
from tilewright.kernels.contract import KernelSpec
from tilewright.pipeline.grid import COG_BLOCK, Tiling, Window
from tilewright.pipeline.settings import Settings, choose_tiling
from tilewright.pipeline.stitch import TAPER_SUM, mirror, needed, ramp, take

quick = settings(
    max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.filter_too_much]
)

PRIMES = (2, 3, 5, 7, 13, 31, 61, 127)


@st.composite
def tilings(draw: st.DrawFn, *, blend: bool | None = None) -> Tiling:
    """Any tiling that validates: halo = core - 1, stride 1 to 8, tapers up to half a core."""
    stride = draw(st.sampled_from([1, 2, 3, 8]))
    core = stride * draw(st.integers(1, 8))
    taper = 0
    if blend or (blend is None and draw(st.booleans())):
        taper = draw(st.integers(1 if blend and core > 1 else 0, core // 2))
    lead = stride * draw(st.integers(0, max(1, (core - 1) // stride)))
    halo = lead + taper
    return Tiling(core + 2 * halo, halo, taper, stride, core * draw(st.integers(1, 4)))


@st.composite
def shapes(draw: st.DrawFn, tiling: Tiling) -> tuple[int, int]:
    """Prime, one pixel, core -1, core, core +1, shard +-1, and anything between."""
    sides = st.one_of(
        st.sampled_from([1, *PRIMES]),
        st.sampled_from(
            [max(1, n + d) for n in (tiling.core, tiling.shard, tiling.tile) for d in (-1, 0, 1)]
        ),
        st.integers(1, 3 * tiling.shard),
    )
    return draw(sides), draw(sides)


@st.composite
def cut_grids(draw: st.DrawFn, *, blend: bool | None = None) -> tuple[Tiling, tuple[int, int]]:
    """A tiling and a shape that brackets its edges."""
    tiling = draw(tilings(blend=blend))
    return tiling, draw(shapes(tiling))


@quick
@given(cut_grids())
def test_every_pixel_is_in_exactly_one_shard(case: tuple[Tiling, tuple[int, int]]) -> None:
    tiling, shape = case
    owners = np.zeros(shape, dtype=int)
    for shard in tiling.shards(shape):
        owners[shard.window.slices(Window(0, shape[0], 0, shape[1]))] += 1
    assert (owners == 1).all()


@quick
@given(cut_grids(blend=False))
def test_when_cutting_every_pixel_is_given_by_one_tile_of_its_own_shard(
    case: tuple[Tiling, tuple[int, int]],
) -> None:
    tiling, shape = case
    whole = Window(0, shape[0], 0, shape[1])
    givers = np.zeros(shape, dtype=int)
    for shard in tiling.shards(shape):
        for tile in tiling.tiles(shard, shape):
            assert shard.window.contains(tile.gives)
            givers[tile.gives.slices(whole)] += 1
    assert (givers == 1).all()


@quick
@given(cut_grids())
def test_every_tile_has_one_owner_and_the_lattice_does_not_know_the_shard(
    case: tuple[Tiling, tuple[int, int]],
) -> None:
    tiling, shape = case
    tiles = [t for shard in tiling.shards(shape) for t in tiling.tiles(shard, shape)]
    assert len({t.index for t in tiles}) == len(tiles) == tiling.count(shape[0]) * tiling.count(shape[1])
    other = Tiling(tiling.tile, tiling.halo, tiling.taper, tiling.stride, 5 * tiling.core)
    again = {t for shard in other.shards(shape) for t in other.tiles(shard, shape)}
    assert again == set(tiles)


@quick
@given(cut_grids())
def test_read_windows_start_at_the_stride_and_hold_the_halo(case: tuple[Tiling, tuple[int, int]]) -> None:
    tiling, shape = case
    for shard in tiling.shards(shape):
        for tile in tiling.tiles(shard, shape):
            assert tile.read.row0 % tiling.stride == tile.read.col0 % tiling.stride == 0
            assert tile.read.shape == (tiling.tile, tiling.tile)
            assert tile.read.contains(tile.gives.grow(tiling.lead))


@quick
@given(cut_grids(blend=True))
def test_what_blended_tiles_give_covers_the_grid_with_constant_weight(
    case: tuple[Tiling, tuple[int, int]],
) -> None:
    tiling, shape = case
    whole = Window(0, shape[0], 0, shape[1])
    weight = np.zeros(shape, dtype=np.int64)
    for shard in tiling.shards(shape):
        for tile in tiling.tiles(shard, shape):
            rows, cols = (
                ramp(tile.index[a], tiling.count(shape[a]), tile.gives.shape[a], tiling.core, tiling.overlap)
                for a in (0, 1)
            )
            assert min(rows.min(), cols.min()) >= 1
            weight[tile.gives.slices(whole)] += rows[:, None] * cols[None, :]
            # It reaches no farther than the next shard below and to the right: margins travel one step.
            reach = Window(*(int(v) for v in _reach(tiling, shard.index)))
            assert reach.contains(tile.gives)
    assert (weight == TAPER_SUM**2).all()


def _reach(tiling: Tiling, index: tuple[int, int]) -> tuple[int, int, int, int]:
    i, j = index
    return i * tiling.shard, (i + 2) * tiling.shard, j * tiling.shard, (j + 2) * tiling.shard


@quick
@given(st.integers(1, 20), st.integers(-90, 90), st.integers(1, 40))
def test_mirror_is_numpy_pad_reflect_at_any_distance(length: int, start: int, count: int) -> None:
    index = np.arange(start, start + count)
    before, after = max(0, -start), max(0, start + count - length)
    padded = np.pad(np.arange(length), (before, after), mode="reflect")
    assert (mirror(index, length) == padded[index + before]).all()


@quick
@given(
    st.tuples(st.integers(1, 25), st.integers(1, 25)), st.tuples(st.integers(-30, 30), st.integers(-30, 30))
)
def test_take_needs_no_more_than_needed_says(shape: tuple[int, int], corner: tuple[int, int]) -> None:
    array = np.arange(shape[0] * shape[1]).reshape(1, *shape)
    read = Window(corner[0], corner[0] + 17, corner[1], corner[1] + 9)
    covers = needed(read, shape)
    part = array[:, *covers.slices(Window(0, shape[0], 0, shape[1]))]
    padded = np.pad(array[0], 60, mode="reflect")
    expected = padded[read.row0 + 60 : read.row1 + 60, read.col0 + 60 : read.col1 + 60]
    assert (take(part, covers, read, shape)[0] == expected).all()


@quick
@given(
    tile=st.integers(1, 300),
    radius=st.integers(0, 90),
    stride=st.sampled_from([1, 2, 8, 14]),
    taper=st.integers(0, 20),
    shard=st.integers(1, 900),
)
def test_choose_rounds_as_it_says_or_refuses_in_one_line(
    tile: int, radius: int, stride: int, taper: int, shard: int
) -> None:
    try:
        chosen = Tiling.choose(tile=tile, radius=radius, stride=stride, taper=taper, shard=shard)
    except GridError as error:
        message = str(error)
        assert message.count("\n") == 0
        return
    assert chosen.tile <= tile
    assert chosen.lead >= radius
    assert chosen.lead % stride == chosen.core % stride == 0
    assert chosen.shard >= shard
    assert chosen.shard % COG_BLOCK == chosen.shard % chosen.core == 0
    assert chosen.shard - shard < np.lcm(chosen.core, COG_BLOCK)


@quick
@given(
    radius=st.one_of(st.none(), st.integers(0, 600)),
    stride=st.sampled_from([1, 2, 8, 14, 16]),
    stitch=st.sampled_from([None, "cut", "blend"]),
    shape=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    nbytes=st.integers(1, 4000),
)
def test_defaults_always_find_a_tiling(
    radius: int | None, stride: int, stitch: str | None, shape: tuple[int, int], nbytes: int
) -> None:
    spec = KernelSpec.parse(
        {"inputs": {"x": {}}, "outputs": {"y": {"kind": "score"}}, "radius": radius, "stride": stride}, "spec"
    )
    tiling = choose_tiling(spec, Settings(stitch=stitch), shape, nbytes)
    assert tiling.lead >= (radius or 0)
    assert (tiling.taper > 0) == (stitch == "blend" or (stitch is None and radius is None))


@quick
@given(
    stride=st.sampled_from([1, 2, 6, 8, 14]),
    multiple=st.sampled_from([1, 7, 14, 16, 32]),
    maximum=st.one_of(st.none(), st.integers(200, 900)),
    radius=st.one_of(st.none(), st.integers(0, 40)),
    tile=st.one_of(st.none(), st.integers(1, 30)),
)
def test_the_kernel_is_only_given_sides_that_it_takes(
    stride: int, multiple: int, maximum: int | None, radius: int | None, tile: int | None
) -> None:
    rule = {"multiple": multiple, "maximum": maximum}
    spec = KernelSpec.parse(
        {
            "inputs": {"x": {}},
            "outputs": {"y": {"kind": "score"}},
            "radius": radius,
            "stride": stride,
            "tile": rule,
        },
        "spec",
    )
    try:
        tiling = choose_tiling(spec, Settings(tile=tile and tile * multiple), (3000, 3000), 8)
    except GridError:
        return
    assert tiling.tile % multiple == 0
    assert maximum is None or tiling.tile <= maximum
