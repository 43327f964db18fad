"""Change detection between dates, and of one date against its past."""

from __future__ import annotations

from .dist_s1 import dist_s1

__all__ = ["dist_s1"]
