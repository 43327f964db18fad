"""Super-resolution: an output grid that is finer than the input's by a whole number.

Every output pixel lies in one input pixel, ``scale`` squared of them to each, so corners agree and centres are half
a pixel apart (torch's ``align_corners=False``); the engine writes grid, transform, shards and blocks in output pixels.
"""

from __future__ import annotations

from .bicubic import bicubic
from .edsr import edsr
from .esrgan_slim import esrgan_slim
from .misr_gru import misr_gru
from .sen2sr import sen2sr_cnn
from .swinir import swinir

__all__ = ["bicubic", "edsr", "esrgan_slim", "misr_gru", "sen2sr_cnn", "swinir"]
