"""Random numbers and tokens that depend on what they are for, never on the order in which work is done."""

from __future__ import annotations

import hashlib

import numpy as np


def rng_for(*keys: object) -> np.random.Generator:
    """A generator seeded by the SHA-256 of ``keys``: the same keys give the same numbers in every process."""
    digest = hashlib.sha256("/".join(str(key) for key in keys).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def token_for(*keys: object) -> str:
    """A nuScenes token (32 hexadecimal digits): the MD5 of seed, kind and index."""
    return hashlib.md5("/".join(str(key) for key in keys).encode(), usedforsecurity=False).hexdigest()
