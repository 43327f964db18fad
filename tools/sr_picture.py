"""Draw docs/images/esrgan-slim.png: Landsat 8 of data/, enlarged four times in three ways; print how they compare.

    python tools/sr_picture.py [--out docs/images/esrgan-slim.png]

The picture shows a part of the scene with its pixels repeated, by `bicubic`, and by `esrgan-slim`, all in the same
stretch. The numbers are those of scenes made coarser first (means of 2, 3, 4 squared pixels) and brought back: PSNR and
mean gradient against the scene itself, in digital numbers over the range that is given to the network.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import rasterio
from affine import Affine

import tilewright

ROOT = Path(__file__).resolve().parents[1]
SCENE = "LC08_L1TP_224078_20200518_20200518_01_RT_B{}.tif"
LOW, HIGH = 5_000.0, 11_000.0
ROW, COL, SIDE = 352, 428, 64
STRETCH = ((5_800, 9_600), (6_300, 9_400), (7_300, 9_600))
"""Black and white of red, green and blue in the picture."""
OPTIONS = {
    "bicubic": {"bands": "red,green,blue", "a": -0.5},
    "esrgan-slim": {"low": LOW, "high": HIGH},
}


def enlarged(kernel: str, path: Path, scale: int, folder: Path) -> np.ndarray:
    """Run a kernel over a raster as the command line does; return its output ``[3, rows, cols]``."""
    out = folder / f"{kernel}-x{scale}-{path.stem}"
    options = {"scale": scale, **OPTIONS[kernel]}
    tilewright.apply(kernel, path, out=out, options=options, only="cog", bands=["red", "green", "blue"])
    with rasterio.open(out / "image.tif") as data:
        return data.read()


def written(scene: np.ndarray, like: rasterio.DatasetReader, step: int, path: Path) -> Path:
    """Write means over ``step`` squared pixels as a raster of three bands."""
    rows, cols = (n // step for n in scene.shape[1:])
    cells = scene[:, : rows * step, : cols * step].reshape(3, rows, step, cols, step)
    profile = {
        "driver": "GTiff",
        "count": 3,
        "height": rows,
        "width": cols,
        "dtype": "float32",
        "crs": like.crs,
    }
    with rasterio.open(path, "w", transform=like.transform * Affine.scale(step), **profile) as data:
        data.write(cells.mean((2, 4)).astype(np.float32))
        data.descriptions = ("red", "green", "blue")
    return path


def gradient(image: np.ndarray) -> float:
    """Mean length of the gradient, for sharpness."""
    return float(np.hypot(*np.gradient(image, axis=(1, 2))).mean())


def shown(image: np.ndarray) -> np.ndarray:
    """Return 0 to 1, ``[rows, cols, 3]``."""
    low, high = (np.array(ends)[:, None, None] for ends in zip(*STRETCH, strict=True))
    return np.clip((image - low) / (high - low), 0, 1).transpose(1, 2, 0)


def compare(scene: np.ndarray, like: rasterio.DatasetReader, folder: Path) -> None:
    """Print PSNR and mean gradient after a way down and up again."""
    for scale in (2, 3, 4):
        coarse = written(scene, like, scale, folder / f"coarse-{scale}.tif")
        for kernel in OPTIONS:
            found = enlarged(kernel, coarse, scale, folder)
            truth = scene[:, : found.shape[1], : found.shape[2]]
            inside = np.s_[:, 8:-8, 8:-8]
            error = np.sqrt(((found - truth)[inside] ** 2).mean())
            sharp = gradient(found[inside]) / gradient(truth[inside])
            print(
                f"x{scale} {kernel:12} PSNR {20 * np.log10((HIGH - LOW) / error):.2f} dB, gradient {sharp:.2f}"
            )


def main() -> None:
    """Draw and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "esrgan-slim.png")
    out = parser.parse_args().out
    files = [ROOT / "data" / "landsat-c1-l1" / "cogs" / SCENE.format(band) for band in (4, 3, 2)]
    with tempfile.TemporaryDirectory() as name, rasterio.open(files[0]) as like:
        folder = Path(name)
        whole = np.stack([rasterio.open(file).read(1) for file in files]).astype(np.float32)
        part = written(whole, like, 1, folder / "scene.tif")
        at = np.s_[:, ROW : ROW + SIDE, COL : COL + SIDE]
        panels = {"input, 30 m pixels": whole[at].repeat(4, 1).repeat(4, 2)}
        fine = np.s_[:, 4 * ROW : 4 * (ROW + SIDE), 4 * COL : 4 * (COL + SIDE)]
        panels |= {f"{kernel} x4": enlarged(kernel, part, 4, folder)[fine] for kernel in OPTIONS}
        compare(whole[:, 150:], like, folder)
    figure, axes = plt.subplots(1, 3, figsize=(13.6, 4.85), dpi=100, layout="constrained")
    for axis, (title, image) in zip(axes, panels.items(), strict=True):
        axis.imshow(shown(image), interpolation="nearest")
        axis.set_title(title, fontsize=11)
        axis.axis("off")
    figure.savefig(out)


if __name__ == "__main__":
    main()
