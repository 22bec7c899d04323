"""`ObjectStorage`: workflows in a bucket of S3, Google Cloud Storage or Azure.
The algorithm is `PutOnceStorage`; this module knows URLs, options and credentials.
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from ray_workflows.exceptions import StorageConfigError
from ray_workflows.storage.access import opening
from ray_workflows.storage.objects.bucket_client import RemoteOperations
from ray_workflows.storage.objects.home import ObjectsHome

#: What may be set in the URL: nothing that is secret. All else comes from the environment.
OPTIONS = {
    "s3": ("endpoint", "region", "allow_http", "virtual_hosted_style_request", "request_payer"),
    "gs": ("endpoint", "allow_http"),
    "az": ("account_name", "endpoint", "allow_http", "use_emulator"),
}

#: The environment variables for options that the URL leaves out. They are read once, so that every
#: process of the cluster uses the same place, whatever its own environment says.
VARIABLES = {
    "s3": {
        "endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
        "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
        "allow_http": ("AWS_ALLOW_HTTP",),
    },
    "gs": {},
    "az": {
        "account_name": ("AZURE_STORAGE_ACCOUNT_NAME",),
        "endpoint": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
        "use_emulator": ("AZURE_STORAGE_USE_EMULATOR",),
    },
}

#: The options that are part of the identity: the same bucket name at another endpoint is another
#: bucket.
IDENTITY = ("account_name", "endpoint", "use_emulator")

BOOLEANS = ("allow_http", "virtual_hosted_style_request", "request_payer", "use_emulator")

SECRETS = re.compile(r"key|secret|token|password|credential|sas|signature", re.IGNORECASE)


class Bucket(ObjectsHome):
    """A bucket, below a prefix.

    Args:
        url: as `ObjectStorage` takes it.

    Raises:
        StorageConfigError: the URL has no bucket, an unknown option, or a secret.
    """

    operations: RemoteOperations

    def __init__(self, url: str) -> None:
        self.scheme, self.bucket, self.prefix, given = split_url(url)
        self.options: dict[str, str] = with_environment(self.scheme, given)
        super().__init__(RemoteOperations(self.url, self.connect))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.full_url(tuple(self.options)),)

    @property
    def url(self) -> str:
        """The URL with the options that identify the storage, without credentials."""
        return self.full_url(IDENTITY)

    def full_url(self, names: tuple[str, ...]) -> str:
        """The URL with some of the options."""
        shown = {name: value for name, value in sorted(self.options.items()) if name in names}
        path = quote(f"{self.bucket}/{self.prefix}".rstrip("/"))
        query = "?" + urlencode(shown, safe=":/") if shown else ""
        return f"{self.scheme}://{path}{query}"

    def connect(self, client: dict[str, Any], retry: dict[str, Any]) -> Any:
        """The obstore store. Called by `RemoteOperations`."""
        from obstore.store import AzureStore, GCSStore, S3Store

        options: dict[str, Any] = {
            name: value.lower() == "true" if name in BOOLEANS else value
            for name, value in self.options.items()
        }
        client = {**client, "allow_http": options.pop("allow_http", False)}
        make: Any = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}[self.scheme]
        options.update(prefix=self.prefix or None, client_options=client, retry_config=retry)
        return make(self.bucket, **options)

    def open(self) -> None:
        """Check that the bucket can be used and honours conditional writes.

        Raises:
            StorageConfigError: no such bucket, wrong credentials or region, no conditional
                writes; the message names the remedy.
            StorageUnavailableError: the store does not answer.
        """
        check_http(self.options)
        with opening():
            super().open()

    def open_existing(self) -> None:
        """Check that there is a storage here and that it can be read; creates nothing.

        Raises:
            StorageConfigError: there is none, or it can't be read.
        """
        check_http(self.options)
        with opening():
            super().open_existing()


def split_url(url: str) -> tuple[str, str, str, dict[str, str]]:
    """Scheme, bucket, prefix and options of a URL. No message shows the URL: it may have secrets.

    Raises:
        StorageConfigError: it has no bucket, an unknown option, or a secret.
    """
    scheme = url.partition(":")[0].lower()
    example = f"{scheme}://bucket/prefix"
    try:
        parts = urlsplit(url)
    except ValueError:
        # Python's own text may have credentials in it.
        raise StorageConfigError(
            f"The {scheme}:// URL can't be read: its bucket has brackets or other characters that "
            f"no bucket has. Write {example}."
        ) from None
    if "@" in parts.netloc:
        raise StorageConfigError(
            f"The {scheme}:// URL has credentials in it. Leave them out, and set the provider's "
            f"variables (for S3 $AWS_ACCESS_KEY_ID and $AWS_SECRET_ACCESS_KEY) on every node."
        )
    if not parts.netloc:
        raise StorageConfigError(f"The {scheme}:// URL names no bucket. Write {example}.")
    if parts.fragment:
        raise StorageConfigError(f"The {scheme}:// URL has a fragment. Write %23 for '#'.")
    prefix = "/".join(part for part in unquote(parts.path).split("/") if part)
    if any(part in (".", "..") for part in prefix.split("/")):
        raise StorageConfigError(f"The prefix {prefix!r} has '.' or '..' in it. Leave them out.")
    options = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in OPTIONS[scheme]:
            hint = "options are " + ", ".join(OPTIONS[scheme])
            if SECRETS.search(name):
                hint = "secrets come from the provider's environment variables alone"
            raise StorageConfigError(f"{scheme}:// URLs have no option {name!r}: {hint}.")
        if name in BOOLEANS and value.lower() not in ("true", "false"):
            raise StorageConfigError(f"{name} is {value!r} in the URL; write true or false.")
        if name == "endpoint" and "@" in value:
            raise StorageConfigError("The endpoint has credentials in it. Leave them out.")
        options[name] = value
    return scheme, unquote(parts.netloc), prefix, options


def check_http(options: dict[str, str]) -> None:
    """Raise if the endpoint is plain http and ``allow_http`` is not set."""
    plain = options.get("endpoint", "").lower().startswith("http://")
    if plain and options.get("allow_http") != "true" and options.get("use_emulator") != "true":
        raise StorageConfigError(
            f"The endpoint {options['endpoint']} is plain http, where everybody on the way reads "
            f"along. Use https, or say that it is meant: add allow_http=true to the options of the "
            f"URL, behind '?' or '&', or set $AWS_ALLOW_HTTP=true."
        )


def with_environment(scheme: str, given: dict[str, str]) -> dict[str, str]:
    """The options of a URL, completed from this process's environment."""
    options = dict(given)
    for name, variables in VARIABLES[scheme].items():
        if name not in options:
            found = [os.environ[variable] for variable in variables if os.environ.get(variable)]
            if found:
                options[name] = found[0].lower() if name in BOOLEANS else found[0]
    if "endpoint" in options and "@" in options["endpoint"]:
        raise StorageConfigError("The endpoint in the environment has credentials in it.")
    return options
