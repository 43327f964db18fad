"""Dates and filters: what is asked, in all its spellings."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pystac_client.item_search import ItemSearch

from tilewright.catalogs.filters import Filter, cloud_filter, query_filter
from tilewright.catalogs.times import Interval
from tilewright.errors import InputError


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("2024", "2024-01-01T00:00:00Z/2024-12-31T23:59:59.999999Z"),
        ("2024-02", "2024-02-01T00:00:00Z/2024-02-29T23:59:59.999999Z"),
        ("2023-02-28", "2023-02-28T00:00:00Z/2023-02-28T23:59:59.999999Z"),
        ("2024-05-01T10:30:00Z", "2024-05-01T10:30:00Z"),
        ("2024-05-01T10:30:00+02:00", "2024-05-01T08:30:00Z"),
        ("2024-05-01T10:30:00", "2024-05-01T10:30:00Z"),
        ("2023/2024-03", "2023-01-01T00:00:00Z/2024-03-31T23:59:59.999999Z"),
        ("../2024", "../2024-12-31T23:59:59.999999Z"),
        ("2024/..", "2024-01-01T00:00:00Z/.."),
        ("2024/", "2024-01-01T00:00:00Z/.."),
        (date(2024, 5, 1), "2024-05-01T00:00:00Z/2024-05-01T23:59:59.999999Z"),
        (datetime(2024, 5, 1, tzinfo=UTC), "2024-05-01T00:00:00Z"),
        (["2024-05-01", None], "2024-05-01T00:00:00Z/.."),
    ],
)
def test_every_spelling_of_time(given: Any, text: str) -> None:
    assert str(Interval.parse(given)) == text


@pytest.mark.parametrize(
    "given", ["2024", "2024-02", "2023-02-28", "2023/2024-03", "2024-05-01T10:30:00Z", "../2024-05"]
)
def test_pystac_client_reads_the_same_span(given: str) -> None:
    theirs = ItemSearch("https://example.com", datetime=given).get_parameters()["datetime"]
    ours = str(Interval.parse(given))
    # We end a day at its last microsecond, pystac-client at its last second.
    assert ours.replace(".999999Z", "Z") == theirs


@pytest.mark.parametrize("given", ["2024-13", "yesterday", "2024/2025/2026", "../..", "24-01-01", ""])
def test_no_dates(given: str) -> None:
    with pytest.raises(InputError, match="datetime"):
        Interval.parse(given)


@pytest.mark.parametrize(
    "given", ["2024/2023", "2024-05-02/2024-05-01", "2024-05-01T10:00:00Z/2024-05-01T09:00:00Z"]
)
def test_reversed_dates(given: str) -> None:
    with pytest.raises(InputError, match=r"reversed.*earlier one first") as caught:
        Interval.parse(given)
    assert caught.value.exit_code == 2


@given(
    st.datetimes(timezones=st.just(UTC)),
    st.datetimes(timezones=st.just(UTC)),
    st.datetimes(timezones=st.just(UTC)),
)
def test_an_instant_is_inside_exactly_when_between(a: datetime, b: datetime, when: datetime) -> None:
    interval = Interval(min(a, b), max(a, b))
    assert interval.overlaps(when, when) == (min(a, b) <= when <= max(a, b))


ITEM: dict[str, Any] = {
    "type": "Feature",
    "id": "x",
    "collection": "c",
    "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]},
    "properties": {
        "eo:cloud_cover": 12.5,
        "platform": "sentinel-2a",
        "n": None,
        "datetime": "2024-04-22T17:53:02Z",
    },
}


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        ("eo:cloud_cover < 20", True),
        ("eo:cloud_cover < 10 OR platform = 'sentinel-2a'", True),
        ("missing = 3", False),
        ("NOT (missing = 3)", False),
        ("missing IS NULL", True),
        ("n = 1", False),
        ("id = 'x' AND collection = 'c'", True),
        ("S_INTERSECTS(geometry, POINT(0.5 0.5))", True),
        ("datetime > TIMESTAMP('2024-05-01T00:00:00Z')", False),
        ({"op": "in", "args": [{"property": "platform"}, ["sentinel-2a", "sentinel-2b"]]}, True),
    ],
)
def test_cql2_follows_the_logic_of_sql(expression: Any, holds: bool) -> None:
    parsed = Filter.parse(expression)
    assert parsed is not None
    assert parsed.select([ITEM]) == [holds]
    assert Filter.parse(str(parsed)) == parsed  # text and JSON say the same


@pytest.mark.parametrize("expression", ["eo:cloud_cover <", "bad bad", {"op": "foo"}, {}])
def test_bad_cql2(expression: Any) -> None:
    with pytest.raises(InputError, match="not CQL2"):
        Filter.parse(expression)


@pytest.mark.parametrize(
    "expression", ["platform < 5", {"op": "frobnicate", "args": [{"property": "platform"}]}]
)
def test_what_cannot_be_evaluated_is_said(expression: Any) -> None:
    parsed = Filter.parse(expression)
    assert parsed is not None
    with pytest.raises(InputError, match="cannot be evaluated"):
        parsed.select([ITEM])


def test_query_and_cloud_cover_become_cql2() -> None:
    joined = query_filter({"platform": {"startsWith": "sentinel"}, "eo:cloud_cover": {"gte": 10, "neq": 11}})
    assert joined is not None
    assert joined.select([ITEM]) == [True]
    cloud = cloud_filter(12)
    assert cloud is not None
    assert (cloud & joined).select([ITEM]) == [False]
    with pytest.raises(InputError, match=r"unknown operator 'less'.*lte"):
        query_filter({"eo:cloud_cover": {"less": 10}})
    with pytest.raises(InputError, match="between 0 and 100"):
        cloud_filter(140)
