"""When an answer in words is right: the rules of LRS-VQA, RSCoVLM, MME-RealWorld, XLRS-Bench and RSVQA.

Each rule is a function of the answer and the truth, by the name of where it comes from; `score_answers` counts them by
source and category. Rules differ in what they forgive, so a number belongs to its rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tilewright.errors import InputError, nearest_name

from .synsets import Synsets

__all__ = [
    "RULES",
    "AnswerScores",
    "Question",
    "count_range",
    "lrs_vqa_right",
    "mme_letter",
    "score_answers",
    "xlrs_letters",
]


@dataclass(frozen=True)
class Question:
    """A question about an image, with its answer."""

    name: str
    """What identifies it."""
    image: str
    """File of the image, as the dataset writes it."""
    text: str
    """The question."""
    truth: str
    """The right answer."""
    category: str
    """What is asked for, such as ``count``."""
    source: str = ""
    """Part of the dataset, where it has parts that are reported alone."""
    choices: tuple[str, ...] = ()
    """Answers to choose from, each with its letter, such as ``(A) 13``."""


def lrs_vqa_right(answer: str, question: Question) -> bool:
    """Tell whether an answer is right by LRS-VQA: the same words, or a word that shares a meaning with the truth.

    Case does not count, blanks and full stops do. The look-up brings words to their base forms (``houses``); it knows
    compounds only with underscores. See https://arxiv.org/abs/2503.07588.
    """
    own, known = answer.lower(), question.truth.lower()
    return own == known or Synsets.built_in().shared(own, known)


def wups_right(answer: str, question: Question) -> bool:
    """Tell whether an answer is right by RSCoVLM: as by LRS-VQA, without blanks and full stops at the ends."""
    return lrs_vqa_right(_trimmed(answer), _with_truth(question, _trimmed(question.truth)))


def identical(answer: str, question: Question) -> bool:
    """Tell whether answer and truth are the same but for case, blanks and full stops at the ends."""
    return _trimmed(answer) == _trimmed(question.truth)


def contained(answer: str, question: Question) -> bool:
    """Tell whether the truth occurs in the answer, be it inside a word: RSCoVLM's rule for letters."""
    return _trimmed(question.truth) in _trimmed(answer)


def begins(answer: str, question: Question) -> bool:
    """Tell whether the truth begins with the answer, as ``(B) red`` with ``(B)``; an empty answer is wrong here."""
    own = _trimmed(answer)
    return bool(own) and _trimmed(question.truth).startswith(own)


def _trimmed(text: str) -> str:
    return text.lower().strip().strip(".")


def _with_truth(question: Question, truth: str) -> Question:
    return Question(question.name, question.image, question.text, truth, question.category)


_LEADS = re.compile(r"The (?:best answer is|correct answer is|answer is|answer)")


def mme_letter(answer: str, choices: Sequence[str] = ()) -> str:
    """Return the letter that MME-RealWorld reads in an answer: the first capital A to E that is anywhere in it.

    Words such as ``The answer is`` are taken out first. Where there is no such letter, it is that of the first choice
    of which the answer is a part; empty where there is none. See https://arxiv.org/abs/2408.13257.
    """
    said = _LEADS.sub("", answer.strip())
    found = re.search("[A-E]", said)
    if found is not None:
        return found.group()
    if len(said.split()) > 10:
        return ""
    return next((choice[1] for choice in choices if said.lower() in choice.lower()), "")


def mme_right(answer: str, question: Question) -> bool:
    """Tell whether the letter of an answer, by `mme_letter`, is the truth."""
    return mme_letter(answer, question.choices) == question.truth


def xlrs_letters(answer: str) -> str:
    """Return the letters that the evaluation of XLRS-Bench reads in an answer, in alphabetical order.

    All in round brackets; where there are none, every a to e that is anywhere in it, in either case. Without a capital
    A to E there is none. See https://arxiv.org/abs/2503.23771.
    """
    said = _LEADS.sub("", answer.strip())
    if not re.search("[A-E]", said):
        return ""
    found = re.findall(r"\(([a-eA-E])\)", said) or re.findall("[a-eA-E]", said)
    return "".join(sorted({letter.upper() for letter in found}))


def xlrs_right(answer: str, question: Question) -> bool:
    """Tell whether the letters of an answer, by `xlrs_letters`, are all those of the truth and no others."""
    return set(xlrs_letters(answer)) == set(question.truth)


def strict_letters(answer: str) -> str:
    """Return the letters that an answer gives, in alphabetical order: ours, for ``A``, ``(A) red`` and ``A and C``.

    Either in round brackets, or the answer is nothing but letters. Words have none, where the published rules find
    letters inside of them.
    """
    said = _LEADS.sub("", answer)
    found = re.findall(r"\(([A-Z])\)", said)
    words = re.findall(r"\w+", re.sub(r"\band\b", " ", said))
    if not found and all(re.fullmatch("[A-Z]", word) for word in words):
        found = words
    return "".join(sorted(set(found)))


