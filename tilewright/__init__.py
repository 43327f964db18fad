"""tilewright turns satellite archives into maps."""

__version__ = "0.1.0"
