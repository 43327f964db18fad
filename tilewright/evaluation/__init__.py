"""Kernels against labelled pictures: layouts of datasets, metrics by their exact definitions, what is written.

`tilewright.evaluate` and ``tilewright eval`` are in front of it; see docs/guides/eval.md.
"""

from __future__ import annotations
