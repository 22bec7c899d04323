"""Parses PostgreSQL URLs: connection parameters, schema, and a URL that is safe to show.
Nothing is connected here.
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import quote, unquote

from psycopg import ProgrammingError, pq
from psycopg.conninfo import conninfo_to_dict

from ray_workflows.exceptions import StorageConfigError

DEFAULT_SCHEMA = "ray_workflows"

#: Defaults of parameters. With them a lost server is noticed within seconds, not when the system
#: gives up after a quarter of an hour. Seconds; the last but one in milliseconds.
DEFAULTS: dict[str, str] = {
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "fallback_application_name": "ray-workflows",
}

#: Parameters whose defaults depend on the account: this process's values travel to the others.
PERSONAL = ("user", "port")

#: A parameter that libpq accepts in URLs (made for JDBC) but does not list.
UNLISTED = {"ssl"}

#: The form of libpq's parameter names. Any other text may be the end of a password.
PARAMETER = re.compile(r"[a-z_]+")


class Target:
    """A schema in a database of a server. Pickles with its password; shows none.

    ``parameters`` are libpq's, ``url`` is the identity: host, port, database and schema.
    """

    __slots__ = ("parameters", "schema", "url")

    def __init__(self, parameters: dict[str, Any], schema: str) -> None:
        self.parameters = parameters
        self.schema = schema
        self.url = public_url(parameters, schema)

    def __reduce__(self) -> tuple[Any, ...]:
        return Target, (self.parameters, self.schema)

    def __repr__(self) -> str:
        return f"Target({self.url!r})"

    def connect_parameters(self) -> dict[str, Any]:
        """The parameters for libpq."""
        parameters = {**DEFAULTS, **self.parameters, "client_encoding": "UTF8"}
        if "," in str(parameters.get("host", "")):
            # Of several servers, use the one that takes writes.
            parameters.setdefault("target_session_attrs", "read-write")
        return parameters


def parse_target(url: str) -> Target:
    """The target of a ``postgresql:`` URL, completed from this process's environment.

    Raises:
        StorageConfigError: the URL can't be understood. The message shows no part of it that could
            be a password.
    """
    address, _, query = url.partition("?")
    kept: list[str] = []
    schema = DEFAULT_SCHEMA
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()} | UNLISTED
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        if name == "schema":
            schema = unquote(value)
            continue
        if not PARAMETER.fullmatch(name):
            raise unreadable()
        if name not in known:
            raise StorageConfigError(
                f"The PostgreSQL URL has the unknown parameter {name!r}. Known are schema and the "
                f"connection parameters of libpq, such as sslmode, connect_timeout and options. "
                f"(A '?' in a password is written %3F.)"
            )
        kept.append(part)
    check_schema(schema)
    scheme, _, rest = address.partition("://")
    # The end of an unencoded password would be taken for the database's name, and be shown.
    if set("@/") & set(rest.partition("/")[2]):
        raise unreadable()
    try:
        parameters = conninfo_to_dict(f"{scheme.lower()}://{rest}?{'&'.join(kept)}".rstrip("?"))
    except ProgrammingError:
        # libpq's message quotes the URL, perhaps with the password.
        raise unreadable() from None
    ports = str(parameters.get("port") or "").split(",")
    if not all(port == "" or (port.isascii() and port.isdigit()) for port in ports):
        raise unreadable()
    if "" in ports:
        # libpq takes an empty port for the default. Written out, equal URLs stay equal.
        parameters["port"] = ",".join(port or "5432" for port in ports)
    if not any(ports):
        del parameters["port"]
    if "service" not in parameters:
        parameters = {**environment(), **parameters}
        if not parameters.get("dbname"):
            parameters["dbname"] = parameters.get("user", "")
    return Target(parameters, schema)


def unreadable() -> StorageConfigError:
    """The error for a URL that can't be split into parts: it shows none, as one may be a
    password."""
    return StorageConfigError(
        "The PostgreSQL URL can't be read. It is postgresql://user:password@host:port/database"
        "?schema=name; in user and password, write %40 for '@', %3A for ':', %2F for '/', "
        "%3F for '?', %23 for '#' and %25 for '%'."
    )


def environment() -> dict[str, Any]:
    """Parameters from this process's environment: PG* variables, service file, account."""
    everything = "PGSERVICE" in os.environ
    found = {}
    for option in pq.Conninfo.get_defaults():
        name = option.keyword.decode()
        named = option.envvar is not None and option.envvar.decode() in os.environ
        if option.val and (everything or named or name in PERSONAL):
            found[name] = option.val.decode()
    # Its values are resolved now, so that other nodes need no service file.
    found.pop("service", None)
    found.pop("servicefile", None)
    return found


def check_schema(schema: str) -> None:
    """Raise unless PostgreSQL takes this as the name of a schema."""
    # A percent sign would start a placeholder in every query.
    if (
        not schema
        or set("\0%") & set(schema)
        or len(schema.encode()) > 63
        or schema.startswith("pg_")
    ):
        raise StorageConfigError(
            f"schema={schema!r} can't be the name of a schema. It has up to 63 bytes, no '%' "
            f"in it, and does not start with pg_."
        )


def public_url(parameters: dict[str, Any], schema: str) -> str:
    """A URL without credentials, in a normal form: equal targets have equal URLs."""
    query = {}
    hosts = str(parameters.get("host") or parameters.get("hostaddr") or "").split(",")
    ports = str(parameters.get("port") or "").split(",")
    address = ""
    if "service" in parameters:
        query["service"] = parameters["service"]
    if any(host.startswith(("/", "@")) for host in hosts):
        query.update(host=",".join(hosts), port=",".join(ports))
    else:
        # A single port is for all hosts.
        ports = ports * len(hosts) if len(ports) == 1 else ports
        pairs = zip(hosts, ports, strict=False)
        address = ",".join(f"{bracketed(h.lower())}:{p}" if p else bracketed(h) for h, p in pairs)
    if schema != DEFAULT_SCHEMA:
        query["schema"] = schema
    database = quote(str(parameters.get("dbname") or ""), safe="")
    tail = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in query.items())
    return f"postgresql://{address}/{database}" + (f"?{tail}" if tail else "")


def bracketed(host: str) -> str:
    """A host in the form of URLs: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else quote(host, safe="")
