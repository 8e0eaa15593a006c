"""Training and evaluation: the loop, what it keeps on disk, and how a run is described."""
