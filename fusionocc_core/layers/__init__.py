"""Pieces that two or more networks share, or large enough for a name."""
