"""Embedders: pictures, places and texts as vectors, so that an archive can be searched."""

from __future__ import annotations

from .contract import EmbedderNetwork, ImageTextEmbedder, Profile, Tower, load_embedder

__all__ = ["EmbedderNetwork", "ImageTextEmbedder", "Profile", "Tower", "load_embedder"]
