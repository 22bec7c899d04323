"""No password that somebody writes into a storage's URL is shown, wherever it stands in it."""

from __future__ import annotations

import logging
import pickle

import pytest

from ray_workflows.exceptions import StorageConfigError
from ray_workflows.storage.urls import storage_from_url, storage_from_urls

SECRET = "s3cr3t-w0rd"

#: URLs that are refused, or taken without showing it.
URLS = (
    f"postgresql://me:{SECRET}@127.0.0.1:1/db",
    f"postgresql://127.0.0.1:1/db?user=me&password={SECRET}",
    f"postgresql:/me:{SECRET}@127.0.0.1/db",
    f"postgresql:me:{SECRET}@127.0.0.1/db",
    f"postgres:///me:{SECRET}@127.0.0.1/db",
    f"POSTGRESQL:/me:{SECRET}@127.0.0.1/db",
    f"mysql://me:{SECRET}@127.0.0.1/db",
    f"s3://key:{SECRET}@bucket/prefix",
    f"s3:/key:{SECRET}@bucket/prefix",
    f"s3://bucket/prefix?secret_access_key={SECRET}",
    f"s3://bucket/prefix?endpoint=https://me:{SECRET}@127.0.0.1",
    f"az:/key:{SECRET}@container",
    f"gs:/key:{SECRET}@bucket",
    f"file://me:{SECRET}@host/path",
    f"file:///path?password={SECRET}",
    f"shared://me:{SECRET}@host/path",
    f"shared:///path?password={SECRET}",
    f"shared:/path#password={SECRET}",
)


def shown(url: str) -> str:
    """All that is shown of a storage, or of why there is none."""
    try:
        storage = storage_from_url(url)
        combined = storage_from_urls("/tmp/somewhere", storage)
    except StorageConfigError as error:
        return "".join(map(str, (error, repr(error), error.__cause__, error.__context__)))
    return " ".join((storage.url, repr(storage), combined.url, repr(combined), str(combined)))


@pytest.mark.parametrize("url", URLS)
def test_no_password_is_shown(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    text = shown(url)
    assert SECRET not in text + caplog.text
    assert len(text) > 30


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"])
def test_no_password_comes_from_the_environment(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the URL leaves out is taken from there, and travels."""
    monkeypatch.setenv(variable, f"https://me:{SECRET}@127.0.0.1")
    assert SECRET not in shown("s3://bucket/prefix")
    monkeypatch.setenv(variable, "https://127.0.0.1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert SECRET not in shown("s3://bucket/prefix")
    assert SECRET.encode() not in pickle.dumps(storage_from_url("s3://bucket/prefix"))
