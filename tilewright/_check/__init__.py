"""The checks behind `tilewright.testing`."""
