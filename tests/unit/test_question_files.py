"""Questions and answers are read as their datasets write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from tilewright.errors import InputError
from tilewright.evaluation.question_files import READERS, read_answers, read_questions
from tilewright.evaluation.questions import RULES, score_answers


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_every_layout_has_a_rule() -> None:
    assert set(READERS) <= set(RULES)


def test_lrs_vqa(tmp_path: Path) -> None:
    row = {
        "image": "a.png",
        "category": "count",
        "text": "How many?",
        "ground_truth": "2",
        "hbox": [1, 2, 3, 4],
    }
    path = lines(tmp_path / "q.jsonl", [row | {"question_id": "GLH-Bridge_7"}, row | {"id": "STAR_1"}])
    first, second = read_questions(path, "lrs-vqa")
    assert (first.name, first.source, first.truth, first.category) == (
        "GLH-Bridge_7",
        "GLH-Bridge",
        "2",
        "count",
    )
    assert second.source == "STAR"
    answers = read_answers(lines(tmp_path / "a.jsonl", [{"question_id": "GLH-Bridge_7", "text": "two"}]))
    scores = score_answers([first, second], answers, "lrs-vqa")
    assert (scores.overall("GLH-Bridge"), scores.overall("STAR"), scores.unanswered) == (1.0, 0.0, 1)


def test_mme_realworld(tmp_path: Path) -> None:
    row = {
        "Question_id": "perception/remote_sensing/color/0001",
        "Image": "remote_sensing/a.png",
        "Text": "What colour?",
        "Answer choices": ["(A) red", "(B) blue"],
        "Ground truth": "B",
        "Category": "Color",
        "Task": "Perception",
    }
    path = tmp_path / "q.json"
    path.write_text(json.dumps([row | {"Subtask": "Remote Sensing"}, row | {"Subtask": "Monitoring"}]))
    (question,) = read_questions(path, "mme-realworld")
    assert (question.category, question.source, question.choices[1]) == ("color", "Perception", "(B) blue")
    assert RULES["mme-realworld"]("blue", question)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_xlrs(tmp_path: Path, suffix: str) -> None:
    rows = [
        {
            "index": 3,
            "question": "Which uses?",
            "multi-choice options": ["(A) farm", "(B) port"],
            "answer": "AB",
            "category": "Land use classification/Overall Land use classification",
            "l2-category": "x",
            "path": "a.png",
        }
    ]
    path = tmp_path / f"q{suffix}"
    if suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist([row | {"image": b"not read"} for row in rows]), path)
    else:
        lines(path, rows)
    (question,) = read_questions(path, "xlrs")
    assert (question.name, question.source) == ("3", "Land use classification")
    assert question.choices == ("(A) farm", "(B) port")
    assert RULES["xlrs"]("(B) (A)", question)
    assert not RULES["xlrs"]("A", question)


def test_rsvqa(tmp_path: Path) -> None:
    questions = {
        "questions": [
            {
                "id": 0,
                "img_id": 4,
                "type": "count",
                "question": "How many?",
                "answers_ids": [9],
                "active": True,
            },
            {"id": 1, "active": False},
        ]
    }
    answers = {"answers": [{"id": 9, "question_id": 0, "answer": "37", "active": True}]}
    path = tmp_path / "LR_split_test_questions.json"
    path.write_text(json.dumps(questions))
    with pytest.raises(InputError, match=r"LR_split_test_answers\.json"):
        read_questions(path, "rsvqa")
    (tmp_path / "LR_split_test_answers.json").write_text(json.dumps(answers))
    (question,) = read_questions(path, "rsvqa")
    assert (question.image, question.truth, question.category) == ("4.tif", "37", "count")
    assert RULES["rsvqa"]("99", question)
    assert not RULES["rsvqa"]("101", question)


def test_answers(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"q1": "yes"}))
    assert read_answers(path) == {"q1": "yes"}
    path.write_text(json.dumps([{"Question_id": "q1", "Text": "Is it?", "Output": "yes"}]))
    assert read_answers(path) == {"q1": "yes"}
    with pytest.raises(InputError, match="twice"):
        read_answers(lines(tmp_path / "b.jsonl", [{"id": 1, "answer": "x"}] * 2))
    with pytest.raises(InputError, match="row 1: has id: no name or no answer"):
        read_answers(lines(tmp_path / "b.jsonl", [{"id": 1}]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1: is no JSON"),
        ("[1]", "is no JSON object"),
        ('{"question_id": "STAR_1"}', "row 1: has no image, text"),
        ('{"image": "a"}', "neither question_id nor id"),
    ],
)
def test_files_that_are_not_what_they_should_be(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "q.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        read_questions(tmp_path / "q.jsonl", "lrs-vqa")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for name in ("q.jsonl", "q.json", "q.parquet"):
        with pytest.raises(InputError, match="cannot be read"):
            read_questions(tmp_path / name, "lrs-vqa")
    with pytest.raises(InputError, match="did you mean 'rsvqa'"):
        read_questions(tmp_path / "q.json", "rsvq")
