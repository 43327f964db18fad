"""What of a region is new since its last published result. All state lies in the catalog of results.

A published Item says in `PROPERTY` of which region and date it is and of which Items, each with the version of its
processing. What the archive holds now is compared with that. No clock and no database takes part: whatever is
lost beside the catalog, the next look finds the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tilewright.errors import InputError

if TYPE_CHECKING:
    import pystac

    from tilewright.catalogs.region import Region
    from tilewright.catalogs.search import SearchResult
    from tilewright.pipeline.groups import ItemGroup

    from .recipe import Recipe
    from .runs import Sought

__all__ = ["PROPERTY", "Due", "Look", "Published", "Scene", "look", "published_results"]

PROPERTY = "tilewright:monitor"
"""Property of a published Item: region, date and Items of the result."""
_VERSIONS = (
    "processing:version",
    "s2:processing_baseline",
    "s2:generation_time",
    "s2:product_uri",
    "processing:datetime",
    "version",
)
"""Properties that change when a scene is processed again. ``updated`` is none of them: archives touch it for less."""


@dataclass(frozen=True, slots=True, order=True)
class Scene:
    """An Item in one state of its processing."""

    collection: str
    """Its collection; empty where it names none."""
    id: str
    """Its id."""
    version: str
    """Twelve hexadecimal digits over what tells its processings apart."""

    @classmethod
    def of(cls, item: pystac.Item) -> Scene:
        """Return the scene of an Item: the properties `_VERSIONS`, and the checksums that its assets state."""
        told: dict[str, Any] = {
            k: item.properties[k] for k in _VERSIONS if item.properties.get(k) is not None
        }
        sums = {
            key: asset.extra_fields["file:checksum"]
            for key, asset in item.assets.items()
            if asset.extra_fields.get("file:checksum")
        }
        text = json.dumps([told, sums], sort_keys=True, default=str)
        return cls(item.collection_id or "", item.id, hashlib.sha256(text.encode()).hexdigest()[:12])


@dataclass(frozen=True, slots=True)
class Published:
    """A result that stands in the catalog."""

    region: str
    """Name of its region."""
    date: str
    """Its date, as `Due.date`."""
    scenes: frozenset[Scene]
    """The Items that were new in it; those before them, which some kernels look back on, are not among them."""
    folder: str
    """Where its run lies."""


@dataclass(frozen=True)
class Due:
    """A result that should be made."""

    region: str
    """Name of the region."""
    date: str
    """What the Items have in common: a solar day, an instant, an Item's id, or the span."""
    why: Literal["new", "reprocessed"]
    """``reprocessed``: the date was published from other Items, or from the same in an older processing."""
    sought: Sought
    """Recipe, kernel, grids and the Items: those of the date, and the dates before it that the kernel takes."""
    scenes: frozenset[Scene]
    """The Items of the date."""

    @property
    def name(self) -> str:
        """Id of the result's Item: region and date."""
        from tilewright.api import item_id

        return item_id(f"{self.region}-{self.date}")

    @property
    def folder(self) -> str:
        """Folder of the result, below that of the recipe: the same Items lead to the same, so a run resumes."""
        from tilewright.api import item_id

        text = json.dumps(sorted((s.collection, s.id, s.version) for s in self.scenes))
        return f"{self.region}/{item_id(self.date)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def facts(self) -> dict[str, Any]:
        """Return what the Item says in `PROPERTY`."""
        scenes = [{"collection": s.collection, "id": s.id, "version": s.version} for s in sorted(self.scenes)]
        return {"region": self.region, "date": self.date, "items": scenes}


@dataclass(frozen=True)
class Look:
    """What a look at a region found."""

    dues: tuple[Due, ...]
    """Results that should be made, the oldest first."""
    notes: tuple[str, ...]
    """Sentences on what is not due."""
    waiting: bool
    """True where a date is new, and the kernel takes more dates than there are."""


