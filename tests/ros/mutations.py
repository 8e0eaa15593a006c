"""Messages that are not quite right: mutated as bytes on the wire, or field by field. Every one follows from a seed."""

from __future__ import annotations

import array
import math
import random
import struct
from typing import Any

from rclpy.serialization import serialize_message

LONGEST = 65_536
"""Bytes, or elements, that a mutation adds: memory that mutated messages take must not be mistaken for a leak."""
ELEMENT_BYTES = 64
"""Of a message in a list, at least."""
WORDS = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF, 0x7FC00000, 0x7F800000, 0xFF800000)
FLOATS = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e308, -1e308, 5e-324, -1.0)
TEXTS = ("", "a", "base_link", "map", "/", "\u00e4\u4e16", "x" * 5000, "cam_front", "lidar_top", "..", "%s%n")
HEAD_BYTES = 240
"""Where lengths and layouts lie; most mutations go there."""


def rng_of(seed: int, kind: str, number: int) -> random.Random:
    """The random numbers of one message."""
    return random.Random(f"{seed}/{kind}/{number}")


def mutate(message: Any, rng: random.Random) -> bytes:
    """The serialised message with something wrong in it; the message itself may be changed."""
    if rng.random() < 0.5:
        for _ in range(rng.choice((1, 1, 2, 4))):
            mutate_field(message, rng)
        return bytes(serialize_message(message))
    content = bytearray(serialize_message(message))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        content = mutate_bytes(content, rng)
    return bytes(content)


def mutate_bytes(content: bytearray, rng: random.Random) -> bytearray:
    """Flip, overwrite, cut, add."""
    if len(content) < 8:
        return content + bytearray(rng.randbytes(8))
    end = min(len(content), HEAD_BYTES) if rng.random() < 0.7 else len(content)
    at = rng.randrange(4, end) if end > 4 else 0
    what = rng.randrange(8)
    if what == 0:
        content[at] ^= 1 << rng.randrange(8)
    elif what == 1:
        at -= at % 4
        content[at : at + 4] = struct.pack("<I", rng.choice(WORDS))
    elif what == 2:
        del content[rng.randrange(4, len(content)) :]
    elif what == 3:
        content += rng.randbytes(rng.randrange(1, 400))
    elif what == 4:
        del content[at : at + rng.randrange(1, 64)]
    elif what == 5:
        content[at:at] = content[at : at + rng.randrange(1, 64)]
    elif what == 6:
        size = min(rng.randrange(1, 64), len(content) - at)
        content[at : at + size] = bytes(size)
    else:
        content[rng.randrange(4)] = rng.randrange(256)  # how the rest is encoded
    return content


def mutate_field(message: Any, rng: random.Random) -> None:
    """Set one field, at any depth, to something that its type allows."""
    fields = message.get_fields_and_field_types()
    name = rng.choice(list(fields))
    value = getattr(message, name)
    if hasattr(value, "get_fields_and_field_types"):
        mutate_field(value, rng)
        return
    try:
        setattr(message, name, _other(value, fields[name], rng))
    except (AssertionError, TypeError, ValueError):
        return  # the type does not allow it: nobody could send it


def _other(value: Any, kind: str, rng: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return rng.choice(TEXTS)
    if isinstance(value, float):
        return rng.choice(FLOATS)
    if isinstance(value, int):
        bits = int("".join(c for c in kind if c.isdigit()) or 32)
        low, high = (0, 2**bits - 1) if kind.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return rng.choice((low, high, 0, 1, value + 1 if value < high else low, rng.randint(low, high)))
    if isinstance(value, array.array):
        return _other_array(value, rng)
    if isinstance(value, list):
        return _other_list(value, rng)
    changed = value.copy()  # a fixed number of floats, as a NumPy array
    changed[rng.randrange(len(changed))] = rng.choice(FLOATS)
    return changed


def _other_array(value: array.array[Any], rng: random.Random) -> array.array[Any]:
    what = rng.randrange(4)
    if what == 0 or not value:
        return array.array(value.typecode)
    if what == 1:
        return value[: rng.randrange(len(value))]
    if what == 2:
        return value + value[:LONGEST]
    out = array.array(value.typecode, value)
    for _ in range(rng.choice((1, 8, 64))):
        out[rng.randrange(len(out))] = rng.choice(FLOATS) if value.typecode in "fd" else rng.randrange(128)
    return out


def _other_list(value: list[Any], rng: random.Random) -> list[Any]:
    what = rng.randrange(4)
    if what == 0 or not value:
        return []
    if what == 1:
        return value[: rng.randrange(len(value))]
    if what == 2:
        return (value * rng.choice((2, 3, 100)))[: LONGEST // ELEMENT_BYTES]
    chosen = rng.choice(value)
    if hasattr(chosen, "get_fields_and_field_types"):
        mutate_field(chosen, rng)
    return value
