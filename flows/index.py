"""From a recipe to the parts of an index: one for each date of its cube, with the Items it was made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.errors import InputError

from .runs import RegionLike, cube_of, seek, write_items

if TYPE_CHECKING:
    from tilewright.kernels.contract import Kernel
    from tilewright.pipeline.cube_source import CubeSource
    from tilewright.pipeline.index import Part

    from .recipe import Recipe

__all__ = ["recipe_cube", "recipe_parts"]


def recipe_cube(
    recipe: Recipe | str | Path | Mapping[str, Any],
    *,
    region: RegionLike = None,
    bands: Sequence[str] | None = None,
    say: Callable[[str], Any] | None = None,
) -> CubeSource:
    """Search a recipe's catalog, and return its cube with all its dates.

    Raises
    ------
    InputError
        The region needs several grids.
    CatalogError
        Nothing was found.
    """
    sought = seek(recipe, region=region, bands=bands, say=say)
    if len(sought.grids) > 1:
        raise InputError(
            f"the region needs {len(sought.grids)} grids ({', '.join(grid.crs for grid in sought.grids)})",
            place=f"recipe {sought.recipe.name}",
            remedy="name one of them as the recipe's grid.crs, or a smaller region",
        )
    return cube_of(sought, sought.grids[0])[0]


def recipe_parts(
    recipe: Recipe | str | Path | Mapping[str, Any],
    *,
    region: RegionLike = None,
    weights: str | None = None,
    bands: Sequence[str] | None = None,
    say: Callable[[str], Any] | None = None,
) -> tuple[list[Part], Kernel, dict[str, Any]]:
    """Search a recipe's catalog, and return the parts of an index, its kernel, and what loads its embedder again.

    The recipe's kernel must be an embedding one. A part's pixels depend on the Items of its date alone, so an archive
    that has grown is indexed by the same call again, and only what is new is computed.

    Raises
    ------
    InputError
        The kernel gives no vector.
    CatalogError
        Nothing was found.
    """
    from tilewright.api import asked_kernel
    from tilewright.pipeline.index import Part

    sought = seek(recipe, region=region, weights=weights, bands=bands, say=say)
    chosen, kernel = sought.recipe, sought.kernel
    if [spec.kind for spec in kernel.spec.outputs.values()] != ["vector"]:
        raise InputError(
            f"kernel {kernel.spec.name} gives no vector",
            place=f"recipe {chosen.name}",
            remedy="name an embedding kernel, such as eurosat",
        )
    items = [item for result in sought.found for item in result.items]
    parts = []
    for grid in sought.grids:
        cube, _ = cube_of(sought, grid)
        for number, dates in enumerate(cube.periods):
            first = dates[0].items[0]
            cloud = dates[0].cloud_cover
            used = {(plan.collection, plan.item_id) for date in dates for plan in date.items}
            parts.append(
                Part(
                    first.item_id,
                    cube.at_period(number),
                    date=first.time,
                    cloud=cloud if cloud <= 100 else None,  # infinite where an Item does not say
                    opens={"kind": "run"},
                    extra={"region": None if grid.region is None else grid.region.wkt},
                    begin=partial(
                        write_items,
                        items=[item for item in items if (item.collection_id, item.id) in used],
                        searched=sought.found[0].searched,
                    ),
                )
            )
    asked = asked_kernel(chosen.kernel.name, weights or chosen.kernel.weights, chosen.kernel.options)
    return parts, kernel, asked