def published_results(
    catalog: str | Path, collection: str, region: str | None = None
) -> dict[str, list[Published]]:
    """Return the results of a recipe in a local catalog, by region, oldest first; none where there is none yet.

    With ``region`` only the Items whose ids begin with its name (`Due.name`) are opened: a catalog may hold thousands.
    """
    root = Path(catalog) / collection
    found: dict[str, list[Published]] = {}
    for path in sorted(root.glob(f"{region}-*/*.json" if region else "*/*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        facts = content.get("properties", {}).get(PROPERTY)
        if not facts:
            continue  # of a run that was no monitor's
        scenes = frozenset(Scene(s["collection"], s["id"], s["version"]) for s in facts["items"])
        one = Published(facts["region"], facts["date"], scenes, _folder(content, path))
        found.setdefault(one.region, []).append(one)
    for results in found.values():
        results.sort(key=lambda one: one.date)
    return found


def _folder(item: Mapping[str, Any], path: Path) -> str:
    """Return where the run of a published Item lies: the folder of its assets."""
    href = str(item["assets"]["quicklook"]["href"])
    return href.rpartition("/")[0] if "://" in href else str((path.parent / href).resolve().parent)


def look(
    recipe: Recipe,
    name: str,
    region: Region,
    published: Sequence[Published],
    *,
    each: Literal["date", "span"] = "date",
    backlog: int | None = 1,
) -> Look:
    """Search for a region, and return what is due.

    Parameters
    ----------
    recipe
        What is made. Of ``periods`` the last one is watched, and those before it are what they are.
    name, region
        The region.
    published
        Its results so far.
    each
        ``date``: a result for each date of the Items (as ``cube.groupby`` makes dates). ``span``: one for the
        whole of the watched span, again whenever its Items change.
    backlog
        Most dates of a region without any result: its newest. What is older is for a backfill, whose ``None``
        takes all dates.

    Raises
    ------
    CatalogError
        The catalog does not answer, or a period before the watched one holds nothing.
    """
    from tilewright.flows import runs

    found = runs.find_items(recipe, region, may_be_empty=True)
    watched = found[-1]
    if not watched.items:
        return Look((), (f"{name}: no Items found for {watched.searched}",), waiting=False)
    groups = _groups(recipe, region, watched, each)
    kernel = runs.load_kernel(recipe)
    fewest, most = next(iter(kernel.spec.inputs.values())).date_range
    if recipe.periods is not None or recipe.composite is not None or each == "span":
        fewest = most = 1  # of dates that are taken one by one
    wanted = _wanted(groups, published, backlog, moving=each == "span")
    grids = runs.choose_grids(recipe, region, found) if wanted else ()
    dues, notes = [], []
    for at, why in wanted:
        first = max(0, at + 1 - most)
        if at + 1 - first < fewest:
            notes.append(f"{name}: {groups[at].key} has {at} dates before it, {fewest - 1} are needed")
            continue
        items = tuple(item for group in groups[first : at + 1] for item in group.items)
        chosen = (*found[:-1], replace(watched, items=items))
        sought = runs.Sought(recipe, kernel, None, None, region, chosen, grids)
        dues.append(Due(name, groups[at].key, why, sought, _scenes(groups[at])))
    return Look(tuple(dues), tuple(notes), waiting=bool(notes))


def _groups(
    recipe: Recipe, region: Region, found: SearchResult, each: Literal["date", "span"]
) -> Sequence[ItemGroup]:
    from tilewright.pipeline.groups import ItemGroup, group_items

    if each == "date":
        return group_items(found.items, recipe.cube.groupby, region.geometry.centroid.x)
    if each != "span":
        raise InputError(f"unknown {each!r}", place="each", remedy="known: date, span")
    whole = group_items(found.items, None, 0.0)
    items = tuple(item for group in whole for item in group.items)
    return [ItemGroup(whole[0].time, items, recipe.spans[-1].replace("/", "--"))]


def _scenes(group: ItemGroup) -> frozenset[Scene]:
    return frozenset(map(Scene.of, group.items))


def _wanted(
    groups: Sequence[ItemGroup], published: Sequence[Published], backlog: int | None, *, moving: bool
) -> list[tuple[int, Literal["new", "reprocessed"]]]:
    """Return which groups are due, and why; a span that ``moving`` with the days is due for Items alone."""
    known = {one.date: one.scenes for one in published}
    changed = [
        (at, group.key in known) for at, group in enumerate(groups) if known.get(group.key) != _scenes(group)
    ]
    if moving and known and backlog is not None:
        changed = [(at, old) for at, old in changed if _scenes(groups[at]) - published[-1].scenes]
    elif not known and backlog is not None:
        changed = changed[-backlog:]
    elif backlog is not None:
        # A scene that comes late, of a date between others, counts as well; what was before the first does not.
        changed = [(at, old) for at, old in changed if old or groups[at].key > min(known)]
    return [(at, "reprocessed" if old else "new") for at, old in changed]
