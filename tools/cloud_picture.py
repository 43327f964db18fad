"""Draw docs/images/csmask.png: labelled pictures, their labels, and what `csmask` makes of them.

``python tools/cloud_picture.py FOLDER``, with the folder of ``sentinel2.npz`` and ``landsat7.npz``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from tilewright import load_kernel
from tilewright.evaluation.answers import map_picture
from tilewright.evaluation.known import LAYOUTS
from tilewright.evaluation.pixels import Pictures, PictureSource
from tilewright.pipeline.job import prepare
from tilewright.pipeline.settings import Settings

OUT = Path(__file__).resolve().parents[1] / "docs" / "images" / "csmask.png"
COLOURS = ("#e8e4d8", "#4477aa", "#332244")
NAMES = {"sentinel2": "Sentinel-2", "landsat7": "Landsat 7"}


def main(folder: Path) -> None:
    """Map both pictures and write the file."""
    kernel = load_kernel("csmask")
    (layout,) = (form for form in LAYOUTS if form.name == "cloud-chips")
    classes = layout.labels[0].values
    assert classes is not None
    bands = kernel.spec.inputs["image"].bands
    assert isinstance(bands, tuple)
    figure, axes = plt.subplots(2, 3, figsize=(7.2, 5.3), dpi=90)
    for row, (name, title) in zip(axes, NAMES.items(), strict=True):
        content = np.load(folder / f"{name}.npz")
        image = np.moveaxis(content["img"], -1, 0)
        label = np.array([classes[i] for i in range(5)])[content["msk"][..., 0]]
        pictures = Pictures(image[None], np.zeros((1, 1, *image.shape[1:]), bool), bands, "reflectance")
        found = map_picture(prepare(kernel, PictureSource(pictures), Settings()))["mask"][0]
        shown = np.clip(np.moveaxis(image[[2, 1, 0]], 0, -1) / 0.45, 0, 1) ** 0.8
        row[0].imshow(shown[::2, ::2])
        for axis, plane in zip(row[1:], (label, found), strict=True):
            axis.imshow(
                plane[::2, ::2], cmap=ListedColormap(COLOURS), vmin=0, vmax=2, interpolation="nearest"
            )
        right = f"csmask, {(found == label).mean():.1%} as the label"
        for axis, text in zip(row, (title, "label", right), strict=True):
            axis.set_title(text, fontsize=8, loc="left", pad=3)
            axis.set_axis_off()
    patches = [
        Patch(facecolor=colour, edgecolor="#888888", label=name)
        for colour, name in zip(COLOURS, layout.classes or (), strict=True)
    ]
    figure.legend(handles=patches, loc="lower left", ncols=3, fontsize=8, frameon=False)
    figure.subplots_adjust(0.01, 0.06, 0.99, 0.96, 0.03, 0.09)
    figure.savefig(OUT)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
