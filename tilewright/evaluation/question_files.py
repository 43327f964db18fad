"""Questions and answers as their datasets write them: LRS-VQA, MME-RealWorld, XLRS-Bench and RSVQA.

Each reader takes a file and returns `Question`; `read_answers` reads what a model said. Nothing is downloaded, and no
image is opened.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tilewright.errors import InputError, nearest_name

from .questions import Question

__all__ = [
    "READERS",
    "read_answers",
    "read_lrs_vqa",
    "read_mme_realworld",
    "read_questions",
    "read_rsvqa",
    "read_xlrs",
]


def read_questions(path: str | Path, layout: str) -> list[Question]:
    """Return the questions of a file in one of the layouts of `READERS`.

    Raises
    ------
    InputError
        An unknown layout, a file that cannot be read, or a row that lacks something.
    """
    if layout not in READERS:
        raise InputError(f"unknown layout {layout!r}; {nearest_name(layout, READERS)}", place=str(path))
    return READERS[layout](Path(path))


def read_lrs_vqa(path: Path) -> list[Question]:
    """Return the questions of ``LRS_VQA_merged.jsonl``, or of one of its parts; the source leads the name.

    FAIR, STAR or GLH-Bridge is in front of the underscore of ``question_id``.
    """
    found = []
    for number, row in enumerate(_rows(path), 1):
        name = str(row.get("question_id", row.get("id", "")))
        if not name:
            raise InputError("has neither question_id nor id", place=f"{path}, row {number}")
        image, text, truth, category = _texts(
            row, ("image", "text", "ground_truth", "category"), path, number
        )
        found.append(Question(name, image, text, truth, category, name.partition("_")[0]))
    return found


def read_mme_realworld(path: Path) -> list[Question]:
    """Return the questions on remote sensing of MME-RealWorld's JSON; the source is their task."""
    keys = ("Question_id", "Image", "Text", "Ground truth", "Category", "Task")
    found = []
    for number, row in enumerate(_rows(path), 1):
        if str(row.get("Subtask", "")).replace("_", " ").lower() != "remote sensing":
            continue
        name, image, text, truth, category, task = _texts(row, keys, path, number)
        choices = tuple(str(choice) for choice in row.get("Answer choices", ()))
        found.append(Question(name, image, text, truth, category.lower(), task, choices))
    return found


def read_xlrs(path: Path) -> list[Question]:
    """Return the questions of XLRS-Bench from a JSON, JSON lines or Parquet file with the fields of its lite set.

    The category is the task below the ``/``, the source the one above.
    """
    keys = ("index", "question", "answer", "category")
    found = []
    for number, row in enumerate(_rows(path), 1):
        name, text, truth, category = _texts(row, keys, path, number)
        source, _, task = category.rpartition("/")
        choices = row.get("multi-choice options")
        listed = () if choices is None else tuple(str(choice) for choice in choices)
        found.append(Question(name, str(row.get("path", name)), text, truth, task, source, listed))
    return found


def read_rsvqa(path: Path) -> list[Question]:
    """Return the active questions of an RSVQA split: ``..._questions.json``, with ``..._answers.json`` beside it."""
    if not path.name.endswith("questions.json"):
        raise InputError("is not a file of questions", place=str(path), remedy="name ..._questions.json")
    answers = path.with_name(path.name.removesuffix("questions.json") + "answers.json")
    told = {row["id"]: row for row in _listed(_json(answers), "answers", answers)}
    found = []
    for number, row in enumerate(_listed(_json(path), "questions", path), 1):
        if not row.get("active"):
            continue
        name, image, kind, text = _texts(row, ("id", "img_id", "type", "question"), path, number)
        right = [told[one] for one in row.get("answers_ids", ()) if one in told]
        if not right:
            raise InputError(f"question {name} has no answer", place=str(answers))
        found.append(Question(name, f"{image}.tif", text, str(right[0]["answer"]), kind))
    return found


READERS: dict[str, Callable[[Path], list[Question]]] = {
    "lrs-vqa": read_lrs_vqa,
    "mme-realworld": read_mme_realworld,
    "xlrs": read_xlrs,
    "rsvqa": read_rsvqa,
}
"""Layouts by name; a rule of the same name scores each."""


def read_answers(path: str | Path) -> dict[str, str]:
    """Return the answers of a model, name of the question -> answer.

    A JSON object of that form, or rows (JSON or JSON lines) that have the name as ``question_id``, ``Question_id``,
    ``index`` or ``id``, and the answer as ``answer``, ``output``, ``Output``, ``prediction`` or ``text``, taken in
    this order.

    Raises `InputError` where a row lacks one of them, or a question is answered twice.
    """
    path = Path(path)
    if path.suffix == ".json":
        content = _json(path)
        if isinstance(content, dict) and all(isinstance(value, str) for value in content.values()):
            return content
    names, texts = (
        ("question_id", "Question_id", "index", "id"),
        ("answer", "output", "Output", "prediction", "text"),
    )
    found: dict[str, str] = {}
    for number, row in enumerate(_rows(path), 1):
        name = next((row[key] for key in names if key in row), None)
        answer = next((row[key] for key in texts if key in row), None)
        if name is None or answer is None:
            raise InputError(f"has {', '.join(row)}: no name or no answer", place=f"{path}, row {number}")
        if str(name) in found:
            raise InputError(f"question {name} is answered twice", place=f"{path}, row {number}")
        found[str(name)] = str(answer)
    return found


def _rows(path: Path) -> Iterable[Mapping[str, Any]]:
    if path.suffix == ".parquet":
        return _parquet(path)
    if path.suffix == ".json":
        return _listed(_json(path), None, path)
    found = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if line.strip():
            row = _parsed(line, f"{path}, line {number}")
            if not isinstance(row, dict):
                raise InputError("is no JSON object", place=f"{path}, line {number}")
            found.append(row)
    return found


def _parquet(path: Path) -> list[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        names = [name for name in parquet.read_schema(path).names if name != "image"]
        rows: list[Mapping[str, Any]] = parquet.read_table(path, columns=names).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"cannot be read: {error}", place=str(path)) from error
    return rows


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", place=str(path)) from error


def _json(path: Path) -> Any:
    return _parsed(_text(path), str(path))


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"is no JSON: {error}", place=place) from error


def _listed(content: Any, key: str | None, path: Path) -> list[Mapping[str, Any]]:
    rows = content.get(key) if key is not None and isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"holds no list of {key or 'rows'}", place=str(path))
    return rows


def _texts(row: Mapping[str, Any], keys: Iterable[str], path: Path, number: int) -> list[str]:
    missing = [key for key in keys if key not in row]
    if missing:
        raise InputError(f"has no {', '.join(missing)}", place=f"{path}, row {number}")
    return [str(row[key]) for key in keys]
