"""The sinks that the fault tests try, by what has to be set so that each sends to a receiver."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any, ClassVar, Self

from mlflow_server import Tracking
from pydantic import BaseModel
from receivers import Request

from gluepy.conf.schema import Settings, Source
from gluepy.core.events import Event, TaskOutput, encode
from gluepy.sinks import Sink

HERE = Source("module", "settings.py")


class PostsSettings(BaseModel):
    url: str


class Posts(Sink):
    """Posts each event, as whoever writes a sink in ten lines does it."""

    settings_group: ClassVar = ("POSTS", PostsSettings)

    def __init__(self, url: str) -> None:
        self.url = url

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(settings.group(*cls.settings_group).url)

    def __call__(self, event: Event) -> None:
        if not isinstance(event, TaskOutput):
            with closing(HTTPConnection(self.url.removeprefix("http://"), timeout=60)) as connection:
                connection.request("POST", "/", encode(event))
                if (status := connection.getresponse().status) != 200:
                    raise ConnectionError(f"{self.url} answered {status}")


def well(request: Request) -> tuple[int, str, bytes]:
    return 200, "application/json", b"{}"


@dataclass(frozen=True)
class Under:
    """`sink` as an option names it; `groups` of settings and `env`, by the receiver's address. `tells` is whether the
    sink itself hears of a failed delivery, so that gluepy can warn of what was lost. `answer` makes what a receiver
    answers that is well."""

    sink: Any
    groups: Callable[[str], Mapping[str, Mapping[str, Any]]] = lambda url: {}
    env: Callable[[str], Mapping[str, str]] = lambda url: {}
    tells: bool = True
    answer: Callable[[], Callable[[Request], tuple[int, str, bytes]]] = lambda: well

    def settings(self, settings: Settings, url: str) -> Settings:
        groups = {
            name: {key: (value, HERE) for key, value in fields.items()} for name, fields in self.groups(url).items()
        }
        return settings.replaced(groups=groups)


UNDER_FAULT: dict[str, Under] = {
    "otel": Under("otel", env=lambda url: {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_TIMEOUT": "0.5"}),
    "openlineage": Under(
        "openlineage",
        env=lambda url: {"OPENLINEAGE__TRANSPORT": json.dumps({"type": "http", "url": url, "retry": {"total": 0}})},
    ),
    "mlflow": Under(
        "mlflow",
        env=lambda url: {"MLFLOW_TRACKING_URI": url, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"},
        answer=lambda: Tracking().answer,
    ),
    "webhook": Under("webhook", groups=lambda url: {"WEBHOOK": {"url": url, "attempts": 1}}),
    "posts": Under(Posts, groups=lambda url: {"POSTS": {"url": url}}),
}
