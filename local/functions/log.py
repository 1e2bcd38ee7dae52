"""Shows the part of an app's log that an operator in Azure would see."""

from __future__ import annotations

import logging
import sys
import time

from aiohttp.http_exceptions import BadHttpMessage

from local.functions.app import current_invocation

# Their records are always shown: the host's own, and asyncio's about tasks that failed.
HOST_LOGGERS = ("host", "aiohttp", "asyncio")


class OneLineFormatter(logging.Formatter):
    """Formats each record as one line, even if its message or traceback has line breaks."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with the name of the running function."""
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        invocation = current_invocation.get()
        source = invocation.function if invocation else "host"
        head = f"[{moment}.{int(record.msecs):03}] {source}: {record.levelname} "
        text = super().format(record)
        return head + "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def log_to_stdout() -> None:
    """Send log records from INFO on to stdout; from the Azure SDKs, only from WARNING on."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(OneLineFormatter())
    handler.addFilter(_arrives)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("azure").setLevel(logging.WARNING)
    # aiohttp quotes a header that it cannot read, which may hold a token.
    logging.getLogger("aiohttp.server").addFilter(_says_nothing_of_headers)


def _arrives(record: logging.LogRecord) -> bool:
    """Return whether a record would reach the host's log.

    The worker sends each record with the id of the invocation whose task writes it. The host takes
    it only while that invocation runs (GrpcWorkerChannel.Log in Azure/azure-functions-host), and
    silently drops all others. Standard output is always forwarded.
    """
    invocation = current_invocation.get()
    of_the_app = record.name.partition(".")[0] not in HOST_LOGGERS
    return not of_the_app or (invocation is not None and not invocation.ended)


def _says_nothing_of_headers(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], BadHttpMessage))
