"""Torch modules of the published systems: official names, official raw outputs, parts that several of them share."""
