"""Turning executors: the node's in its main thread, those of programs that listen in a thread of their own."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rclpy.executors import Executor
    from rclpy.node import Node

log = logging.getLogger(__name__)

SIGNAL_CHECK_S = 0.5
"""How long the node sleeps at most before it looks whether it has been interrupted."""


def make_executor() -> Executor:
    """The node's executor: the one that is driven by events, where this rclpy has it, or the one that builds wait sets.

    Building one for every message takes rclpy milliseconds of the core that the network needs.
    """
    try:
        from rclpy.experimental import EventsExecutor
    except ImportError:  # before Jazzy's patch releases
        from rclpy.executors import SingleThreadedExecutor

        return SingleThreadedExecutor()
    return EventsExecutor()


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


@contextlib.contextmanager
def node_in_thread(name: str, *, domain_id: int | None = None) -> Iterator[Node]:
    """A node in a context of its own; a thread turns it until the end of the block.

    Args:
        name: of the node.
        domain_id: the DDS domain; None takes ROS_DOMAIN_ID.
    """
    import rclpy
    from rclpy.context import Context
    from rclpy.executors import ExternalShutdownException, ShutdownException, SingleThreadedExecutor

    context = Context()
    rclpy.init(context=context, domain_id=domain_id)
    node = rclpy.create_node(name, context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    ended = threading.Event()

    def turn() -> None:
        with contextlib.suppress(ExternalShutdownException, ShutdownException):
            spin(executor, lambda: not ended.is_set(), lambda kind, text: log.warning("%s: %s", kind, text))

    thread = threading.Thread(target=turn, name=name, daemon=True)
    thread.start()
    try:
        yield node
    finally:
        # The thread ends before anything is taken down: an executor that is shut down while it waits fails in ways that
        # differ from release to release.
        ended.set()
        executor.wake()
        thread.join()
        executor.shutdown()
        node.destroy_node()
        context.try_shutdown()
