"""What the server writes to standard error: as text for people, or one JSON object a line.

Requests are logged when asked for, without anything that their clients said but ids: no prompt, no
answer, no key.
"""

from __future__ import annotations

import logging
import sys
import traceback
from datetime import datetime, timezone
from typing import Any

import msgspec

from trimtab.config import LogFormat
from trimtab.server.observation import Call

requests = logging.getLogger("trimtab.requests")


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, and the `fields` that a record carries."""

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        document |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            document["error"] = "".join(traceback.format_exception(record.exc_info[1]))
        return msgspec.json.encode(document).decode()


class TextFormatter(logging.Formatter):
    """`trimtab: WARNING: message name=value ...`"""

    def __init__(self) -> None:
        super().__init__("trimtab: %(levelname)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        fields = getattr(record, "fields", {})
        told = [f" {name}={value}" for name, value in fields.items() if value is not None]
        return super().formatMessage(record) + "".join(told)


def configure(log_format: LogFormat, log_requests: bool) -> None:
    """Set up the log of this process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    if log_requests:
        requests.setLevel(logging.INFO)


def log_request(call: Call) -> None:
    """One line about a request that has ended; for Observer.on_end."""
    if requests.isEnabledFor(logging.INFO):
        requests.info("request", extra={"fields": fields_of(call)})


def fields_of(call: Call) -> dict[str, Any]:
    timings = call.timings()
    fields: dict[str, Any] = {
        "request_id": call.request_id,
        "key": call.key_name,
        "method": call.method,
        "route": call.route,
        "status": call.status,
        "error": call.error,
        "ms": timings.total_ms,
    }
    if call.prepared is not None:
        queues = [one.queue_ms for one in timings.choices if one.queue_ms is not None]
        fields |= {
            "answer_id": call.answer_id,
            "prompt_tokens": call.num_prompt_tokens,
            "cached_tokens": max((one.cached_tokens for one in timings.choices), default=0),
            "completion_tokens": sum(one.completion_tokens for one in timings.choices),
            "queue_ms": max(queues, default=None),
            "first_token_ms": timings.first_token_ms,
            "finish_reasons": ",".join(str(life.finish_reason) for life in call.choices[:16]),
        }
    return fields
