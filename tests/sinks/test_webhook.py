"""The sink `webhook` posts what it is asked to, tries again, and tells nobody its URL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from receivers import Receiver, Request

import gluepy
from gluepy.cli import main
from gluepy.conf.schema import Settings, Source
from gluepy.core.policy import Retry
from gluepy.errors import SettingsError, SinkFailed
from gluepy.sinks.http import RequestFailed, send
from gluepy.sinks.webhook import NAMES, TEMPLATES, JsonTemplate, Messages, Webhook
from gluepy.testing import SinkContract, Step, events_of
from gluepy.testing.sinks import run, script

HERE = Source("module", "settings.py")
FAST = Retry(attempts=3, wait_s=0.001, jitter=0.0)
SECRET = "/services/T0/B0/hunter22"


def to(receiver: Receiver, settings: Settings, **fields: Any) -> Settings:
    fields = {"url": receiver.url + SECRET, **fields}
    groups = {"WEBHOOK": {name: (value, HERE) for name, value in fields.items()}}
    return settings.replaced(groups=groups, SINK_TIMEOUT_S=60.0)


class TestWebhook(SinkContract):
    @pytest.fixture
    def sink(self) -> Any:
        with Receiver() as receiver:
            yield Webhook(receiver.url, frozenset(NAMES))


async def test_failed_run_is_told_once_with_what_failed(settings: Settings) -> None:
    with Receiver() as receiver:
        result = await run(to(receiver, settings), script(), "webhook")
    (request,) = receiver.requests
    told = json.loads(request.body)
    assert request.path == SECRET
    assert request.headers["content-type"] == "application/json"
    assert (told["event"], told["run_id"], told["dag"]) == ("run.failed", result.run_id, "sinkcontractdag")
    assert told["failed"] == ["fails"]
    failure = {"task": "fails", "attempt": 1, "reason": "exception", "error": "RuntimeError: größe ☃"}
    assert told["failures"] == [failure]
    about = f"run {result.run_id[-12:]} of sinkcontractdag"
    assert told["message"] == f"{about} failed\nfails: RuntimeError: größe ☃"


async def test_resumed_run_tells_what_failed_in_it_alone(settings: Settings) -> None:
    messages = Messages()
    failed = await run(settings, script())
    *before, end = events_of(failed)
    for event in [*before, before[0]]:  # the first failed session has no end, and another one begins
        messages.note(event)
    assert messages.of(end)["failures"] == []


async def test_run_that_ends_well_is_told_only_if_asked_for(settings: Settings) -> None:
    with Receiver() as receiver:
        await run(to(receiver, settings), script(fails=Step()), "webhook")
        assert receiver.requests == []
        asked = to(receiver, settings, events=["run.finished", "task.retrying"])
        await run(asked, script(fails=Step()), "webhook")
    told = [json.loads(request.body) for request in receiver.requests]
    assert [each["event"] for each in told] == ["task.retrying", "run.finished"]
    assert "attempt 1 of 2 failed\nRuntimeError: flaky" in told[0]["message"]
    assert "graph" not in told[1]


async def test_message_sent_again_has_the_same_key(settings: Settings) -> None:
    with Receiver() as receiver:
        result = await run(to(receiver, settings, events=list(NAMES)), script(), "webhook")
        keys = [request.headers["idempotency-key"] for request in receiver.requests]
        assert len(set(keys)) == len(events_of(result))
        receiver.requests.clear()
        await gluepy.export_run(result.run_id, "webhook", settings=to(receiver, settings, events=list(NAMES)))
        assert [request.headers["idempotency-key"] for request in receiver.requests] == keys


@pytest.mark.parametrize("template", TEMPLATES)
async def test_chat_rooms_get_json_that_holds_the_message(settings: Settings, template: str) -> None:
    with Receiver() as receiver:
        await run(to(receiver, settings, template=template), script(), "webhook")
    (request,) = receiver.requests
    sent = json.loads(request.body)
    text = sent["text"] if template == "slack" else sent["attachments"][0]["content"]["body"][0]["text"]
    assert text.endswith(" of sinkcontractdag failed\nfails: RuntimeError: größe ☃")


def test_template_puts_fields_into_strings_whatever_is_in_them() -> None:
    body = JsonTemplate('{"a": "${dag}: $error_type", "n": "$duration_s", "$$x": "$task", "f": "$failures"}')
    odd = 'say "no"\\\n$task ☃'
    told = json.loads(body({"dag": odd, "error.type": "E", "duration_s": 1.5, "failures": [{"task": "a"}]}))
    assert told == {"a": f"{odd}: E", "n": "1.5", "$x": "", "f": '[{"task": "a"}]'}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"url": "hooks.example" + SECRET}, r"WEBHOOK\.url.*does not begin with http"),
        ({"url": ["x"]}, r"WEBHOOK\.url"),
        ({"events": ["run.fail"]}, r"WEBHOOK\.events.*did you mean 'run.failed'"),
        ({"events": []}, r"WEBHOOK\.events"),
        ({"template": "slak"}, r"WEBHOOK\.template.*not JSON.*'slack', 'teams'"),
        ({"template": '{"a": "$mesage"}'}, r"WEBHOOK\.template.*did you mean 'message'"),
        ({"template": '{"a": "$ 5"}'}, r"WEBHOOK\.template.*\$\$"),
        ({"attempts": 0}, r"WEBHOOK\.attempts"),
    ],
)
def test_mistake_in_the_settings_is_named_without_the_url(settings: Settings, fields: dict[str, Any], why: str) -> None:
    given = {"url": "https://hooks.example" + SECRET, **fields}
    with pytest.raises(SettingsError, match=why) as error:
        Webhook.from_settings(settings.replaced(groups={"WEBHOOK": {key: (each, HERE) for key, each in given.items()}}))
    assert "hunter22" not in str(error.value)


@pytest.mark.parametrize("how", ["refused", "error", "garbage"])
async def test_failure_to_send_tells_the_host_and_nothing_else_of_the_url(settings: Settings, how: str) -> None:
    with Receiver(how, answer=echo) as receiver, structlog.testing.capture_logs() as logs:
        hurried = to(receiver, settings, attempts=1)
        result = await run(hurried, script(), "webhook")
        with pytest.raises(SinkFailed) as error:
            await gluepy.export_run(result.run_id, "webhook", settings=hurried)
        assert f"127.0.0.1:{receiver.port}" in str(error.value)
    (warning,) = [line for line in logs if line.get("sink")]
    assert "hunter22" not in f"{logs}{error.value}"
    assert warning["send_again"] == f"gluepy export {result.run_id} --sink webhook"


def echo(request: Request) -> tuple[int, str, bytes]:
    return 403, "text/plain", f"no_service {request.path}".encode()


async def test_what_the_server_says_of_the_url_is_left_out(settings: Settings) -> None:
    with Receiver(answer=echo) as receiver:
        result = await run(settings, script())
        with pytest.raises(SinkFailed, match="answered 403 Forbidden: no_service …") as error:
            await gluepy.export_run(result.run_id, "webhook", settings=to(receiver, settings))
    assert "hunter22" not in str(error.value)


def test_settings_are_shown_without_the_url(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GLUEPY_WEBHOOK__URL", "https://hooks.example" + SECRET)
    (folder / "settings.py").write_text('SINKS = ["webhook"]\n')
    with pytest.raises(SystemExit):
        main(["settings"])
    shown = capsys.readouterr().out
    assert "WEBHOOK.URL" in shown
    assert "hunter22" not in shown


def test_server_that_is_away_or_busy_is_asked_again() -> None:
    statuses = iter([503, 429, 200])

    def busy(request: Request) -> tuple[int, str, bytes]:
        return next(statuses), "text/plain", b""

    with Receiver(answer=busy) as receiver, httpx.Client() as client:
        assert send(client, "POST", receiver.url, FAST).status_code == 200
    assert len(receiver.requests) == 3


def test_server_that_says_no_is_not_asked_again() -> None:
    with Receiver(answer=echo) as receiver, httpx.Client() as client, pytest.raises(RequestFailed) as error:
        send(client, "POST", receiver.url + "/x", FAST)
    assert (error.value.status, len(receiver.requests)) == (403, 1)


@pytest.mark.parametrize(("how", "status", "times"), [("error", 500, 3), ("well", 301, 1)])
def test_server_that_stays_away_is_asked_so_often_and_redirects_are_not_followed(
    how: str, status: int, times: int
) -> None:
    with (
        Receiver(how, answer=lambda request: (301, "text/plain", b"")) as receiver,
        httpx.Client() as client,
        pytest.raises(RequestFailed, match=f"answered {status}"),
    ):
        send(client, "POST", receiver.url, FAST)
    assert len(receiver.requests) == times
