"""Validation of STAC objects with schemas that are on the disk: never the network.

pystac validates by downloading the schema of each extension. A run on a cluster without a way out must be able
to validate its own Item, and a schema must not change under a run.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import pystac
from pystac.validation import set_validator, validate_dict
from pystac.validation.local_validator import get_local_schema_cache
from pystac.validation.stac_validator import STACValidator

from tilewright.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jsonschema import ValidationError
    from pystac.stac_object import STACObjectType
    from referencing import Registry

__all__ = ["LocalSchemaValidator", "known_schemas", "use_local_schemas", "validate_item"]

_ALIASES = {
    # The projection extension refers to PROJ's schema by an address that redirects.
    "https://proj.org/schemas/v0.7/projjson.schema.json": "projjson-v0.7.json",
}


@cache
def known_schemas() -> dict[str, dict[str, Any]]:
    """Return all schemas at hand by address: STAC 1.1.0 core and GeoJSON from pystac, extensions from here."""
    schemas: dict[str, dict[str, Any]] = dict(get_local_schema_cache())
    folder = resources.files(__package__ or "tilewright.catalogs").joinpath("schemas")
    for file in folder.iterdir():
        if file.name.endswith(".json"):
            schema = json.loads(file.read_text(encoding="utf-8"))
            schemas[schema["$id"].rstrip("#")] = schema
    return schemas


@cache
def _registry() -> Registry[Any]:
    from jsonschema_specifications import REGISTRY
    from referencing import Resource
    from referencing.jsonschema import DRAFT7

    ours = [(uri, Resource.from_contents(s, DRAFT7)) for uri, s in known_schemas().items()]
    registry: Registry[Any] = REGISTRY.with_resources(ours)
    return registry


class LocalSchemaValidator(STACValidator):
    """A validator for ``pystac.validation`` that knows only local schemas."""

    def validate_core(
        self,
        stac_dict: dict[str, Any],
        stac_object_type: STACObjectType,
        stac_version: str,
        href: str | None = None,
    ) -> str:
        """Validate against the core schema of the object's type."""
        kind = {"feature": "item"}.get(str(stac_object_type).lower(), str(stac_object_type).lower())
        return self._check(
            stac_dict,
            f"https://schemas.stacspec.org/v{stac_version}/{kind}-spec/json-schema/{kind}.json",
            href,
        )

    def validate_extension(
        self,
        stac_dict: dict[str, Any],
        stac_object_type: STACObjectType,
        stac_version: str,
        extension_id: str,
        href: str | None = None,
    ) -> str:
        """Validate against the schema of one extension."""
        return self._check(stac_dict, extension_id, href)

    @staticmethod
    def _check(stac_dict: dict[str, Any], uri: str, href: str | None) -> str:
        from jsonschema import Draft7Validator

        schema = known_schemas().get(uri.rstrip("#"))
        if schema is None:
            raise pystac.errors.STACLocalValidationError(f"no local schema for {uri}")
        errors = list(Draft7Validator(schema, registry=_registry()).iter_errors(stac_dict))
        if errors:
            worst = _most_telling(errors)
            where = "/".join(str(part) for part in worst.absolute_path) or "the object"
            text = f"{where}: {worst.message[:300]} (schema {uri})"
            raise pystac.errors.STACValidationError(text, source=errors) from worst
        return uri


def _most_telling(errors: Iterable[ValidationError]) -> ValidationError:
    """Return the error that lies deepest in the object.

    The schemas of extensions are alternatives over Items and Collections, so that their outermost error says no
    more than that the Item is none of them.
    """

    def leaves(error: ValidationError) -> Iterator[ValidationError]:
        for cause in error.context or ():
            yield from leaves(cause)
        if not error.context:
            yield error

    found = [leaf for error in errors for leaf in leaves(error)]
    # An alternative for another type of object complains about the type first: that is not what is wrong.
    telling = [leaf for leaf in found if list(leaf.absolute_path) != ["type"]] or found
    return max(telling, key=lambda leaf: len(leaf.absolute_path))


def use_local_schemas() -> None:
    """Make every ``.validate()`` of pystac in this process use the local schemas."""
    set_validator(LocalSchemaValidator())


def validate_item(item: pystac.Item | dict[str, Any]) -> list[str]:
    """Validate an Item against STAC core and every extension it names; return the schemas' addresses.

    Raises
    ------
    StoreError
        The Item breaks a schema, or names an extension whose schema is not at hand.
    """
    content = item if isinstance(item, dict) else item.to_dict(include_self_link=False, transform_hrefs=False)
    try:
        json.dumps(content, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"a value cannot be written as JSON: {error}", place=str(content.get("id", "Item"))
        ) from error
    try:
        return [str(uri) for uri in validate_dict(content, validator=LocalSchemaValidator())]
    except (pystac.errors.STACValidationError, pystac.errors.STACLocalValidationError) as error:
        raise StoreError(
            f"the STAC Item is not valid: {error}",
            place=str(content.get("id", "Item")),
            remedy="correct the named field",
        ) from error
