"""Build the recorded Items under ``tests/data/stac`` from the source distribution of odc-stac.

Nobody needs this to use or test tilewright: the result is committed. Fetch and unpack the source first::

    pip download --no-deps --no-binary odc-stac odc-stac==0.5.3
    tar xzf odc_stac-0.5.3.tar.gz
    python tools/make_stac_items.py odc_stac-0.5.3

Assets without pixels are left out, and fields of assets that no test needs; what is left is as recorded.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

ITEMS = {
    "cdse-sentinel-2-l2a": "S2C_MSIL2A_20250330T100051_N0511_R122_T33UWP_20250330T145914_cdse_stac_v110",
    "landsatlook-oli-sr": "LC08_L2SP_028030_20200114_20200824_02_T1_SR",
    "landsatlook-etm-sr": "LE07_L2SP_044033_20210329_20210424_02_T1_SR",
}
"""File here, and in ``tests/data`` of odc-stac."""

FIELDS = {
    "title",
    "href",
    "type",
    "roles",
    "gsd",
    "bands",
    "eo:bands",
    "nodata",
    "data_type",
    "raster:scale",
    "raster:offset",
    "proj:code",
    "proj:shape",
    "proj:transform",
    "alternate",
    "auth:refs",
    "storage:refs",
}
"""Fields of assets that are kept."""

PIXELS = ("image/jp2", "image/vnd.stac.geotiff")
"""Media types of assets that are kept."""


def reduced(item: dict[str, Any]) -> dict[str, Any]:
    """Return an Item with its pixels' assets alone, and of their alternates only the one on S3."""
    assets = {}
    for key, asset in item["assets"].items():
        if str(asset.get("type", "")).startswith(PIXELS):
            kept = {name: value for name, value in asset.items() if name in FIELDS}
            alternates = {name: value for name, value in kept.pop("alternate", {}).items() if name == "s3"}
            assets[key] = kept | ({"alternate": alternates} if alternates else {})
    return {**item, "assets": assets}


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder of the unpacked source distribution")
    parser.add_argument("--out", type=Path, default=Path("tests/data/stac"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, recorded in ITEMS.items():
        item = json.loads((arguments.source / "tests" / "data" / f"{recorded}.json").read_text())
        (arguments.out / f"{name}.json").write_text(json.dumps(reduced(item), indent=1) + "\n")
    shutil.copy(arguments.source / "LICENSE", arguments.out / "LICENSE")


if __name__ == "__main__":
    main()
