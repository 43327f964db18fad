"""The STAC Item of a run: what was written, from which scenes, by which model.

The Item lies as ``item.json`` beside the assets and names them by relative hrefs, so that a folder can be moved
or uploaded whole. It is validated with local schemas before it is written, and written by one rename: there is
an Item, or there is none.

Extensions: projection v2.0.0, raster v1.1.0 (beside the ``bands`` of STAC 1.1, for readers of either age),
classification v2.0.0, file v2.1.0, processing v1.1.0, mlm v1.4.0.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pystac

from tilewright.catalogs.outputs import (
    ClassInfo,
    InputInfo,
    ItemRef,
    ModelInfo,
    OutputAsset,
    OutputBand,
    OutputInfo,
    ProjInfo,
)
from tilewright.errors import InputError, StoreError

__all__ = [
    "ITEM_FILE",
    "ClassInfo",
    "InputInfo",
    "ItemRef",
    "ModelInfo",
    "OutputAsset",
    "OutputBand",
    "OutputInfo",
    "ProjInfo",
    "build_item",
    "publish",
    "safe_name",
    "write_json",
]

ITEM_FILE = "item.json"
"""Name of the Item within a run's folder."""

_DESCRIPTION_FILE = "model.json"

_EXTENSION = "https://stac-extensions.github.io/{}/schema.json"
PROJECTION = _EXTENSION.format("projection/v2.0.0")
RASTER = _EXTENSION.format("raster/v1.1.0")
CLASSIFICATION = _EXTENSION.format("classification/v2.0.0")
FILE = _EXTENSION.format("file/v2.1.0")
PROCESSING = _EXTENSION.format("processing/v1.1.0")
MLM = _EXTENSION.format("mlm/v1.4.0")


def build_item(
    *,
    item_id: str,
    geometry: Mapping[str, Any],
    bbox: Sequence[float],
    datetime_range: tuple[datetime, datetime],
    created: datetime,
    proj: ProjInfo,
    assets: Sequence[OutputAsset],
    derived_from: Sequence[ItemRef],
    model: ModelInfo | None = None,
    lineage: str | None = None,
    software: Mapping[str, str] | None = None,
    digest: str | None = None,
    properties: Mapping[str, Any] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> pystac.Item:
    """Build the Item of a run; it is neither validated nor written, see :func:`publish`.

    Parameters
    ----------
    item_id
        Letters, digits, ``.``, ``_`` and ``-``: it becomes a folder's name in the local catalog.
    geometry, bbox
        Footprint in WGS84 longitude and latitude.
    datetime_range
        Sensing times of the first and last input, with a time zone. ``datetime`` of the Item is the last: the
        map holds as of then.
    created
        When the run ended, with a time zone.
    proj
        Grid of the outputs.
    assets
        Files and folders, relative to the run's folder.
    derived_from
        Every input Item.
    model
        The kernel; None for a composite without one.
    lineage
        How the result was made, in words.
    software
        Package to version.
    digest
        Merkle root over the decoded shards, property ``tilewright:digest``.
    properties
        Further properties.
    folder
        The run's folder: sizes and checksums of the assets are taken there, and paths of local input Items are
        written relative to it. None leaves both as they are.

    Raises
    ------
    InputError
        A time without zone, reversed times, or an id that is no plain name.
    """
    safe_name(item_id, "Item id")
    start, end = (_utc(moment, "datetime_range") for moment in datetime_range)
    if end < start:
        raise InputError(f"datetime_range ends {end} before it starts {start}", place=item_id)
    item = pystac.Item(
        id=item_id,
        geometry=json.loads(json.dumps(geometry)),
        bbox=[float(v) for v in bbox],
        datetime=end,
        start_datetime=start,
        end_datetime=end,
        properties={
            **proj.fields(),
            "processing:software": dict(software or {}),
            **({"processing:lineage": lineage} if lineage else {}),
            **({"tilewright:digest": digest} if digest else {}),
            **(properties or {}),
        },
        stac_extensions=[PROJECTION, RASTER, FILE, PROCESSING],
    )
    item.common_metadata.created = _utc(created, "created")
    base = Path(folder) if folder is not None else None
    for asset in assets:
        item.add_asset(asset.key, _asset(asset, base))
    if any(band.classes for asset in assets for band in asset.bands):
        item.stac_extensions.append(CLASSIFICATION)
    if model is not None:
        _add_model(item, model)
    for ref in derived_from:
        item.add_link(_derived_from(ref, base))
    return item


def publish(
    folder: str | os.PathLike[str], *, model: ModelInfo | None = None, **description: Any
) -> pystac.Item:
    """Build, validate and write ``item.json`` of a run's folder; the parameters are those of :func:`build_item`.

    A kernel without weights is described in ``model.json`` beside the Item, because the mlm extension wants an
    asset that stands for the model.

    Returns
    -------
    pystac.Item
        The Item as written, with its own address as self link in memory.

    Raises
    ------
    StoreError
        An asset is missing, the Item breaks a schema (then nothing is written), or the disk refuses.
    """
    from tilewright.catalogs.validate import validate_item  # jsonschema takes 0.3 s to import

    base = Path(folder)
    item = build_item(model=model, folder=base, **description)
    validate_item(item)
    if model is not None and model.weights_href is None:
        write_json(base / _DESCRIPTION_FILE, asdict(model))
    write_json(base / ITEM_FILE, item.to_dict(include_self_link=False, transform_hrefs=False))
    item.set_self_href(str((base / ITEM_FILE).resolve()))
    return item


def safe_name(name: str, what: str) -> str:
    """Return ``name`` if it may become part of a path.

    Raises
    ------
    InputError
        It has other characters than letters, digits, ``.``, ``_`` and ``-``, or begins with a dot.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}", name):
        raise InputError(
            f"{what} {name!r} cannot be the name of a file",
            remedy="use letters, digits, '.', '_' and '-', not beginning with '.' or '-'",
        )
    return name


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON by one rename: readers see the old file or the new one, never a half.

    Raises
    ------
    StoreError
        The disk refuses, or a value is none that JSON has (NaN, a path, an array).
    """
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise StoreError(f"a value cannot be written as JSON: {error}", place=str(path)) from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"cannot be written: {error.strerror}", place=str(path)) from error


