"""The tables of the docs that repeat what the code says: recipe keys, report fields, settings, reasons, memory terms.

``python tools/docs_tables.py`` rewrites them between ``<!-- table: NAME -->`` and ``<!-- end -->``; a test
compares pages and code.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "recipe": "docs/guides/recipe.md",
    "settings": "docs/guides/apply.md",
    "report": "docs/guides/outputs.md",
    "reasons": "docs/guides/outputs.md",
    "memory": "docs/guides/memory.md",
}


def recipe_keys() -> list[tuple[str, str, str, str]]:
    """Return (dotted key, type, default, meaning) of every key of a recipe, in the order of the schema."""
    from tilewright.flows.recipe import Recipe

    return list(_keys(Recipe, ""))


def _keys(model: type[BaseModel], prefix: str) -> Any:
    properties = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        nested = _nested(field.annotation)
        default = (
            "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
        )
        kind = "mapping" if nested is not None else _kind(properties[name])
        yield f"{prefix}{name}", kind, default, _flat(field.description or "")
        if nested is not None:
            yield from _keys(nested, f"{prefix}{name}.")


def _nested(annotation: Any) -> type[BaseModel] | None:
    for kind in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _default(value: Any) -> str:
    if isinstance(value, BaseModel) or value is None or value in ("", {}):
        return ""
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _kind(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        kinds = dict.fromkeys(_kind(s) for s in schema["anyOf"] if s.get("type") != "null")
        return " or ".join(kinds)
    if "enum" in schema:
        return ", ".join(f"`{v}`" for v in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        if "prefixItems" in schema:
            return f"{len(schema['prefixItems'])} numbers"
        return f"list of {_kind(schema['items'])}"
    names = {"string": "text", "object": "mapping", "integer": "whole number"}
    return names.get(schema.get("type", ""), schema.get("type", "any"))


def documented_fields(path: str, name: str) -> list[tuple[str, str, str]]:
    """Return (field, annotation or value, meaning) of a class whose fields have strings underneath."""
    tree = ast.parse((ROOT / path).read_text())
    (cls,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    rows = []
    for node, below in zip(cls.body, [*cls.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            field, kind = node.target.id, ast.unparse(node.annotation)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            field, kind = node.targets[0].id, ast.unparse(node.value)
        else:
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            rows.append((field, kind, _flat(str(below.value.value))))
    return rows


def _flat(text: str) -> str:
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def table(name: str) -> str:
    """Return the Markdown of one table."""
    if name == "recipe":
        rows: list[tuple[str, ...]] = [(f"`{k}`", kind, d, text) for k, kind, d, text in recipe_keys()]
        return _markdown(("key", "takes", "default", "meaning"), rows)
    if name == "reasons":
        found = documented_fields("pipeline/source.py", "Reason")
        return _markdown(("code", "reason", "meaning"), [(v, f"`{f.lower()}`", t) for f, v, t in found])
    where = {
        "report": ("pipeline/report.py", "Report"),
        "memory": ("pipeline/memory.py", "Memory"),
        "settings": ("pipeline/settings.py", "Settings"),
    }[name]
    heads = {"report": "field", "memory": "term", "settings": "setting"}
    return _markdown((heads[name], "meaning"), [(f"`{f}`", t) for f, _, t in documented_fields(*where)])


def _markdown(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def updated(text: str) -> str:
    """Return a page with its tables as the code says them now."""

    def fresh(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n\n{table(match[1])}\n\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", fresh, text, flags=re.DOTALL)


def main() -> None:
    """Rewrite the tables of all pages."""
    for page in sorted(set(PAGES.values())):
        path = ROOT / page
        path.write_text(updated(path.read_text()))


if __name__ == "__main__":
    main()
