"""The rules by which answers are right, against the numbers of LRS-VQA's and RSCoVLM's scorers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tilewright.errors import InputError
from tilewright.evaluation.questions import (
    RULES,
    Question,
    count_range,
    mme_letter,
    score_answers,
    strict_letters,
    xlrs_letters,
)
from tilewright.evaluation.synsets import Synsets

FOLDER = Path(__file__).parent / "official"
LRS: dict[str, Any] = json.loads((FOLDER / "lrs_vqa" / "public_scorer.json").read_text())
COVLM: dict[str, Any] = json.loads((FOLDER / "rscovlm" / "public.json").read_text())


def asked(truth: str, category: str = "x", name: str = "q", choices: tuple[str, ...] = ()) -> Question:
    return Question(name, "", "", truth, category, name.partition("_")[0], choices)


@pytest.mark.parametrize("pair", LRS["pairs"], ids=lambda pair: f"{pair['gold']}-{pair['prediction']}")
def test_lrs_vqa_rule(pair: dict[str, Any]) -> None:
    assert RULES["lrs-vqa"](pair["prediction"], asked(pair["gold"])) is pair["official_correct"]


@pytest.mark.parametrize("pair", LRS["pairs"], ids=lambda pair: f"{pair['gold']}-{pair['prediction']}")
def test_synsets_are_those_of_wordnet(pair: dict[str, Any]) -> None:
    assert Synsets.built_in().shared(pair["gold"], pair["prediction"]) == bool(pair["shared_synsets"])


def test_lrs_vqa_scores() -> None:
    items = LRS["aggregation"]["items"]
    questions = [asked(item["ground_truth"], item["category"], item["id"]) for item in items]
    scores = score_answers(questions, {item["id"]: item["text"] for item in items}, "lrs-vqa")
    assert scores.skipped == sum(item["ground_truth"] == "" for item in items) == 1
    for source, official in LRS["aggregation"]["official"].items():
        assert round(100 * scores.overall(source), 2) == official["OA"]
        assert round(100 * scores.average(source), 2) == official["AA"]
        for category, counts in official["per_category"]:
            key = (source, category)
            assert f"{scores.right[key]}/{scores.asked[key]}" == counts
        assert sum(n for (own, _), n in scores.asked.items() if own == source) == official["total"]


def test_wups() -> None:
    for row in COVLM["wups"]:
        assert RULES["wups"](row["output"], asked(row["ground_truth"])) == bool(row["acc"]), row


@pytest.mark.parametrize("rule", ["contains", "begins", "identical"])
def test_rules_of_strings(rule: str) -> None:
    name = {"contains": "contain", "begins": "startswith", "identical": "identical"}[rule]
    for row in COVLM["qa_acc_rules"]:
        found = RULES[rule](row["output"], asked(row["ground_truth"]))
        assert found == bool(row[f"compute_{name}_acc"]), row


def test_rscovlm_scores() -> None:
    items = COVLM["lrsvqa_scores"]["items"]
    official = COVLM["lrsvqa_scores"]["official"]
    questions = [asked(item["ground_truth"], item["category"], item["question_id"]) for item in items]
    answers = {item["question_id"]: item["output"] for item in items}
    found = score_answers(questions, answers, "wups").summary()
    names = {"FAIR": "FAIR", "STAR": "STAR", "GLH-Bridge": "GLH"}
    assert found["oa"] == pytest.approx(official["overall acc"], rel=1e-12)
    assert found["aa"] == pytest.approx(official["Average Acc"], rel=1e-12)
    for own, theirs in names.items():
        assert found[f"oa:{own}"] == pytest.approx(official[f"Overall Acc (Source {theirs})"], rel=1e-12)
        assert found[f"aa:{own}"] == pytest.approx(official[f"Average Acc (Source {theirs})"], rel=1e-12)
    tasks = {name: value for name, value in official.items() if "(Task" in name}
    assert len(tasks) == 8
    for name, value in tasks.items():
        assert found[f"category:{name[18:-1]}"] == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("D", "D"),
        ("(B) deck boats", "B"),
        ("The answer is C.", "C"),
        ("The best answer is (E)", "E"),
        ("deck boats", "B"),
        ("I see All of it", "A"),  # as published: the first capital letter that is anywhere
        ("nothing of that sort", ""),
        ("there is nothing in it that could be told from so far away by anybody", ""),
    ],
)
def test_letters_of_mme_realworld(said: str, letter: str) -> None:
    assert mme_letter(said, ("(A) jet skis", "(B) Deck Boats")) == letter
    question = asked(letter or "A", choices=("(A) jet skis", "(B) Deck Boats"))
    assert RULES["mme-realworld"](said, question) is bool(letter)


@pytest.mark.parametrize(
    ("said", "letters"),
    [
        ("A", "A"),
        ("(A) (C)", "AC"),
        ("C, A", "AC"),
        ("(b) and (D)", "BD"),
        ("The answer is B", "B"),
        ("B and d", "ABD"),  # as published: letters inside of words count too
        ("a c", ""),  # as published: without a capital letter there is none
        ("", ""),
    ],
)
def test_letters_of_xlrs(said: str, letters: str) -> None:
    assert xlrs_letters(said) == letters
    assert RULES["xlrs"](said, asked(letters[::-1] or "A")) is bool(letters)


@pytest.mark.parametrize(
    ("said", "letters"),
    [
        ("A", "A"),
        (" (B) red ", "B"),
        ("A and C.", "AC"),
        ("C, A", "AC"),
        ("A road", ""),
        ("", ""),
        ("I see", ""),
    ],
)
def test_letters_that_stand_alone(said: str, letters: str) -> None:
    assert strict_letters(said) == letters


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("0", "0"),
        ("10", "between 0 and 10"),
        ("11", "between 10 and 100"),
        ("1000", "between 100 and 1000"),
        ("1001", "more than 1000"),
        ("0m2", "0m2"),
        ("12m2", "between 10m2 and 100m2"),
        ("Yes.", "yes"),
        ("Rural", "rural"),
    ],
)
def test_ranges_of_rsvqa(said: str, found: str) -> None:
    assert count_range(said) == found


def test_an_unanswered_question_is_wrong_and_a_stray_answer_is_refused() -> None:
    questions = [asked("yes", name="a_1"), asked("no", name="a_2")]
    scores = score_answers(questions, {"a_1": "yes"}, "identical")
    assert (scores.overall(), scores.unanswered) == (0.5, 1)
    with pytest.raises(InputError, match="not asked: a_3"):
        score_answers(questions, {"a_3": "yes"}, "identical")
    with pytest.raises(InputError, match="did you mean 'lrs-vqa'"):
        score_answers(questions, {}, "lrs_vqa")


def test_wordnets_own_files_are_read(tmp_path: Path) -> None:
    for part in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"index.{part}").write_text("  1 a licence  \n")
        (tmp_path / f"{part}.exc").write_text("")
    rows = [
        "  1 a licence  ",
        "auto n 1 1 @ 1 0 00000007  ",
        "car n 2 1 @ 2 0 00000007 00000009  ",
        "mouse n 1 0 1 0 00000011  ",
    ]
    (tmp_path / "index.noun").write_text("\n".join(rows))
    (tmp_path / "noun.exc").write_text("mice mouse\n")
    synsets = Synsets.read(tmp_path)
    assert synsets.shared("cars", "auto")
    assert synsets.shared("mice", "Mouse")
    assert not synsets.shared("car", "mouse")
    assert not synsets.shared("lorry", "lorry")
    assert Synsets.read(tmp_path).compact() == synsets.compact()
    (tmp_path / "verb.exc").unlink()
    with pytest.raises(InputError, match=r"index\.noun"):
        Synsets.read(tmp_path)
