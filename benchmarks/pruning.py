"""What a question to an image costs by its size, with and without token pruning.

A scene of any size is made while it is asked for (noise on hills, with overviews by two down to 1,024 px), so no disk
and no cache takes part. The model is a LLaVA of random weights in miniature (0.3 M parameters; CLIP tower of 336 px,
Qwen2): the numbers of tokens, tiles and bytes are those of any model of the family, seconds are of this one, and FLOPs
are given for it and, by the same formulas, for the released shape (CLIP-L/336, Qwen2-7B, four layers of region focus).

``released``
    One level down, the best quarter of its tokens.
``full``
    Down to full resolution; of each level at most 16 tiles are looked at.
``unpruned``
    All tokens of the level that ``released`` ends at.
``finest``
    All tokens of full resolution, counted and not run.
"""

from __future__ import annotations

from typing import Any

from .child import Clock, measured
from .common import Bench, Benchmark, Goal, markdown

__all__ = ["BENCHMARK"]

QUESTION = "How many ships are in the harbour?"
BUDGET = 16 * 144
"""Tokens of a level that ``full`` looks at."""
MODES = ("released", "full", "unpruned")
QWEN2_7B = {
    "model_type": "llava_qwen2", "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944,
    "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
}  # fmt: skip


class Made:
    """Pixels of a square scene, computed when they are asked for: the same ones at the same place and level."""

    def __init__(self, side: int) -> None:
        from tilewright.kernels.ask import LevelInfo, Scene

        sides = [side]
        while sides[-1] > 1024:
            sides.append(-(-sides[-1] // 2))
        levels = tuple(LevelInfo(float(2**n), (one, one)) for n, one in enumerate(sides))
        self.scene = Scene(levels, ("red", "green", "blue"), 0.5)
        self.largest = 0

    def views(self, requests: list[Any]) -> list[Any]:
        """Compute views, ``[3, rows, columns]`` uint8."""
        import numpy as np

        from tilewright.kernels.ask import View

        found = []
        for request in requests:
            step = int(self.scene.levels[request.level].factor)
            rows = np.arange(request.row0, request.row1, dtype=np.uint32)[:, None] * np.uint32(step)
            cols = np.arange(request.col0, request.col1, dtype=np.uint32) * np.uint32(step)
            hills = 60 * np.sin(rows * np.float32(0.003)) * np.cos(cols * np.float32(0.002))
            mixed = (rows * np.uint32(2_654_435_761)) ^ (cols * np.uint32(2_246_822_519))
            pixels = np.empty((3, *request.shape), np.uint8)
            for band in range(3):
                pixels[band] = 128 + hills + ((mixed >> np.uint32(8 + 5 * band)) & np.uint32(31))
            found.append(View(request, pixels, np.ones(request.shape, bool)))
            self.largest = max(self.largest, pixels.nbytes)
        return found


def by_question(clock: Clock, side: int, mode: str) -> dict[str, Any]:
    """Ask one question; in a child process."""
    import torch

    from tilewright.kernels.vlm.pruned import PrunedAnswerer, Pruning
    from tilewright.kernels.vlm.tiny import tiny_llava

    torch.set_num_threads(1)
    options: dict[str, Any] = {
        "released": {},
        "full": {"descent": "full", "budget_tokens": BUDGET},
        "unpruned": {"prune": False},
    }[mode]
    answerer = PrunedAnswerer(tiny_llava(), Pruning(**options), most=4)
    made = Made(side)
    carried(answerer, Made(512))  # first calls are slower
    with clock:
        answer = carried(answerer, made)
    trace = dict(answer.trace)
    looks = trace["looks"]
    return {
        "tokens": trace["visual_tokens"],
        "sequence": trace["sequence"],
        "looked": [577 + look["of_tokens"] if look["level"] < 2 else 577 + look["tokens"] for look in looks],
        "tiles": trace["tiles"],
        "bytes": trace["bytes_of_views"],
        "level_bytes": made.largest,
        "pixel": side / max(looks[-1]["size"]),
        "flops": sum(trace["flops"].values()),
    }


def carried(answerer: Any, made: Made) -> Any:
    """Answer the requests of a policy from a made scene."""
    asking = answerer.ask(QUESTION, made.scene)
    try:
        requests = next(asking)
        while True:
            requests = asking.send(made.views(requests))
    except StopIteration as end:
        return end.value


def released_flops(row: dict[str, Any]) -> float:
    """Return what a row's question would cost with the released shape of model."""
    from tilewright.kernels.vlm.flops import flops
    from tilewright.kernels.vlm.llava import Sizes

    layers = [f"model.mm_projector.token_pruner.layers.{n}." for n in range(4)]
    sizes = Sizes.read(QWEN2_7B, layers, "Qwen2-7B")
    focus = 0.0 if row["mode"] == "unpruned" else sum(flops(sizes, "focus", n) for n in row["looked"])
    return flops(sizes, "vision", row["tiles"]) + focus + flops(sizes, "language", row["sequence"])


def measure(bench: Bench) -> dict[str, Any]:
    """Ask each size in each mode."""
    from tilewright.kernels.vlm.dynamic_pyramid import DynamicPyramid

    rows: list[dict[str, Any]] = []
    finest: list[dict[str, Any]] = []
    for side in bench.parameters["sides"]:
        for mode in MODES:
            found = bench.once(
                f"{side} {mode}",
                lambda side=side, mode=mode: measured("pruning:by_question", side=side, mode=mode),
            )
            row = {"side": side, "mode": mode, **found}
            rows.append({**row, "flops_7b": released_flops(row)})
            bench.say(f"{side} px, {mode}: {row['tokens']} tokens, {row['wall']:.1f} s")
        shape = DynamicPyramid.of(side, side).levels[-1].token_shape(first=False)
        finest.append({"side": side, "tokens": 577 + shape[0] * (shape[1] + 1)})
    return {"rows": rows, "finest": finest}


def table(data: dict[str, Any]) -> str:
    """Return the rows as Markdown."""
    counted = {one["side"]: one["tokens"] for one in data["finest"]}
    return markdown(
        (
            "mode", "side, px", "px a sample", "tiles", "visual tokens", "of full resolution", "MiB asked for",
            "seconds", "peak beyond start, MiB", "TFLOP, Qwen2-7B",
        ),
        [
            [
                row["mode"], row["side"], row["pixel"], row["tiles"], row["tokens"], counted[row["side"]],
                row["bytes"] / 2**20, row["wall"], (row["peak"] - row["base"]) / 2**20, row["flops_7b"] / 1e12,
            ]
            for row in data["rows"]
        ],
    )  # fmt: skip


def goals(data: dict[str, Any]) -> list[Goal]:
    """Return what was hoped for."""
    rows = data["rows"]
    pruned = [row for row in rows if row["mode"] != "unpruned"]
    extra = max(row["peak"] - row["base"] for row in rows) / 2**20
    most = max(row["tokens"] for row in pruned)
    largest = max(rows, key=lambda row: row["side"])["side"]
    finest = next(one["tokens"] for one in data["finest"] if one["side"] == largest)
    return [
        Goal("less than 3 GiB at every size", f"{extra:,.0f} MiB beyond the start", extra < 3072),
        Goal(
            "fewer than 3,000 visual tokens at every size",
            f"{most:,}, of {finest:,} at {largest:,} px",
            most < 3000,
        ),
    ]


def plot(axes: Any, data: dict[str, Any]) -> None:
    """Draw visual tokens by the size of the image."""
    for mode in MODES:
        rows = [row for row in data["rows"] if row["mode"] == mode]
        label = f"{mode}: {rows[-1]['wall']:.1f} s, {(rows[-1]['peak'] - rows[-1]['base']) / 2**20:.0f} MiB"
        axes.plot([row["side"] for row in rows], [row["tokens"] for row in rows], "o-", label=label)
    finest = data["finest"]
    axes.plot(
        [one["side"] for one in finest],
        [one["tokens"] for one in finest],
        "--",
        color="0.6",
        label="all, not run",
    )
    axes.set(
        xscale="log", yscale="log", xlabel="side of the image, px", ylabel="visual tokens given to the model"
    )
    axes.legend(title=f"time, memory at {finest[-1]['side']:,} px", fontsize="small")


BENCHMARK = Benchmark(
    name="pruning",
    title="Token pruning",
    about=(__doc__ or "").partition("\n\n")[2],
    small={"sides": [1024, 8192]},
    full={"sides": [1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 100_000]},
    measure=measure,
    table=table,
    goals=goals,
    minutes=(1, 6),
    plot=plot,
)
