"""Where is the forest? A block of other ground is planted in a raster of 100,000 x 100,000 px and asked for.

The ground is made of pictures of EuroSAT of one class, the block, 512 to 1,024 px a side at any pixel, of pictures of
another; both only of pictures that the embedder never saw (its test part). Nothing is indexed before; the policy is
`find` with the embedder that comes with the package, and no language model. A hundred seeds with a planting, and the
same hundred without one, asked the same question.

``right``
    The centre of the first box lies in the planted block.
``called found``
    The policy says that something stands out. Without a planting that is a false alarm.
``share read``
    Bytes of decoded blocks that were read, overviews among them, of the bytes of full resolution.
``peak``
    Most resident memory of the process.

The raster is a GeoTIFF of 512 px tiles with overviews of means; its ground repeats after 4,096 px so that a hundred of
them can be made (`benchmarks/planted.py`), which nothing that is asked makes use of. The benchmark does, to end in an
hour: after the first rasters, by which seconds and memory are measured, it keeps the vectors of tiles and does not
compute those of equal tiles again; pixels are read and vectors compared as ever.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .child import Clock, measured
from .common import Bench, Benchmark, Goal, markdown

__all__ = ["BENCHMARK"]

WORDS = {
    "AnnualCrop": "annual crops",
    "Forest": "forest",
    "HerbaceousVegetation": "herbaceous vegetation",
    "Highway": "highway",
    "Industrial": "industrial buildings",
    "Pasture": "pasture",
    "PermanentCrop": "permanent crops",
    "Residential": "residential area",
    "River": "river",
    "SeaLake": "sea or lake",
}
"""Folder of EuroSAT -> what is asked for."""
MIB = 1 << 20


def ask_planted(
    clock: Clock, pictures: str, folder: str, side: int, seeds: list[int], timed: int
) -> dict[str, Any]:
    """Ask about each seed's raster with its planting and without; return a row each.

    Seeds below ``timed`` are asked as they are; of the others tiles that were seen are remembered (`Remembering`).
    """
    import numpy as np
    import torch

    from tilewright.kernels.embed.contract import load_embedder
    from tilewright.kernels.embed.pictures import read_pictures
    from tilewright.kernels.vlm.find import Find
    from tilewright.searching import open_image

    from .planted import PERIOD, Packed, Planting, Remembering, mosaic, write_planted

    torch.set_num_threads(2)
    known = read_pictures(Path(pictures)).part("test")
    pixels, labels = known.pixels.permute(0, 2, 3, 1).numpy(), known.labels.numpy()
    embedder = load_embedder("eurosat")
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        ground_class, planted_class = (int(n) for n in rng.choice(len(known.classes), 2, replace=False))
        ground = mosaic(pixels[labels == ground_class], (PERIOD, PERIOD), rng)
        length = int(rng.integers(512, 1025))
        row, col = (int(n) for n in rng.integers(0, side - length, 2))
        block = Planting(row, col, mosaic(pixels[labels == planted_class], (length, length), rng))
        packed: Packed = {}
        for planting in (block, None):
            path = write_planted(Path(folder) / "planted.tif", side, ground, planting, packed)
            question = f"Where is the {WORDS[known.classes[planted_class]]}?"
            eyes: Any = embedder if seed < timed else Remembering(embedder)
            with clock:
                outcome = _asked(Find(eyes), open_image(path), question)
            rows.append(
                {
                    "seed": seed,
                    "ground": known.classes[ground_class],
                    "planted": known.classes[planted_class],
                    "block": list(block.box) if planting is not None else None,
                    **outcome,
                    "seconds": round(clock.wall, 2) if seed < timed else None,
                    "peak": clock.peak if seed < timed else None,
                }
            )
            path.unlink()
    return {"rows": rows}


def _asked(policy: Any, pyramid: Any, question: str) -> dict[str, Any]:
    from tilewright.pipeline.ask import ask

    outcome = ask(policy, question, pyramid)
    first = outcome.answer.evidence[0] if outcome.answer.evidence else None
    return {
        "question": question,
        "box": None if first is None else [round(v, 1) for v in first.box],
        "score": None if first is None else round(first.score, 3),
        "scan": None if first is None else first.properties["scan"],
        "found": outcome.answer.trace["found"] > 0,
        "share": outcome.account.bytes_read / outcome.total_bytes,
    }


def measure(bench: Bench) -> dict[str, Any]:
    """Return a row for each seed with its planting, and one without."""
    p = bench.parameters
    rows: list[dict[str, Any]] = []
    for first in range(0, p["seeds"], p["together"]):
        seeds = list(range(first, min(first + p["together"], p["seeds"])))
        bench.say(f"seeds {seeds[0]} to {seeds[-1]}")
        arguments = {
            "pictures": str(Path(p["pictures"]).resolve()),
            "folder": str(bench.folder),
            "side": p["side"],
            "timed": p["timed"],
        }
        done = bench.once(
            f"seeds {first}",
            lambda s=seeds, a=arguments: measured("ask:ask_planted", seeds=s, **a),  # type: ignore[misc]
        )
        rows += done["rows"]
    return {"side": p["side"], "rows": rows}


def right(row: dict[str, Any]) -> bool:
    """True where the centre of the first box lies in the planted block."""
    if row["block"] is None or row["box"] is None:
        return False
    col, r = (row["box"][0] + row["box"][2]) / 2, (row["box"][1] + row["box"][3]) / 2
    col0, row0, col1, row1 = row["block"]
    return bool(col0 <= col < col1 and row0 <= r < row1)


def _numbers(data: dict[str, Any]) -> dict[str, Any]:
    planted = [row for row in data["rows"] if row["block"] is not None]
    controls = [row for row in data["rows"] if row["block"] is None]
    timed = [row for row in data["rows"] if row["seconds"] is not None]
    return {
        "seeds": len(planted),
        "right": sum(right(row) for row in planted),
        "found": sum(row["found"] for row in planted),
        "alarms": sum(row["found"] for row in controls),
        "share": max(row["share"] for row in data["rows"]),
        "seconds": sorted(row["seconds"] for row in timed)[len(timed) // 2],
        "peak": max(row["peak"] for row in timed),
    }


def table(data: dict[str, Any]) -> str:
    """Return the sums as Markdown, and the pairs that went wrong."""
    found = _numbers(data)
    header = ("rasters", "right", "called found", "false alarms", "most read", "median seconds", "peak MiB")
    line = (
        found["seeds"], found["right"], found["found"], found["alarms"], f"{found['share']:.3%}",
        f"{found['seconds']:.1f}", round(found["peak"] / MIB),
    )  # fmt: skip
    missed = [row for row in data["rows"] if row["block"] is not None and not right(row)]
    words = "; ".join(f"{row['planted']} in {row['ground']} (seed {row['seed']})" for row in missed)
    return markdown(header, [line]) + (f"\n\nNot right: {words}." if missed else "")


def goals(data: dict[str, Any]) -> list[Goal]:
    """Return what was hoped for."""
    found = _numbers(data)
    share, least = found["right"] / found["seeds"], 0.95
    return [
        Goal("right in at least 95 of 100", f"{found['right']} of {found['seeds']}", share >= least),
        Goal("less than 1 % of the bytes", f"{found['share']:.3%}", found["share"] < 0.01),
        Goal("less than 3 GiB", f"{found['peak'] / MIB:,.0f} MiB", found["peak"] < 3 << 30),
    ]


BENCHMARK = Benchmark(
    name="ask",
    title="A question to 100,000 x 100,000 px",
    about=(__doc__ or "").partition("\n\n")[2],
    small={"pictures": "EuroSAT_RGB.zip", "side": 20_000, "seeds": 2, "together": 2, "timed": 1},
    full={"pictures": "EuroSAT_RGB.zip", "side": 100_000, "seeds": 100, "together": 10, "timed": 3},
    measure=measure,
    table=table,
    goals=goals,
    minutes=(1, 60),
)
