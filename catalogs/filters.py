"""CQL2 filters: parsed once, sent to servers that take them, and evaluated here for everything else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tilewright.errors import InputError

__all__ = ["Filter", "cloud_filter", "query_filter"]

_COMPARE = {"eq": "=", "neq": "<>", "lt": "<", "lte": "<=", "gt": ">", "gte": ">="}
_PATTERNS = {"startsWith": "{}%", "endsWith": "%{}", "contains": "%{}%"}
_MEMBERS = {"id", "collection", "geometry", "datetime"}


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on an Item in CQL2 (OGC 21-065r2), evaluated by the ``cql2`` package.

    A comparison with a property that an Item does not have is unknown, as NULL is in SQL, and unknown is
    not a match: the same that a server's database does.
    """

    json: str
    """CQL2-JSON as text: hashable, and canonical enough to compare."""

    @classmethod
    def parse(cls, expression: str | Mapping[str, Any] | Filter | None) -> Filter | None:
        """Read CQL2-JSON (a mapping) or CQL2 text.

        Raises
        ------
        InputError
            The expression does not parse.
        """
        if expression is None or isinstance(expression, Filter):
            return expression
        from cql2 import ParseError, parse_json, parse_text

        try:
            if isinstance(expression, str):
                parsed = parse_text(expression).to_json()
            else:
                parsed = parse_json(json.dumps(dict(expression))).to_json()
        except (ParseError, ValueError, TypeError) as error:
            raise _bad(expression, " ".join(str(error).split())) from error
        if not isinstance(parsed, dict):
            raise _bad(expression, "it is no condition")
        return cls(json.dumps(parsed, sort_keys=True))

    def __and__(self, other: Filter | None) -> Filter:
        """Return the filter that holds where both do."""
        if other is None:
            return self
        return Filter(json.dumps({"op": "and", "args": [self.to_dict(), other.to_dict()]}, sort_keys=True))

    def to_dict(self) -> dict[str, Any]:
        """Return CQL2-JSON, as it is sent to a server."""
        result: dict[str, Any] = json.loads(self.json)
        return result

    def __str__(self) -> str:
        """Return CQL2 text."""
        from cql2 import Expr

        return str(Expr(self.json).to_text())

    def properties(self) -> set[str]:
        """Return the names of the properties that the expression reads."""
        return set(_properties(self.to_dict()))

    def select(self, items: Iterable[Mapping[str, Any]]) -> list[bool]:
        """Return for each Item, as a dictionary, whether it matches.

        Raises
        ------
        InputError
            The expression cannot be evaluated: an unknown function, or a comparison of a number with text.
        """
        from cql2 import Expr

        expression = Expr(self.json)
        return [self._matches(expression, item) for item in items]

    def _matches(self, expression: Any, item: Mapping[str, Any]) -> bool:
        try:
            rest = expression.reduce(dict(item)).to_json()
        except Exception as error:
            raise InputError(
                f"the filter cannot be evaluated on Item {item.get('id')}: {error}",
                place=f"filter {self}",
                remedy="check the types in the filter and the Item",
            ) from error
        if isinstance(rest, bool):
            return rest
        if any(not _has(item, name) for name in _properties(rest)):
            return False
        raise InputError(
            f"the filter cannot be evaluated; what remains is {json.dumps(rest)}",
            place=f"filter {self}",
            remedy="compare numbers with numbers and text with text, and use functions of CQL2 only",
        )


def cloud_filter(percent: float | None) -> Filter | None:
    """Return the filter for at most ``percent`` of cloud (``eo:cloud_cover``, 0..100)."""
    if percent is None:
        return None
    if not 0 <= percent <= 100:
        raise InputError(
            f"{percent:g} is not a share of cloud",
            place="cloud_cover",
            remedy="give percent between 0 and 100",
        )
    return Filter.parse({"op": "<=", "args": [{"property": "eo:cloud_cover"}, percent]})


def query_filter(query: Mapping[str, Mapping[str, Any]] | None) -> Filter | None:
    """Return the CQL2 of a STAC ``query`` (https://github.com/stac-api-extensions/query).

    Raises
    ------
    InputError
        An operator of ``query`` that the extension does not have.
    """
    if not query:
        return None
    parts: list[dict[str, Any]] = []
    for name, conditions in query.items():
        if not isinstance(conditions, Mapping):
            raise InputError(
                f"{name!r} needs operators, not {conditions!r}",
                place="query",
                remedy='write {"lte": 20} or use filter',
            )
        parts.extend(_condition(name, operator, value) for operator, value in conditions.items())
    return Filter.parse(parts[0] if len(parts) == 1 else {"op": "and", "args": parts})


def _condition(name: str, operator: str, value: Any) -> dict[str, Any]:
    prop = {"property": name}
    if operator in _COMPARE:
        return {"op": _COMPARE[operator], "args": [prop, value]}
    if operator == "in":
        return {"op": "in", "args": [prop, list(value)]}
    if operator in _PATTERNS:
        return {"op": "like", "args": [prop, _PATTERNS[operator].format(value)]}
    known = ", ".join([*_COMPARE, "in", *_PATTERNS])
    raise InputError(f"unknown operator {operator!r} of {name!r}", place="query", remedy=f"known: {known}")


def _properties(expression: Any) -> Iterable[str]:
    if isinstance(expression, Mapping):
        if isinstance(expression.get("property"), str):
            yield expression["property"]
        for value in expression.values():
            yield from _properties(value)
    elif isinstance(expression, list):
        for value in expression:
            yield from _properties(value)


def _has(item: Mapping[str, Any], name: str) -> bool:
    if name in _MEMBERS and item.get(name) is not None:
        return True
    return (item.get("properties") or {}).get(name.removeprefix("properties.")) is not None


def _bad(expression: object, reason: str) -> InputError:
    return InputError(
        f"not CQL2: {reason[:200]}",
        place=f"filter {expression}",
        remedy="write CQL2 text such as \"eo:cloud_cover < 20 AND platform = 'sentinel-2a'\" or CQL2-JSON",
    )
