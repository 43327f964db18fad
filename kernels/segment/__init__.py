"""One date to classes: clouds and shadows, land cover, any network of segmentation-models-pytorch."""

from __future__ import annotations
