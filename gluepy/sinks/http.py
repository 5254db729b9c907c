"""Sending requests for sinks: tried again while that may help, and errors that tell no secret."""

from __future__ import annotations

import time
from typing import Any

import httpx

from gluepy.core.policy import Retry
from gluepy.redact import masked_text

RETRY = Retry(attempts=4, wait_s=0.5, factor=2.0, max_wait_s=10.0)
_PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))  # statuses that may be others a little later
_TOLD = 300  # characters of an answer


class RequestFailed(Exception):
    """`host` could not be reached, or did not answer well: with `status`, and `code` where it named an error."""

    def __init__(self, host: str, why: str, status: int | None = None, code: str = "") -> None:
        super().__init__(host, why, status, code)
        self.host, self.why, self.status, self.code = host, why, status, code

    def __str__(self) -> str:
        return f"{self.host}: {self.why}"


def send(client: httpx.Client, method: str, url: str, retry: Retry = RETRY, **options: Any) -> httpx.Response:
    """The answer of 2xx to a request, which is made again as `retry` says while the server is away or busy. Raises
    `RequestFailed`, which names the host and nothing else of the URL."""
    tried = 0
    while True:
        tried += 1
        host, wait_s = client.base_url.host, 0.0
        try:
            request = client.build_request(method, url, **options)
            host = request.url.netloc.decode("ascii", "replace").rpartition("@")[2]
            answer = client.send(request)
        except (httpx.TransportError, httpx.DecodingError) as error:
            failed = RequestFailed(host, f"{type(error).__name__}: {_without(url, str(error))}")
        except (httpx.InvalidURL, ValueError, TypeError):
            raise RequestFailed(host, "its URL is none") from None
        else:
            if answer.is_success:
                return answer
            failed = _refused(host, answer, url)
            if answer.status_code not in _PASSING:
                raise failed
            wait_s = _asked_to_wait_s(answer)
        if tried >= retry.attempts:
            raise failed from None
        time.sleep(min(max(wait_s, retry.delay_s(tried, host)), retry.max_wait_s))


def _refused(host: str, answer: httpx.Response, url: str) -> RequestFailed:
    code, text = "", answer.text
    try:
        told = answer.json()
        code, text = str(told.get("error_code", "")), str(told.get("message", text))
    except (ValueError, AttributeError):  # not JSON, or not an object
        pass
    told_as = f": {_without(url, text.strip())[:_TOLD]}" if text.strip() else ""
    return RequestFailed(
        host, f"it answered {answer.status_code} {answer.reason_phrase}{told_as}", answer.status_code, code
    )


def _without(url: str, text: str) -> str:
    """`text` on one line, without the URL and its path, which may be secret."""
    path = httpx.URL(url).raw_path.decode("ascii", "replace")
    for secret in (url, path):
        if len(secret) > 1:
            text = text.replace(secret, "…")
    return masked_text(" ".join(text.split()))


def _asked_to_wait_s(answer: httpx.Response) -> float:
    try:
        return float(answer.headers.get("Retry-After", 0))
    except ValueError:  # a date
        return 0.0