def _asset(asset: OutputAsset, folder: Path | None) -> pystac.Asset:
    if Path(asset.path).is_absolute() or ".." in Path(asset.path).parts:
        raise InputError(f"{asset.path!r} is not a path within the run's folder", place=f"asset {asset.key}")
    fields: dict[str, Any] = {}
    if asset.bands:
        pairs = [band.fields() for band in asset.bands]
        fields["bands"] = [core for core, _ in pairs]
        size = {"spatial_resolution": asset.resolution} if asset.resolution else {}
        fields["raster:bands"] = [{**raster, **size} for _, raster in pairs]
        if len(asset.bands) == 1 and asset.bands[0].classes:
            fields["classification:classes"] = [c.fields() for c in asset.bands[0].classes]
    if asset.proj is not None:
        fields |= asset.proj.fields()
    if folder is not None and not asset.elsewhere:
        fields |= _file_fields(folder / asset.path, asset)
    elif asset.sha256:
        fields["file:checksum"] = _multihash(asset.sha256)
    return pystac.Asset(
        href=f"./{Path(asset.path).as_posix()}",
        title=asset.title,
        media_type=asset.media_type,
        roles=list(asset.roles),
        extra_fields=fields,
    )


def _file_fields(path: Path, asset: OutputAsset) -> dict[str, Any]:
    if path.is_dir():
        # A Zarr is a folder: its shards are covered by the run's digest, not by a checksum of one file.
        return {"file:size": sum(p.stat().st_size for p in path.rglob("*") if p.is_file())}
    if not path.is_file():
        raise StoreError("the asset is not there", place=str(path))
    sha256 = asset.sha256
    if sha256 is None:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file:size": path.stat().st_size, "file:checksum": _multihash(sha256)}


def _multihash(sha256: str) -> str:
    """Prefix a SHA-256 as a multihash: code 0x12, length 0x20."""
    return "1220" + sha256.lower()


def _add_model(item: pystac.Item, model: ModelInfo) -> None:
    item.stac_extensions.append(MLM)
    item.properties.update(model.fields())
    fields: dict[str, Any] = {}
    names = [band for entry in model.inputs for band in entry.bands]
    if names:
        # mlm wants the model's input bands described; on this asset they cannot be taken for the result's.
        fields["raster:bands"] = [{"name": name} for name in dict.fromkeys(names)]
    if model.weights_href is None:
        href, media, fields["mlm:artifact_type"] = (
            f"./{_DESCRIPTION_FILE}",
            "application/json",
            "tilewright.kernel",
        )
    else:
        href, media, fields["mlm:artifact_type"] = (
            model.weights_href,
            "application/octet-stream",
            model.artifact_type,
        )
        if model.weights_sha256:
            fields["file:checksum"] = _multihash(model.weights_sha256)
    if model.licence:
        fields["license"] = model.licence
    if model.citation:
        fields["description"] = model.citation
    asset = pystac.Asset(
        href=href, title=model.name, media_type=media, roles=["mlm:model"], extra_fields=fields
    )
    item.add_asset("model", asset)


def _derived_from(ref: ItemRef, folder: Path | None) -> pystac.Link:
    href = ref.href or f"urn:stac:{ref.collection or 'none'}:{ref.item_id}"
    if ref.href and folder is not None and _is_local(ref.href):
        href = os.path.relpath(ref.href, folder)
    return pystac.Link(
        rel=pystac.RelType.DERIVED_FROM,
        target=href,
        media_type="application/geo+json",
        title=f"{ref.collection}/{ref.item_id}" if ref.collection else ref.item_id,
    )


def _is_local(href: str) -> bool:
    return "://" not in href and not href.startswith(("urn:", "/vsi"))


def _utc(moment: datetime, what: str) -> datetime:
    if moment.tzinfo is None:
        raise InputError(f"{what} {moment} has no time zone", remedy="give UTC times")
    return moment.astimezone(UTC)
