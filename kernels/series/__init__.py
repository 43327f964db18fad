"""Kernels over a whole series of dates: changes of backscatter, breaks of seasons, embeddings."""

from __future__ import annotations

from .harmonic import harmonic_breaks
from .log_ratio import log_ratio
from .omnibus import omnibus
from .presto import presto
from .sar_optical import sar_optical

__all__ = ["harmonic_breaks", "log_ratio", "omnibus", "presto", "sar_optical"]
