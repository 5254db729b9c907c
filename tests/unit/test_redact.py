"""What counts as a secret, and what is left of it."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from gluepy.redact import MASK, REDACT, Redactor, looks_secret, masked, masked_text, secrets_in


@pytest.mark.parametrize(
    "name",
    ["API_KEY", "apiKey", "x-api-key", "db.password", "AUTH", "PASSPHRASE", "SharedAccessKey", "github_token", "DSN"],
)
def test_names_of_secrets_are_known_however_they_are_written(name: str) -> None:
    assert looks_secret(name)


@pytest.mark.parametrize("name", ["author", "max_tokens", "tokenizer", "primary_key", "sort_keys", "monkey", "region"])
def test_names_that_only_resemble_a_secrets_are_none(name: str) -> None:
    assert not looks_secret(name)


def test_patterns_say_what_is_secret() -> None:
    assert looks_secret("my-iban", ["*iban*"])
    assert not looks_secret("token", ["*iban*"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Server=db;User Id=me;Password=hush it, 1;Timeout=30", "Server=db;User Id=me;Password=***;Timeout=30"),
        ("Driver={ODBC};Uid=me;Pwd=hush;", "Driver={ODBC};Uid=me;Pwd=***;"),
        ("AccountName=x;AccountKey=hush==;Suffix=y", "AccountName=x;AccountKey=***;Suffix=y"),
        ("postgres://me:hush@host/db", "postgres://me:***@host/db"),
        ("postgres://me:hush/1#2@host/db", "postgres://me:***@host/db"),
        ("redis://:hush@host:1/0 and amqp://hush@host//", "redis://:***@host:1/0 and amqp://***@host//"),
        ("https://host/path?token=hush&page=2", "https://host/path?token=***&page=2"),
        ("Authorization: Bearer hush-hush", "Authorization: ***"),
        ("sent Bearer hush-hush", "sent Bearer ***"),
        ('{"token": "hush 1", \'api_key\': \'hush\', "n": 1}', '{"token": "***", \'api_key\': \'***\', "n": 1}'),
        ("login failed: password = 'hush \\' 1' (2)", "login failed: password = '***' (2)"),
        ("token=hush, tries=3", "token=***, tries=3"),
        ("at 12:30, a=b: http://host:80/x c@d", "at 12:30, a=b: http://host:80/x c@d"),
    ],
)
def test_secrets_inside_text_are_masked_and_the_rest_is_not(text: str, expected: str) -> None:
    assert masked_text(text) == expected


def test_what_a_value_is_made_of_is_masked_too() -> None:
    value = {"headers": {"Authorization": "Bearer hush"}, "urls": ["redis://:hush@h"], "auth": ("me", "hush"), "n": 1}
    assert masked("SERVICE", value) == {
        "headers": {"Authorization": MASK},
        "urls": [f"redis://:{MASK}@h"],
        "auth": MASK,
        "n": 1,
    }
    assert masked("token", None) is None


def test_long_text_is_masked_in_time_that_grows_with_its_length() -> None:  # else it would take hours
    for part in ("a", "a=", "x ", "Aa ", "://a:", "'", "token=", "token: x ", "a" + " " * 50):
        text = part * 30_000
        assert masked_text(text).count("x") == text.count("x") * (part != "token: x ")


def test_known_secret_is_masked_however_it_is_written() -> None:
    secret = 'it\'s a "sécret"/\\ &more'
    redact = Redactor((), [secret])
    for text in (secret, repr(secret), json.dumps(secret), json.dumps([secret], ensure_ascii=False), quote(secret)):
        assert "cret" not in redact(f"before {text} after")
        assert redact(f"before {text} after").startswith("before ")


def test_secret_of_many_lines_is_masked_line_by_line() -> None:
    redact = Redactor((), ["-----BEGIN KEY-----\nMIIEvgIBADANBg\r\nkqhkiG9w0BAQ\n"])
    assert redact("key: MIIEvgIBADANBg\nkqhkiG9w0BAQ\nend") == "key: ***\n***\nend"
    assert redact(repr("MIIEvgIBADANBg\nkqhkiG9w0BAQ")) == "'***\\n***'"


def test_numbers_are_masked_as_whole_numbers_and_short_or_plain_values_not_at_all() -> None:
    redact = Redactor((), ["123456", "99", "abc", "false", "Default"])
    assert redact("123456 1234567 0.123456 99 abc false default") == "*** 1234567 0.123456 99 abc false default"


@pytest.mark.parametrize(
    "text", ["InvalidPasswordError: no such user", "vault.exceptions.SecretNotFound: nothing there"]
)
def test_what_an_error_says_is_no_secret(text: str) -> None:
    assert masked_text(text) == text


def test_secrets_are_found_by_their_names_and_by_their_type() -> None:
    values = {
        "db": {"password": "one", "host": "x"},
        "tokens": [{"api_token": "two"}],
        "secrets": {"a": "three", "b": [4, True, None]},
        "typed": SecretStr("five"),
        "monkey": "no",
    }
    assert list(secrets_in("", values, REDACT)) == ["one", "two", "three", "4", "five"]


@pytest.mark.parametrize("pattern", ["*", "?OKEN", "[tp]oken", "token", "to*", "*ken", "*oke*", "TO*EN"])
def test_quick_look_finds_whatever_the_patterns_mean(pattern: str) -> None:
    assert Redactor([pattern], [])("a token=abc b") == "a token=*** b"


@given(
    st.lists(
        st.sampled_from(
            ["plain", "password=hush-1", "a: b", "token:", "hush-hush", "123456", "https://u:p@h/x", "x" * 30]
        ),
        max_size=6,
    )
)
def test_lines_are_masked_together_as_each_is_by_itself(lines: list[str]) -> None:
    redactor = Redactor(REDACT, ["hush-hush", "123456"])
    assert redactor.lines(lines) == [redactor(line) for line in lines]
