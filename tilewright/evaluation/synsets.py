"""Which words mean the same: WordNet's groups of synonyms (synsets), and the base forms of words.

The package brings the words and groups of WordNet 3.0 (not its definitions or relations), all that a scorer needs that
asks whether two words share a meaning; ``tools/synsets.py`` made the file from WordNet's own. Words are brought to
their base forms by WordNet's rules (morphy, https://wordnet.princeton.edu/documentation/morphy7wn) with the one for
``ves`` that nltk adds.
"""

from __future__ import annotations

import lzma
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path

from tilewright.errors import InputError

__all__ = ["Synsets"]

PARTS = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
"""Parts of speech as WordNet's files are called."""
ENDINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "n": (
        *(("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z")),
        *(("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y")),
    ),
    "v": (
        *(("s", ""), ("ies", "y"), ("es", "e"), ("es", "")),
        *(("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    ),
    "a": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "r": (),
}
"""What takes the place of an ending, for each part of speech."""
_FILE = "synsets.txt.xz"

type Meaning = tuple[str, int | str]
"""Part of speech with the number of a group, or with a base form: words with one base form share its meanings."""


class Synsets:
    """Words, their groups and their irregular forms."""

    def __init__(
        self,
        words: Mapping[str, Mapping[str, frozenset[int]]],
        exceptions: Mapping[str, Mapping[str, tuple[str, ...]]],
    ) -> None:
        self.words = words
        """Part of speech -> base form -> numbers of its groups."""
        self.exceptions = exceptions
        """Part of speech -> irregular form -> base forms."""

    @classmethod
    def built_in(cls) -> Synsets:
        """Return those of WordNet 3.0, which come with the package; read once."""
        return _built_in()

    @classmethod
    def read(cls, folder: str | Path) -> Synsets:
        """Return those of a folder of WordNet's own database files (``index.noun``, ``noun.exc``, ...).

        Raises `InputError` where they are not there.
        """
        words: dict[str, dict[str, frozenset[int]]] = {}
        exceptions: dict[str, dict[str, tuple[str, ...]]] = {}
        for part, name in PARTS.items():
            words[part] = {}
            for line in _lines(Path(folder) / f"index.{name}"):
                if not line.startswith(" "):  # the licence stands in front
                    fields = line.split()
                    words[part][fields[0]] = frozenset(map(int, fields[-int(fields[2]) :]))
            rows = (line.split() for line in _lines(Path(folder) / f"{name}.exc"))
            exceptions[part] = {row[0]: tuple(row[1:]) for row in rows if row}
        return cls(words, exceptions)

    def meanings(self, word: str) -> set[Meaning]:
        """Return the groups of a word in lower case, of all parts of speech; blanks are not underscores."""
        found: set[Meaning] = set()
        for part in PARTS:
            for form in self._bases(word.lower(), part):
                found |= {(part, form), *((part, number) for number in self.words[part][form])}
        return found

    def shared(self, first: str, second: str) -> bool:
        """Return whether two words have a meaning in common."""
        return not self.meanings(first).isdisjoint(self.meanings(second))

    def _bases(self, word: str, part: str) -> list[str]:
        """Return the base forms of a word that are known; the rules are applied once, as nltk 3.10 does."""
        known = self.words[part]
        others = self.exceptions[part].get(word)
        if others is None:
            others = tuple(word[: -len(old)] + new for old, new in ENDINGS[part] if word.endswith(old))
        return [form for form in (word, *others) if form in known]

    def compact(self) -> bytes:
        """Return words and groups as `built_in` reads them: groups of one word are left out, the others renumbered."""
        lines = []
        for part, words in self.words.items():
            sizes: defaultdict[int, int] = defaultdict(int)
            for groups in words.values():
                for group in groups:
                    sizes[group] += 1
            numbers = {
                group: str(n) for n, group in enumerate(sorted(g for g, size in sizes.items() if size > 1))
            }
            lines.append(f"# {part}")
            lines += [
                " ".join([word, *(numbers[group] for group in sorted(words[word]) if group in numbers)])
                for word in sorted(words)
            ]
            lines.append(f"! {part}")
            lines += [" ".join([form, *bases]) for form, bases in sorted(self.exceptions[part].items())]
        return lzma.compress("\n".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME)


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}",
            place=str(path),
            remedy="name the folder of WordNet that holds index.noun, index.verb, index.adj, index.adv and *.exc",
        ) from error


@lru_cache
def _built_in() -> Synsets:
    content = resources.files(__package__ or "tilewright.evaluation").joinpath("wordnet", _FILE).read_bytes()
    words: dict[str, dict[str, frozenset[int]]] = {}
    exceptions: dict[str, dict[str, tuple[str, ...]]] = {}
    of_words, part = True, ""
    for line in lzma.decompress(content).decode().splitlines():
        first, *rest = line.split()
        if first in ("#", "!"):
            of_words, part = first == "#", rest[0]
            words.setdefault(part, {})
            exceptions.setdefault(part, {})
        elif of_words:
            words[part][first] = frozenset(map(int, rest))
        else:
            exceptions[part][first] = tuple(rest)
    return Synsets(words, exceptions)