def strict_right(answer: str, question: Question) -> bool:
    """Tell whether the letters that stand alone in an answer are those of the truth."""
    return set(strict_letters(answer)) == set(question.truth)


def rsvqa_right(answer: str, question: Question) -> bool:
    """Tell whether an answer is right by RSVQA: the same range of a number, else the same words in lower case."""
    return count_range(answer) == count_range(question.truth)


_RANGES = (
    (10, "between 0{0} and 10{0}"),
    (100, "between 10{0} and 100{0}"),
    (1000, "between 100{0} and 1000{0}"),
)


def count_range(answer: str) -> str:
    """Return the class of an answer of RSVQA (https://arxiv.org/abs/2003.07333).

    Counts and areas above 0 are classes by powers of ten, so that a model need not count thousands of houses; RSVQA
    does so for its set of low resolution, and for areas in both.

    >>> count_range("37"), count_range("0"), count_range("1205m2")
    ('between 10 and 100', '0', 'more than 1000m2')
    """
    said = re.sub(r"[?.]$", "", answer.strip().lower())
    number = re.fullmatch(r"(\d+)(m2)?", said)
    if number is None or int(number[1]) == 0:
        return said
    unit = number[2] or ""
    shape = next((shape for most, shape in _RANGES if int(number[1]) <= most), "more than 1000{0}")
    return shape.format(unit)


RULES: dict[str, Callable[[str, Question], bool]] = {
    "lrs-vqa": lrs_vqa_right,
    "wups": wups_right,
    "identical": identical,
    "contains": contained,
    "begins": begins,
    "mme-realworld": mme_right,
    "xlrs": xlrs_right,
    "letters": strict_right,
    "rsvqa": rsvqa_right,
}
"""The rules by name."""


@dataclass
class AnswerScores:
    """How many answers were right, by source and category."""

    rule: str
    """By which rule."""
    right: dict[tuple[str, str], int] = field(default_factory=dict)
    """(source, category) -> answers that were right."""
    asked: dict[tuple[str, str], int] = field(default_factory=dict)
    """(source, category) -> questions."""
    unanswered: int = 0
    """Questions without an answer; they count as wrong."""
    skipped: int = 0
    """Questions without a truth; they do not count."""

    def overall(self, source: str | None = None) -> float:
        """Return the share of right answers (OA), of all or of a source."""
        chosen = [key for key in self.asked if source in (None, key[0])]
        asked = sum(self.asked[key] for key in chosen)
        return sum(self.right[key] for key in chosen) / asked if asked else float("nan")

    def categories(self, source: str | None = None) -> dict[str, float]:
        """Return the share of right answers of each category."""
        names = sorted({name for own, name in self.asked if source in (None, own)})
        return {name: self._category(name, source) for name in names}

    def _category(self, category: str, source: str | None) -> float:
        chosen = [key for key in self.asked if key[1] == category and source in (None, key[0])]
        return sum(self.right[key] for key in chosen) / sum(self.asked[key] for key in chosen)

    def average(self, source: str | None = None) -> float:
        """Return the mean of the shares of the categories (AA), of all or of a source."""
        shares = self.categories(source)
        return sum(shares.values()) / len(shares) if shares else float("nan")

    def summary(self) -> dict[str, float]:
        """Return all scores: ``oa``, ``aa``, and with ``:`` those of sources and categories."""
        found = {"oa": self.overall(), "aa": self.average()}
        sources = sorted({source for source, _ in self.asked if source})
        for source in sources:
            found[f"oa:{source}"], found[f"aa:{source}"] = self.overall(source), self.average(source)
        return found | {f"category:{name}": share for name, share in self.categories().items()}


def score_answers(
    questions: Sequence[Question], answers: Mapping[str, str], rule: str, *, skip_empty: bool = True
) -> AnswerScores:
    """Count the answers that are right.

    Parameters
    ----------
    questions
        What was asked.
    answers
        Name of the question -> answer. A question without one counts as wrong.
    rule
        Name of one of `RULES`.
    skip_empty
        False counts questions whose truth is empty too.

    Raises
    ------
    InputError
        An unknown rule, or answers to questions that were not asked.
    """
    if rule not in RULES:
        raise InputError(f"unknown rule {rule!r}; {nearest_name(rule, RULES)}", place="score")
    strange = sorted(set(answers) - {question.name for question in questions})
    if strange:
        raise InputError(
            f"{len(strange)} answers are to questions that were not asked: {', '.join(strange[:3])}",
            place="score",
            remedy="give the questions of the same set and split",
        )
    scores = AnswerScores(rule)
    for question in questions:
        if skip_empty and not question.truth:
            scores.skipped += 1
            continue
        key = (question.source, question.category)
        answer = answers.get(question.name)
        scores.unanswered += answer is None
        scores.asked[key] = scores.asked.get(key, 0) + 1
        scores.right[key] = scores.right.get(key, 0) + (answer is not None and RULES[rule](answer, question))
    return scores
