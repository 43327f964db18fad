"""The alerts of a result: where it differs from the one before it, as GeoJSON beside its rasters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tilewright.errors import InputError, ReadError

if TYPE_CHECKING:
    from tilewright.flows.runs import PreparedRun
    from tilewright.flows.watch import Due, Published

__all__ = ["ALERTS", "write_alerts"]

ALERTS = "alerts.geojson"


def write_alerts(
    before: Published, prepared: PreparedRun, due: Due, *, above: float | None, least: int
) -> tuple[dict[str, Any], str]:
    """Write ``alerts.geojson`` into the folder of a finished run; return it as an asset, and what it holds in words.

    A result before that is gone, or lies on another grid, gives no alerts and a sentence that says so. Parameters
    are those of `tilewright.pipeline.alerts.find_alerts`.
    """
    import pystac

    from tilewright.catalogs.publish import write_json
    from tilewright.pipeline import objects
    from tilewright.pipeline.alerts import find_alerts

    request = prepared.request
    after = request.remote or str(request.out)
    if prepared.job.kernel.spec.mapping != "map_pixels":
        return {}, "records are not compared"
    try:
        found, box, notes = find_alerts(before.folder, after, above=above, least=least)
    except (InputError, ReadError) as error:
        return {}, f"no alerts: {error}"
    if notes and not found:
        return {}, f"no alerts: {'; '.join(notes)}"
    about = {"region": due.region, "date": due.date, "before": before.date}
    path = request.out / ALERTS
    write_json(
        path,
        {
            "type": "FeatureCollection",
            **about,
            "notes": notes,
            "features": [alert.feature(box) for alert in found],
        },
    )
    href = f"./{ALERTS}"
    if request.remote is not None:
        href = f"{request.remote}/{ALERTS}"
        objects.upload(path, href)
    asset = pystac.Asset(
        href, "Alerts: what changed since the result before", None, "application/geo+json", ["data"]
    )
    return {"alerts": asset}, f"{len(found):,} alerts since {about['before']}"
