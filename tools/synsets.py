"""Writes the words and synonyms that come with the package from a folder of WordNet's database files.

    python tools/synsets.py /usr/share/wordnet

(Debian's package wordnet-base puts WordNet 3.0 there.) The same files give the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tilewright.evaluation.synsets import Synsets

if __name__ == "__main__":
    target = Path(__file__).parents[1] / "tilewright" / "evaluation" / "wordnet" / "synsets.txt.xz"
    target.write_bytes(Synsets.read(sys.argv[1]).compact())
    print(f"{target}: {target.stat().st_size:,} bytes")
