"""Words for what is on the ground, sentences to put them in, and the linear map that is made from both.

A sentence encoder knows that a forest and woods are alike, but also hears how a question is put: "where is the lake?"
lies nearer to "where is the road?" than to "lake". So the map measures how vectors of one thing differ with words and
sentences, shrinks those directions, and turns what is left to its main axes. It is made from words alone, in closed
form, before any picture is seen: Fisher's linear discriminant with a regularised scatter (Friedman 1989,
https://doi.org/10.1080/01621459.1989.10478752).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["HELD_BACK", "PROMPT", "SENTENCES", "TextMap", "fit_text_map", "words_of"]

PROMPT = "a satellite image of {}"
"""Sentence by which classes are asked for where accuracy is measured."""

SENTENCES = (
    "{}",
    PROMPT,
    "a satellite photo of {}",
    "an aerial image of {}",
    "a Sentinel-2 image of {}",
    "a picture of {} from above",
    "{} seen from space",
    "land covered by {}",
    "an area of {}",
    "a place with {}",
    "where is the {}?",
    "find {}",
    "show me the {}",
    "is there {} here?",
    "how much {} is there?",
    "a map of {}",
)
"""Sentences of the training."""

GROUND: Mapping[str, tuple[str, ...]] = {
    "AnnualCrop": (
        "annual crop",
        "crop field",
        "arable land",
        "farmland",
        "wheat field",
        "cereal fields",
        "maize",
        "cultivated fields",
        "ploughed soil",
        "agricultural field",
        "vegetable field",
    ),
    "Forest": (
        "forest",
        "trees",
        "woodland",
        "dense forest",
        "pine forest",
        "coniferous forest",
        "deciduous trees",
        "wooded area",
        "tree canopy",
        "rainforest",
    ),
    "HerbaceousVegetation": (
        "herbaceous vegetation",
        "shrubs",
        "shrubland",
        "heath",
        "bushes",
        "sparse vegetation",
        "steppe",
        "scrub",
        "wild herbs",
        "natural vegetation",
    ),
    "Highway": (
        "highway",
        "road",
        "motorway",
        "freeway",
        "main road",
        "expressway",
        "asphalt road",
        "road with traffic",
        "road junction",
        "interstate",
    ),
    "Industrial": (
        "industrial area",
        "industrial buildings",
        "factory",
        "factories",
        "commercial buildings",
        "industrial park",
        "business park",
        "large halls",
        "storage depot",
        "industry",
    ),
    "Pasture": (
        "pasture",
        "meadow",
        "grassland",
        "grass",
        "green grass field",
        "cattle pasture",
        "hay meadow",
        "grazed field",
        "paddock with livestock",
    ),
    "PermanentCrop": (
        "permanent crop",
        "vineyard",
        "orchard",
        "fruit trees",
        "olive trees",
        "plantation",
        "grape vines",
        "citrus orchard",
        "fruit plantation",
    ),
    "Residential": (
        "residential area",
        "residential buildings",
        "housing",
        "homes",
        "town",
        "village",
        "suburban homes",
        "neighbourhood",
        "apartment buildings",
        "settlement",
    ),
    "River": (
        "river",
        "rivers",
        "winding river",
        "river bank",
        "flowing water",
        "riverbed",
        "waterway",
        "river valley",
        "river bend",
    ),
    "SeaLake": (
        "sea or lake",
        "sea",
        "open water",
        "body of water",
        "water",
        "water surface",
        "reservoir",
        "pond",
        "bay",
        "blue water",
    ),
}
"""Classes of EuroSAT, as its folders are named -> words for them; the first one names the class."""

HELD_BACK: Mapping[str, tuple[str, ...]] = {
    "AnnualCrop": ("corn field", "fields of barley"),
    "Forest": ("woods", "jungle"),
    "HerbaceousVegetation": ("scrubland", "moorland"),
    "Highway": ("dual carriageway", "autobahn"),
    "Industrial": ("warehouses", "manufacturing plant"),
    "Pasture": ("grazing land", "prairie"),
    "PermanentCrop": ("olive grove", "apple orchard"),
    "Residential": ("houses", "suburb"),
    "River": ("stream", "canal"),
    "SeaLake": ("lake", "ocean"),
}
"""Words that no part of the training sees; how well they are understood is measured."""

OTHERS = (
    ("desert", "sand dunes"),
    ("snow", "snowfield"),
    ("glacier", "ice"),
    ("clouds", "cloudy sky"),
    ("airport", "runway"),
    ("harbour", "port"),
    ("ships", "boats"),
    ("bridge", "viaduct"),
    ("railway", "train tracks"),
    ("parking lot", "car park"),
    ("stadium", "sports arena"),
    ("golf course",),
    ("beach", "sandy shore"),
    ("island",),
    ("mountain", "mountain ridge"),
    ("volcano", "lava"),
    ("wetland", "swamp", "marsh"),
    ("mangrove",),
    ("rice paddy",),
    ("greenhouse", "polytunnel"),
    ("solar panels", "solar farm"),
    ("wind turbines", "wind farm"),
    ("quarry", "open pit mine"),
    ("burnt area", "fire scar"),
    ("wildfire", "smoke"),
    ("flood", "flooded land"),
    ("dam",),
    ("bare soil", "bare rock"),
    ("landslide",),
    ("salt flat",),
    ("coral reef",),
    ("tundra",),
    ("savanna",),
    ("park", "garden"),
    ("cemetery", "graveyard"),
    ("swimming pool",),
    ("tennis court", "football pitch"),
    ("rubbish dump", "landfill"),
    ("construction site",),
    ("tunnel",),
    ("church", "cathedral"),
    ("castle", "ruins"),
    ("school", "university"),
    ("hospital",),
    ("skyscrapers", "downtown"),
    ("cars", "vehicles"),
    ("trucks", "lorries"),
    ("aircraft", "airplanes"),
    ("oil tanks", "storage tanks"),
    ("pipeline",),
    ("power line", "pylon"),
    ("people", "crowd"),
    ("animals", "cows"),
    ("dog", "cat"),
    ("food", "meal"),
    ("music", "song"),
    ("computer", "software"),
    ("book", "newspaper"),
    ("money", "bank account"),
    ("clothes", "shoes"),
    ("furniture", "table and chairs"),
    ("weather", "rain"),
    ("shadow", "darkness"),
    ("nothing", "empty space"),
)
"""Things that are no class, words for one thing together: they span the space beside the classes."""

_SHRINKAGE = 0.3
"""Share of the mean spread that is added to the spread in every direction before it is divided by."""


def words_of(
    classes: Sequence[str], given: Mapping[str, Sequence[str]] | None = None
) -> dict[str, tuple[str, ...]]:
    """Return the words for each class: those given, those of `GROUND`, or the name itself, taken apart.

    ``SeaLake`` and ``sea_lake`` become "sea lake".
    """
    found = {}
    for name in classes:
        apart = re.sub(r"(?<=[a-z])(?=[A-Z])|[_\-\s]+", " ", name).strip().lower()
        found[name] = tuple((given or {}).get(name, ())) or GROUND.get(name, (apart,))
    return found


@dataclass(frozen=True)
class TextMap:
    """The linear map, and what it gives for the words of the classes."""

    weight: Tensor
    """``[dim, width]``."""
    bias: Tensor
    """``[dim]``."""
    prompts: Tensor
    """``[classes, most words * sentences, dim]`` of length 1; classes with fewer words repeat theirs."""

    def __call__(self, sentences: Tensor) -> Tensor:
        """Return vectors ``[n, dim]`` of length 1 for those of the sentence encoder ``[n, width]``."""
        return torch.nn.functional.normalize(sentences @ self.weight.T + self.bias, dim=1)


def fit_text_map(
    words: Mapping[str, Sequence[str]], encode: Callable[[list[str]], Tensor], dim: int
) -> TextMap:
    """Make the map from words alone.

    Parameters
    ----------
    words
        Class -> its words.
    encode
        Sentences -> vectors ``[n, width]``.
    dim
        Axes that are kept; at most ``width``.
    """
    things = [*words.values(), *OTHERS]
    texts = [sentence.format(word) for thing in things for word in thing for sentence in SENTENCES]
    vectors = encode(texts).double()
    parts = vectors.split([len(thing) * len(SENTENCES) for thing in things])
    means = torch.stack([part.mean(0) for part in parts])
    centre = means.mean(0)
    within = torch.stack([_scatter(part - mean) for part, mean in zip(parts, means, strict=True)]).mean(0)
    shrunk = _inverse_root(within)
    total = torch.stack([_scatter((part - centre) @ shrunk) for part in parts]).mean(0)
    weight = (_axes(total)[:, :dim].T @ shrunk).float()
    bias = -(weight.double() @ centre).float()
    found = TextMap(weight, bias, torch.empty(0))
    most = max(len(part) for part in parts[: len(words)])
    prompts = [found(part.float())[torch.arange(most) % len(part)] for part in parts[: len(words)]]
    return TextMap(weight, bias, torch.stack(prompts))


def _scatter(rows: Tensor) -> Tensor:
    return rows.T @ rows / len(rows)


def _inverse_root(within: Tensor) -> Tensor:
    """``(within + shrinkage)^(-1/2)``."""
    spread, axes = torch.linalg.eigh(within)
    spread = spread.clamp(min=0)
    root: Tensor = axes @ torch.diag((spread + _SHRINKAGE * spread.mean()).rsqrt()) @ axes.T
    return root


def _axes(total: Tensor) -> Tensor:
    """Main axes in columns, the longest first; the largest part of each is positive, so that signs are settled."""
    axes: Tensor = torch.linalg.eigh(total)[1].flip(1)
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return axes * largest.sign()
