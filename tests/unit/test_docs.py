"""The docs say what is there: links, commands, modules, tests, tables and examples."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FOLDERS = "catalogs|pipeline|kernels|flows|tilewright|tests|docs|tools|benchmarks|examples|data"


# typer brings a click of its own in some versions and uses the installed one in others.
ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


pages = pytest.mark.parametrize("page", PAGES, ids=page_id)


def fences(page: Path) -> list[tuple[str, str]]:
    return FENCE.findall(page.read_text())


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Anchors of headings as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pages
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page_id(page)} links to {target}"
        if anchor:
            assert anchor in anchors(there), f"{page_id(page)} links to {target}"


def test_every_page_can_be_reached_from_the_index() -> None:
    found, waiting = set(), [ROOT / "docs" / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in found or page.suffix != ".md" or not page.is_file():
            continue
        found.add(page)
        for target in re.findall(r"\]\(([^)\s#]+)", prose(page)):
            if "://" not in target:
                waiting.append((page.parent / target).resolve())
    assert {page for page in PAGES if "docs" in page.relative_to(ROOT).parts} <= found


def commands(page: Path) -> list[str]:
    """Command lines of `tilewright` in fences of shells and in the text."""
    found = []
    for info, body in fences(page):
        if info.strip() in ("", "sh", "bash", "console"):
            lines = body.replace("\\\n", " ").splitlines()
            found += [
                line.removeprefix("$ ") for line in lines if line.startswith(("tilewright ", "$ tilew"))
            ]
    found += re.findall(r"`(tilewright [a-z][^`]*)`", prose(page))
    return [line for line in found if "[" not in line and "..." not in line]


@lru_cache
def command_line() -> Any:
    from tilewright.cli import app

    return typer.main.get_command(app)


@pages
def test_commands_parse(page: Path) -> None:
    for line in commands(page):
        arguments = shlex.split(line, comments=True)[1:]
        if arguments == ["--help"]:
            continue
        group = command_line()
        context = group.make_context("tilewright", list(arguments), resilient_parsing=True)
        name, command, rest = group.resolve_command(context, list(arguments))
        needs_arguments = len(arguments) > 1 or not any(p.required for p in command.params)
        try:
            command.make_context(name, rest, parent=context, resilient_parsing=not needs_arguments)
        except ClickException as error:
            pytest.fail(f"{page_id(page)}: {line}: {error}")


def attribute(name: str) -> Any:
    """The object that a dotted name means; raises where there is none."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


@pages
def test_names_of_the_package_exist(page: Path) -> None:
    for name in sorted(set(re.findall(r"\btilewright(?:\.[a-zA-Z_]\w*)+", page.read_text()))):
        if name.rpartition(".")[2] in ("kernels", "kernel_families") and "entry-points" in page.read_text():
            continue  # groups of entry points
        try:
            attribute(name)
        except (ImportError, AttributeError) as error:
            pytest.fail(f"{page_id(page)} names {name}: {error}")


