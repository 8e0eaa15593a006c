"""Turning the node's executor."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rclpy.executors import Executor

SIGNAL_CHECK_S = 0.5
"""How long the node sleeps at most before it looks whether it has been interrupted."""


def spin(executor: Executor, is_ok: Callable[[], bool], on_bad_message: Callable[[str, str], None]) -> None:
    """Turn an executor until it is interrupted.

    Args:
        executor: with the node.
        is_ok: whether the context lives.
        on_bad_message: told of a message that rclpy's own callbacks cannot take, such as a /clock before 1970: they
            raise, and a single message must not end the node.
    """
    while is_ok():
        try:
            # Not spin(): a signal that comes just before it waits does not wake it, and it would wait for ever.
            executor.spin_once(timeout_sec=SIGNAL_CHECK_S)
        except (ValueError, OverflowError) as error:
            on_bad_message("bad_message", f"a message is ignored that ROS itself cannot take: {error}")
