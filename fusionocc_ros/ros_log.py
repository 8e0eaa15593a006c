"""What the package's plain modules log, in the node's log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rclpy.node import Node


class RosHandler(logging.Handler):
    """Hands what the package's plain modules log to the node's logger."""

    def __init__(self, node: Node) -> None:
        super().__init__(logging.DEBUG)
        self._node = node

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record."""
        logger, text = self._node.get_logger(), record.getMessage()
        if record.levelno >= logging.ERROR:
            logger.error(text)
        elif record.levelno >= logging.WARNING:
            logger.warning(text)
        else:
            logger.debug(text)