@lru_cache
def names_of_tests(path: Path) -> frozenset[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return frozenset(n.name for n in nodes if isinstance(n, ast.FunctionDef) and n.name.startswith("test"))


@pages
def test_files_and_tests_exist(page: Path) -> None:
    for named in re.findall(rf"`((?:{FOLDERS})/[\w./-]+(?:::\w+)?)`", prose(page)):
        path, _, test = named.partition("::")
        assert (ROOT / path).exists(), f"{page_id(page)} names {path}"
        if test:
            assert test in names_of_tests(ROOT / path), f"{page_id(page)} names {named}"


def test_pages_that_the_code_names_exist() -> None:
    for folder in ("catalogs", "pipeline", "kernels", "flows", "tilewright", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for page in re.findall(r"docs/[\w./-]+\.md", path.read_text()):
                assert (ROOT / page).is_file(), f"{path.name} names {page}"


@pytest.mark.parametrize("wing", ["catalogs", "pipeline", "kernels", "flows", "tilewright"])
def test_the_architecture_names_every_module(wing: str) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    for path in sorted((ROOT / wing).glob("*.py")):
        if not path.name.startswith("__"):
            assert f"`{wing}/{path.name}`" in page


def test_every_promise_names_its_tests_and_limits() -> None:
    promises = sorted((ROOT / "docs" / "promises").glob("*.md"))
    assert len(promises) == 7
    for page in promises:
        text = page.read_text()
        assert all(
            f"## {part}" in text for part in ("What it says", "How it is kept", "What proves it", "Limits")
        )
        assert len(re.findall(r"`tests/[\w./]+::test_\w+`", text)) >= 3


def tables_tool() -> Any:
    spec = importlib.util.spec_from_file_location("docs_tables", ROOT / "tools" / "docs_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["recipe", "settings", "report", "reasons", "memory"])
def test_tables_say_what_the_code_says(name: str) -> None:
    tool = tables_tool()
    page = (ROOT / tool.PAGES[name]).read_text()
    assert f"<!-- table: {name} -->\n\n{tool.table(name)}\n\n<!-- end -->" in page, "run tools/docs_tables.py"


def test_tables_are_complete() -> None:
    from dataclasses import fields

    from tilewright.flows.recipe import Recipe
    from tilewright.pipeline.memory import Memory
    from tilewright.pipeline.report import Report
    from tilewright.pipeline.settings import Settings
    from tilewright.pipeline.source import Reason

    tool = tables_tool()
    keys = tool.recipe_keys()
    assert all(meaning for *_, meaning in keys)
    schema = Recipe.model_json_schema()
    nested = [p for d in schema["$defs"].values() for p in d["properties"]]
    assert len(keys) == len(schema["properties"]) + len(nested)
    for name, cls in (("Report", Report), ("Memory", Memory), ("Settings", Settings)):
        rows = tool.documented_fields(f"pipeline/{name.lower()}.py", name)
        assert [r[0] for r in rows] == [f.name for f in fields(cls)]
    rows = tool.documented_fields("pipeline/source.py", "Reason")
    assert [(r[0], int(r[1])) for r in rows] == [(r.name, r.value) for r in Reason]


@pages
def test_recipes_are_recipes(page: Path) -> None:
    from tilewright.flows.recipe import Recipe

    for info, body in fences(page):
        data = yaml.safe_load(body) if info.strip() == "yaml" else None
        if isinstance(data, dict) and "catalog" in data:
            Recipe.parse(data, page_id(page))


def test_example_recipes_are_recipes() -> None:
    from tilewright.flows.recipe import Recipe

    found = sorted((ROOT / "examples").glob("*.yaml"))
    assert found
    for path in found:
        Recipe.read(path)


def messages() -> str:
    """All text of the package, with `...` for what is filled in."""
    parts = []
    for folder in ("catalogs", "pipeline", "kernels", "flows", "tilewright"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    values = (v.value if isinstance(v, ast.Constant) else "..." for v in node.values)
                    parts.append("".join(map(str, values)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    parts.append(node.value)
    return "\n".join(parts)


def test_messages_of_the_page_on_trouble_are_those_of_the_code() -> None:
    said = messages()
    rows = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs/guides/trouble.md").read_text(), re.MULTILINE)
    assert len(rows) > 30
    for message in rows:
        pattern = r"[^\n]*".join(re.escape(part.strip()) for part in message.split("...") if part.strip())
        assert re.search(pattern, said), message


def runnable() -> list[Path]:
    return [page for page in PAGES if any(info == "python run" for info, _ in fences(page))]


def prepared(page: Path, folder: Path) -> list[str]:
    """Link data and examples into ``folder``, write named blocks as files; return the blocks to run."""
    for name in ("data", "examples"):
        (folder / name).symlink_to(ROOT / name)
    blocks = []
    for info, body in fences(page):
        if named := re.match(r"# (\w+\.(?:py|yaml))\n", body):
            (folder / named[1]).write_text(body)
        if info == "python run":
            blocks.append(body)
    return blocks


@pytest.mark.parametrize("page", runnable(), ids=page_id)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "example"}
    for body in prepared(page, tmp_path):
        exec(compile(body, page_id(page), "exec"), names)


def test_the_users_kernel_of_the_readme_is_right(tmp_path: Path) -> None:
    from tilewright.kernels.load import load_kernel
    from tilewright.testing import check_kernel

    prepared(ROOT / "README.md", tmp_path)
    check_kernel(load_kernel(f"{tmp_path}/mine.py:blur")).raise_for_findings()


def test_the_readme_has_the_words_of_the_promises() -> None:
    readme = (ROOT / "README.md").read_text()
    for page in sorted((ROOT / "docs" / "promises").glob("*.md")):
        title = page.read_text().splitlines()[0].removeprefix("# ")
        assert f"| {title} | [docs/promises/{page.name}]" in readme


def test_import_is_light() -> None:
    import subprocess
    import sys

    heavy = ("torch", "dask", "prefect", "xarray", "rasterio")
    code = f"import sys, tilewright; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
