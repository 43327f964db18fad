"""tilewright turns satellite archives into maps.

STAC queries become lazy cubes, torch kernels are mapped over them chunk by chunk and stitched without seams,
and the results are COG and Zarr with a STAC Item. Names are imported when they are first used, so that
``import tilewright`` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tilewright.errors import TilewrightError

if TYPE_CHECKING:
    from tilewright.api import apply, map_pixels, map_tiles
    from tilewright.asking import ask
    from tilewright.catalogs.region import Region
    from tilewright.catalogs.search import search
    from tilewright.evaluation.embedders import evaluate_embedder
    from tilewright.evaluation.evaluate import evaluate
    from tilewright.flows.recipe import Recipe
    from tilewright.flows.runs import run
    from tilewright.kernels.contract import Kernel, KernelSpec
    from tilewright.kernels.embed.contract import load_embedder
    from tilewright.kernels.load import list_kernels, load_kernel
    from tilewright.kernels.user import kernel
    from tilewright.pipeline.areas import class_areas
    from tilewright.pipeline.compare import diff
    from tilewright.pipeline.cube import open_cube
    from tilewright.pipeline.grid import Grid
    from tilewright.pipeline.settings import Settings
    from tilewright.pipeline.vectorise import find_objects
    from tilewright.searching import index_images, search_index
    from tilewright.verification import verify

__version__ = "0.1.0"

__all__ = [
    "Grid",
    "Kernel",
    "KernelSpec",
    "Recipe",
    "Region",
    "Settings",
    "TilewrightError",
    "__version__",
    "apply",
    "ask",
    "class_areas",
    "diff",
    "evaluate",
    "evaluate_embedder",
    "find_objects",
    "index_images",
    "kernel",
    "list_kernels",
    "load_embedder",
    "load_kernel",
    "map_pixels",
    "map_tiles",
    "open_cube",
    "run",
    "search",
    "search_index",
    "verify",
]

_HOMES = {
    "Grid": "tilewright.pipeline.grid",
    "Kernel": "tilewright.kernels.contract",
    "KernelSpec": "tilewright.kernels.contract",
    "Recipe": "tilewright.flows.recipe",
    "Region": "tilewright.catalogs.region",
    "Settings": "tilewright.pipeline.settings",
    "apply": "tilewright.api",
    "ask": "tilewright.asking",
    "class_areas": "tilewright.pipeline.areas",
    "diff": "tilewright.pipeline.compare",
    "evaluate": "tilewright.evaluation.evaluate",
    "evaluate_embedder": "tilewright.evaluation.embedders",
    "find_objects": "tilewright.pipeline.vectorise",
    "index_images": "tilewright.searching",
    "kernel": "tilewright.kernels.user",
    "list_kernels": "tilewright.kernels.load",
    "load_embedder": "tilewright.kernels.embed.contract",
    "load_kernel": "tilewright.kernels.load",
    "map_pixels": "tilewright.api",
    "map_tiles": "tilewright.api",
    "open_cube": "tilewright.pipeline.cube",
    "run": "tilewright.flows.runs",
    "search": "tilewright.catalogs.search",
    "search_index": "tilewright.searching",
    "verify": "tilewright.verification",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tilewright' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
