"""Credentials in URLs: which parts of a text they are."""

from __future__ import annotations

import pytest

from ray_workflows._environment import credentials
from ray_workflows._environment.secrets import is_secret


def without(text: str) -> str:
    return credentials.replace(text, lambda _: "***", is_secret)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pw@host/a", "https://***@host/a"),
        ("https://me:p@w@host/a@b", "https://***@host/a@b"),
        ("https://token@host", "https://***@host"),
        ("https://token:@host", "https://***@host"),
        ("redis://:pw@host", "redis://***@host"),
        ("postgresql+psycopg://me:a/b?c#d@host/db", "postgresql+psycopg://***@host/db"),
        ("-fhttps://me:pw@host --x=http://t@b c", "-fhttps://***@host --x=http://***@b c"),
        ("a @ git+https://t@host/a.git@v1", "a @ git+https://***@host/a.git@v1"),
        ("http://a,http://me:pw@b/,http://t@c", "http://a,http://***@b/,http://***@c"),
        ("see 'https://host/a?sig=x&b=1' now", "see 'https://host/a?sig=***&b=1' now"),
        (
            "https://h/?X-Amz-Security-Token=a&X-Amz-Date=b",
            "https://h/?X-Amz-Security-Token=***&X-Amz-Date=b",
        ),
        ("https://h/?Signature=a&Expires=1", "https://h/?Signature=***&Expires=1"),
        ("gs://h/a?api-key=b#access_token=c", "gs://h/a?api-key=***#access_token=***"),
    ],
)
def test_what_is_replaced(text: str, shown: str) -> None:
    assert without(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "ssh://git@host/a",
        "abfss://container@account/data",
        "postgresql://me@host/db",
        "http://host:8080/a@b?c:d@e",
        "http://[::1]:80/a@b",
        "s3://bucket/a:b@c?region=x&tokens=3",
        "me@host: see http://host, or me@other",
        "token=1 sig=2",
    ],
)
def test_what_is_no_credential(text: str) -> None:
    assert without(text) == text


@pytest.mark.parametrize("part", ["a", "a:b", "://", "a://b:c/", "?sig=", "&a", "@", "a-"])
def test_long_texts_take_no_long_time(part: str) -> None:
    """The time grows with the length, not with its square: each would take minutes."""
    without("://" + part * 200_000)
