"""Kernels without deep weights: spectral indices, unsupervised change between two dates, speckle filtering.

Each factory takes ``(weights=None, *, option=..., ...)`` and returns a
:class:`~tilewright.kernels.contract.Kernel`; ``weights`` is there for the registry's sake and must be None.
torch, scipy and spyndex are imported when a kernel is built, fitted or run.
"""

from __future__ import annotations

from .change_vector import change_vector
from .index import spectral_index
from .irmad import ir_mad
from .refined_lee import refined_lee

__all__ = ["change_vector", "ir_mad", "refined_lee", "spectral_index"]
