"""The sink `webhook`: posts failures of runs, or the events that WEBHOOK names, to a URL, such as a chat room's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from string import Template
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, get_args

import httpx
import msgspec
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, SecretStr

from gluepy.core import events as e
from gluepy.core.identity import derived_uuid
from gluepy.core.policy import Retry
from gluepy.errors import SettingsError, did_you_mean
from gluepy.sinks.http import RETRY, send
from gluepy.sinks.port import Sink

if TYPE_CHECKING:
    from gluepy.conf.schema import Settings

NAMES = tuple(str(kind.__struct_config__.tag) for kind in get_args(e.Event) if kind is not e.TaskOutput)
_CARD = (
    '{"type": "AdaptiveCard", "$$schema": "http://adaptivecards.io/schemas/adaptive-card.json", "version": "1.4", '
    '"body": [{"type": "TextBlock", "wrap": true, "text": "$message"}]}'
)
_CARD_TYPE = "application/vnd.microsoft.card.adaptive"
TEMPLATES = {
    "slack": '{"text": "$message"}',
    "teams": f'{{"type": "message", "attachments": [{{"contentType": "{_CARD_TYPE}", "content": {_CARD}}}]}}',
}
_MOST = 10  # failures of a run that are told
_LONGEST = 500  # characters of an error that is told

EndOfRun = e.RunFinished | e.RunFailed | e.RunCancelled


class WebhookSettings(BaseModel):
    """The group WEBHOOK. `events` are sent to `url`, by default the failures of runs; `template` is `slack`, `teams` or
    JSON with fields by `$` and their name; None: all fields, as JSON. `headers` go with each request, which is made
    up to `attempts` times and may take `timeout_s` each time."""

    model_config = ConfigDict(extra="forbid")

    url: SecretStr
    events: list[str] = Field(default=["run.failed"], min_length=1)
    template: str | None = None
    headers: dict[str, str] = {}
    attempts: PositiveInt = 4
    timeout_s: PositiveFloat = 10.0


class Failure(NamedTuple):
    """Why a task failed for good."""

    task: str
    attempt: int
    reason: str
    error: str


class Messages:
    """Makes the messages of a run: JSON-able mappings of an event's fields, with a `message` for people, and of a run
    that ended its first `failures`."""

    def __init__(self) -> None:
        self._failures: list[Failure] = []
        self._number = 0

    def note(self, event: e.Event) -> None:
        """Take each event, so that a run's end can tell what failed."""
        if isinstance(event, (e.RunStarted, e.RunResumed)):
            self._failures, self._number = [], 0
        if isinstance(event, e.TaskFailed):
            self._number += 1
            if self._number <= _MOST:
                error = f"{event.error_type}: {event.error_message}"[:_LONGEST]
                self._failures.append(Failure(event.task, event.attempt, event.reason, error))

    def of(self, event: e.Event) -> dict[str, Any]:
        """The message for `event`."""
        fields: dict[str, Any] = msgspec.to_builtins(event)
        fields.pop("graph", None)
        if isinstance(event, EndOfRun):
            fields["failures"] = [failure._asdict() for failure in self._failures]
        fields["message"] = self._message(event, fields)
        return fields

    def _message(self, event: e.Event, fields: Mapping[str, Any]) -> str:
        about = f"run {event.run_id[-12:]} of {event.dag}"
        name = fields["event"].partition(".")[2]
        match event:
            case e.RunFailed():
                lines = [f"{failure.task}: {failure.error}" for failure in self._failures]
                more = self._number - len(lines)
                why = " (out of time)" if event.reason == "timeout" else ""
                return "\n".join([f"{about} failed{why}", *lines, *([f"and {more} more tasks"] if more > 0 else [])])
            case e.TaskFailed() | e.TaskRetrying():
                error = f"{event.error_type}: {event.error_message}"[:_LONGEST]
                tried = f"attempt {event.attempt} of {event.max_attempts}"
                return f"task {event.task} in {about}: {tried} failed\n{error}"
            case e.TaskMetric():
                return f"task {event.task} in {about}: {event.name} = {event.value}"
            case _ if isinstance(event, e.TaskEvent):
                return f"task {event.task} in {about}: {name}"
        return f"{about} {name}"


