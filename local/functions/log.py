"""What of an app's log an operator would see."""

from __future__ import annotations

import logging
import sys
import time

from aiohttp.http_exceptions import BadHttpMessage

from local.functions.app import current_invocation

# Whose records are shown at all times: the host's own, and Python's about tasks gone wrong.
HOST_LOGGERS = ("host", "aiohttp", "asyncio")


class OneLineFormatter(logging.Formatter):
    """Formats a record as one line, whatever its message and traceback hold."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with the function that was running."""
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        invocation = current_invocation.get()
        source = invocation.function if invocation else "host"
        head = f"[{moment}.{int(record.msecs):03}] {source}: {record.levelname} "
        text = super().format(record)
        return head + "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def log_to_stdout() -> None:
    """Send the app's log records to stdout, from INFO on; of the Azure SDKs only warnings."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(OneLineFormatter())
    handler.addFilter(_arrives)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("azure").setLevel(logging.WARNING)
    # aiohttp would quote the header that it cannot read, and with it a token.
    logging.getLogger("aiohttp.server").addFilter(_says_nothing_of_headers)


def _arrives(record: logging.LogRecord) -> bool:
    """Tell whether a record would reach the host's log.

    The worker sends each record with the id of the invocation whose task writes it. The host takes
    it only while that invocation runs (GrpcWorkerChannel.Log in Azure/azure-functions-host), and
    drops the others without a word. Standard output is forwarded at all times.
    """
    invocation = current_invocation.get()
    of_the_app = record.name.partition(".")[0] not in HOST_LOGGERS
    return not of_the_app or (invocation is not None and not invocation.over)


def _says_nothing_of_headers(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], BadHttpMessage))
