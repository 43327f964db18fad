"""Numbers of the official implementations: names and shapes of their parameters, and what they gave for known inputs.

A folder of ``parity/official`` holds ``keys.json`` (name -> [shape, dtype]), ``meta.json`` (how the tensors are
filled) and ``case_public.npz`` (the official outputs). Weights and inputs follow from names, shapes and seeds alone:
a stream of PCG64 for each tensor, seeded by the CRC-32 of its name.
"""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent / "parity" / "official"


def stream(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def filled(name: str, shape: tuple[int, ...], rule: Any, gain: float) -> np.ndarray:
    """Return the values of one tensor by its rule, or by the default one of its name and shape."""
    draw = stream(zlib.crc32(name.encode()))
    if rule is not None and rule[0] == "gain":
        rule, gain = None, rule[1]
    if rule is None:
        if name.endswith("running_var"):
            values = 0.5 + draw.random(shape)
        elif len(shape) >= 2:
            values = draw.standard_normal(shape) * (gain / np.sqrt(max(1, np.prod(shape[1:]))))
        else:
            values = float(name.endswith("weight")) + 0.1 * draw.standard_normal(shape)
    elif rule in ("zeros", "ones"):
        values = np.full(shape, float(rule == "ones"))
    elif rule[0] == "const":
        values = np.full(shape, rule[1])
    elif rule[0] == "normal":
        values = rule[1] + rule[2] * draw.standard_normal(shape)
    else:
        assert rule[0] == "uniform", rule
        values = rule[1] + (rule[2] - rule[1]) * draw.random(shape)
    return np.asarray(values, np.float32)


@dataclass(frozen=True)
class Official:
    """The numbers of one system."""

    name: str

    @property
    def folder(self) -> Path:
        return ROOT / self.name

    @property
    def kernel(self) -> str:
        return self.name.replace("_", "-")

    @cached_property
    def keys(self) -> dict[str, tuple[tuple[int, ...], str]]:
        found = json.loads((self.folder / "keys.json").read_text())
        return {name: (tuple(shape), dtype) for name, (shape, dtype) in found.items()}

    @cached_property
    def meta(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "meta.json").read_text())
        return found

    @property
    def seconds(self) -> float:
        return float(self.meta["cases"]["public"].get("seconds_fp32", 0))

    def weights(self) -> dict[str, np.ndarray]:
        """Return the tensors that the rule fills; others stay as the network builds them."""
        made = {}
        for key, (shape, dtype) in self.keys.items():
            source = self.meta["aliases"].get(key, key)
            rules = self.meta["overrides"].items()
            rule = next((rule for pattern, rule in rules if re.search(pattern, source)), None)
            if dtype.startswith(("float", "bfloat")) and rule != "as_built":
                made[key] = filled(source, shape, rule, self.meta["gain"])
        return made

    def inputs(self) -> list[np.ndarray]:
        """Return the inputs of the public case, in the order of the official forward."""
        case = self.meta["cases"]["public"]
        draw = stream(case["seed"])
        shapes = [tuple(shape) for shape in case["input_shapes"]]
        if self.name.startswith("mapformer"):  # the third one is a map of classes 0 to 6, in squares of 16 px
            count, rows, cols = shapes[2]
            shapes[2] = (count, rows // 16, cols // 16)
        made = [draw.standard_normal(shape).astype(np.float32) for shape in shapes]
        if self.name.startswith("mapformer"):
            classes = np.clip(np.floor((made[2] + 1.5) * 7 / 3), 0, 6).astype(np.int64)
            made[2] = classes.repeat(16, 1).repeat(16, 2)
        return made

    def check(self, outputs: list[np.ndarray]) -> None:
        """Compare raw outputs, in the official order: shape, and values within 1e-4 of their range."""
        content = np.load(self.folder / "case_public.npz")
        facts = json.loads(str(content["meta"]))["outputs"]
        assert len(outputs) == len(facts)
        for (name, fact), got in zip(facts.items(), outputs, strict=True):
            assert list(got.shape) == fact["shape"], name
            step = fact["stride"]
            part = got[..., ::step, ::step] if got.ndim >= 3 else got
            expected = content[f"out_{name}"].astype(np.float64)
            gap = fact["fp32_vs_fp64_maxabs"]
            tolerance = max(1e-4 * (fact["max"] - fact["min"]), 50 * gap if isinstance(gap, float) else 1e-3)
            worst = float(np.abs(part - expected).max())
            assert worst <= tolerance, f"{name}: {worst:.2g}, allowed {tolerance:.2g}"
            assert np.ptp(expected) > 10 * tolerance, f"{name} is nearly constant: nothing is proved"


def systems() -> list[Official]:
    """Return all systems of which there are numbers."""
    return [Official(path.parent.name) for path in sorted(ROOT.glob("*/case_public.npz"))]
