"""Convert the weights of ESRGAN-slim from TensorFlow.js to safetensors, once.

    npm pack @upscalerjs/esrgan-slim@1.0.0 && tar xzf upscalerjs-esrgan-slim-1.0.0.tgz
    python tools/esrgan_weights.py package --out kernels/sr/weights

``models/xN/model.json`` lists names, shapes and types of the tensors that lie one after another in the shards beside
it. A kernel ``[rows, cols, in, out]`` called ``LAYER/kernel`` becomes ``LAYER.weight`` ``[out, in, rows, cols]``,
``LAYER/bias`` becomes ``LAYER.bias``; no value changes. Two runs give the same bytes. Prints the checksums that
``kernels/sr/esrgan_slim.py`` pins.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save

SCALES = (2, 3, 4)


def read_tfjs(folder: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a TensorFlow.js layers model by their names."""
    tensors: dict[str, np.ndarray] = {}
    for group in json.loads((folder / "model.json").read_text())["weightsManifest"]:
        content = b"".join((folder / name).read_bytes() for name in group["paths"])
        at = 0
        for entry in group["weights"]:
            if entry["dtype"] != "float32" or "quantization" in entry:
                raise SystemExit(f"{folder}: {entry['name']} is no plain float32")
            count = math.prod(entry["shape"])
            values = np.frombuffer(content, "<f4", count, at)
            tensors[entry["name"]] = values.reshape(entry["shape"])
            at += values.nbytes
        if at != len(content):
            raise SystemExit(f"{folder}: {len(content) - at} bytes are left over")
    return tensors


def as_torch(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors with the names and the layout of torch."""
    made = {}
    for name, values in tensors.items():
        layer, _, part = name.partition("/")
        if part == "kernel":
            made[f"{layer}.weight"] = np.ascontiguousarray(values.transpose(3, 2, 0, 1))
        else:
            made[f"{layer}.{part}"] = values.copy()
    return made


def main() -> None:
    """Convert all scales of an unpacked package."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", type=Path, help="the unpacked npm package")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    for scale in SCALES:
        path = arguments.out / f"esrgan-slim-x{scale}.safetensors"
        path.write_bytes(save(as_torch(read_tfjs(arguments.package / "models" / f"x{scale}"))))
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")
    shutil.copyfile(arguments.package / "LICENSE", arguments.out / "LICENSE")


if __name__ == "__main__":
    main()
