"""The ledger: what a resume may keep, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tilewright.errors import ResumeError
from tilewright.pipeline.ledger import NAME, Ledger, differences, fingerprint_digest

PRINT = {"kernel": {"name": "blur", "digest": "ab"}, "stitch": {"tile": 512}, "dates": [1, 2]}
LAYOUT = {"shard": 1024, "only": None}


def begun(folder: Path) -> Ledger:
    ledger = Ledger.open(folder, PRINT, LAYOUT)
    ledger.finish("0.0", digest="x", pixels=9)
    ledger.finish("0.1", digest="y", pixels=9)
    return ledger


def test_a_second_start_finds_the_finished_shards(tmp_path: Path) -> None:
    begun(tmp_path / "out").note(statistics={"threshold": 0.25})
    again = Ledger.open(tmp_path / "out", PRINT, LAYOUT)
    assert again.entries == {
        n: {"shard": n, "digest": d, "pixels": 9} for n, d in (("0.0", "x"), ("0.1", "y"))
    }
    assert again.header["statistics"] == {"threshold": 0.25}
    assert Ledger.read(tmp_path / "out").header == again.header


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_that_a_crash_cut_short_is_dropped_and_its_shard_redone(tmp_path: Path, cut: int) -> None:
    begun(tmp_path)
    path = tmp_path / NAME
    text = path.read_bytes()
    path.write_bytes(text[:-cut])
    again = Ledger.open(tmp_path, PRINT, LAYOUT)
    assert list(again.entries) == ["0.0"]
    again.finish("0.1", digest="y", pixels=9)
    assert path.read_bytes() == text


def test_a_ledger_whose_first_line_was_cut_short_begins_again(tmp_path: Path) -> None:
    Ledger.open(tmp_path, PRINT, LAYOUT)
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes()[:-4])
    assert Ledger.open(tmp_path, PRINT, LAYOUT).entries == {}
    assert Ledger.read(tmp_path).header["depends_on"] == PRINT


def test_another_fingerprint_is_refused_with_the_difference(tmp_path: Path) -> None:
    begun(tmp_path)
    before = (tmp_path / NAME).read_bytes()
    other = {**PRINT, "kernel": {"name": "blur", "digest": "cd"}, "dates": [1, 3]}
    with pytest.raises(ResumeError) as caught:
        Ledger.open(tmp_path, other, LAYOUT)
    assert 'kernel.digest: "ab" -> "cd"' in str(caught.value)
    assert "dates[1]: 2 -> 3" in str(caught.value)
    assert "--fresh" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert (tmp_path / NAME).read_bytes() == before


def test_another_shard_is_refused(tmp_path: Path) -> None:
    begun(tmp_path)
    with pytest.raises(ResumeError, match=r"layout\.shard: 1024 -> 512"):
        Ledger.open(tmp_path, PRINT, {"shard": 512, "only": None})


def test_many_differences_are_counted(tmp_path: Path) -> None:
    Ledger.open(tmp_path, {str(i): i for i in range(9)}, LAYOUT)
    with pytest.raises(ResumeError, match="and 6 more"):
        Ledger.open(tmp_path, {str(i): i + 1 for i in range(9)}, LAYOUT)


@pytest.mark.parametrize("text", ['{"not": "ours"}\n', "[1, 2]\n", "7\n"])
def test_a_foreign_file_of_that_name_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(ResumeError, match="ledger"):
        Ledger.open(tmp_path, PRINT, LAYOUT)
    assert (tmp_path / NAME).read_text() == text


def test_no_ledger_to_read(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="no ledger"):
        Ledger.read(tmp_path)


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    shuffled = json.loads(json.dumps(PRINT))
    shuffled = dict(reversed(shuffled.items()))
    assert fingerprint_digest(shuffled) == fingerprint_digest(PRINT)
    assert fingerprint_digest({**PRINT, "dates": [2, 1]}) != fingerprint_digest(PRINT)


def test_differences_name_the_leaf() -> None:
    assert list(differences({"a": [1, {"b": 2}], "c": 1}, {"a": [1, {"b": 3}]})) == [
        "a[1].b: 2 -> 3",
        "c: 1 -> null",
    ]
    assert list(differences(PRINT, PRINT)) == []