class JsonTemplate:
    """JSON in whose strings `$name` or `${name}` stands for a field, as Python names it (`error_type`), and `$$` for a
    dollar sign. Raises `ValueError` if it is not JSON, or names what no event has."""

    def __init__(self, text: str) -> None:
        self._template = Template(text)
        known = {field.name for kind in get_args(e.Event) for field in msgspec.structs.fields(kind)}
        known |= {"event", "message", "failures"}
        if not self._template.is_valid():
            raise ValueError("a $ in it is followed by no name; write $$ for the sign itself")
        for name in self._template.get_identifiers():
            if name not in known:
                raise ValueError(f"no event has a field {name!r}{did_you_mean(name, known)}")
        try:
            json.loads(self._template.substitute(dict.fromkeys(known, "x")))
        except ValueError as error:
            raise ValueError(f"it is not JSON: {error}") from None

    def __call__(self, message: Mapping[str, Any]) -> bytes:
        """The body of a request; fields that the event does not have are empty."""
        shown = {
            name.replace(".", "_"): json.dumps(
                value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            )[1:-1]
            for name, value in message.items()
        }
        absent = dict.fromkeys(self._template.get_identifiers(), "")
        return self._template.substitute(absent | shown).encode()


class Webhook(Sink):
    """Posts the messages of the `events`, by their names, to `url` with the client that `connect` makes.

    Each has the header `Idempotency-Key`, the same whenever it is sent. `body` makes the body of a message.
    """

    settings_group: ClassVar = ("WEBHOOK", WebhookSettings)

    def __init__(
        self,
        url: str,
        events: frozenset[str] = frozenset(("run.failed",)),
        body: Callable[[Mapping[str, Any]], bytes] = msgspec.json.encode,
        retry: Retry = RETRY,
        connect: Callable[[], httpx.Client] = httpx.Client,
    ) -> None:
        self._url, self._events, self._body, self._retry = url, events, body, retry
        self._connect = connect
        self._client: httpx.Client | None = None
        self._runs: dict[str, Messages] = {}
        self._entered = 0

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Made as WEBHOOK says. Raises `SettingsError`, which does not tell the URL."""
        group = settings.group(*cls.settings_group)
        source = settings.source("WEBHOOK")
        url = group.url.get_secret_value()
        if not url.startswith(("http://", "https://")):
            raise SettingsError("WEBHOOK.url", source, "it does not begin with http:// or https://", "")
        for name in group.events:
            if name not in NAMES:
                hint = did_you_mean(name, NAMES).removeprefix("; ") or f"known are {', '.join(NAMES)}"
                raise SettingsError("WEBHOOK.events", source, f"there is no event {name!r}", hint)
        body: Callable[[Mapping[str, Any]], bytes] = msgspec.json.encode
        if group.template is not None:
            try:
                body = JsonTemplate(TEMPLATES.get(group.template, group.template))
            except ValueError as error:
                known = ", ".join(map(repr, TEMPLATES))
                raise SettingsError("WEBHOOK.template", source, str(error), f"give {known} or JSON") from None
        retry = Retry(attempts=group.attempts, wait_s=0.5, max_wait_s=10.0)
        connect = partial(httpx.Client, headers=group.headers, timeout=group.timeout_s)
        return cls(url, frozenset(group.events), body, retry, connect)

    def __enter__(self) -> Self:
        self._entered += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._entered -= 1
        if not self._entered:  # no other run has this sink
            self._runs.clear()
            if self._client is not None:
                self._client.close()
                self._client = None

    def __call__(self, event: e.Event) -> None:
        """Post the message of `event`, if it is one that is wanted. Raises `RequestFailed`."""
        if isinstance(event, e.TaskOutput):
            return
        if event.run_id not in self._runs:
            self._runs[event.run_id] = Messages()
        messages = self._runs[event.run_id]
        messages.note(event)
        if isinstance(event, EndOfRun):
            del self._runs[event.run_id]
        if event.__struct_config__.tag in self._events:
            key = str(derived_uuid(event.run_id, "event", event.seq))
            headers = {"Content-Type": "application/json", "Idempotency-Key": key}
            if self._client is None:
                self._client = self._connect()
            send(self._client, "POST", self._url, self._retry, content=self._body(messages.of(event)), headers=headers)
