"""Credentials in URLs, wherever a URL stands in a text.

A credential is the user information of a URL (``https://me:password@host``), or the value of a
parameter whose name says so (``?sig=...``, ``#access_token=...``).
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable

#: What stands before the @ of a URL. Some read a password with a slash in it as one, though it
#: should be quoted: such as SQLAlchemy. A number behind the colon is a port.
USER_INFORMATION = re.compile(
    r"""
    (?<![\w+.-]) (?P<scheme> [\w+.-]*) ://
    (?P<info> [^\s/?\#"<>]* | [^\s/?\#"<>:@\[]* : (?!//|\d+(?:[/?\#\s]|$)) [^\s"<>]{0,1000}) @
    """,
    re.VERBOSE,
)

#: Schemes in whose URLs a name alone, without a password, is no credential. In others it may be a
#: token.
NAMES_ALONE = frozenset(
    ["ssh", "sftp", "abfs", "abfss", "wasb", "wasbs", "postgres", "postgresql", "mysql", "mariadb"],
)

URL = re.compile(r"(?<![\w+.-])[\w+.-]*://[^\s\"]+")
PARAMETER = re.compile(r"(?<=[?&;#])(?P<name>[^=&;#?]+)=(?P<value>[^&;#]+)")

#: Names of parameters that are credentials, as `fnmatch` patterns in lower case.
PARAMETERS = (
    "sig",
    "*signature",
    "*token",
    "*secret*",
    "*password",
    "pwd",
    "key",
    "*apikey",
    "auth",
)


def replace(text: str, replacement: Callable[[str], str], is_secret: Callable[[str], bool]) -> str:
    """A text with something else in place of each credential in it.

    Args:
        text: any text.
        replacement: what to write in place of a credential.
        is_secret: whether a name, such as ``MY_TOKEN``, is one of a secret.
    """
    if "://" not in text:
        return text

    def without_info(match: re.Match[str]) -> str:
        scheme, info = match["scheme"], match["info"]
        user, _, password = info.partition(":")
        named = NAMES_ALONE.intersection(scheme.lower().split("+"))
        if not password and (named or not user):
            return match[0]
        return f"{scheme}://{replacement(info)}@"

    def without_value(match: re.Match[str]) -> str:
        name = match["name"]
        plain = any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in PARAMETERS)
        if not plain and not is_secret(name.replace("-", "_")):
            return match[0]
        return f"{name}={replacement(match['value'])}"

    text = USER_INFORMATION.sub(without_info, text)
    return URL.sub(lambda match: PARAMETER.sub(without_value, match[0]), text)


def found(text: str, is_secret: Callable[[str], bool]) -> list[str]:
    """The credentials in the URLs of a text, and the passwords in them."""
    whole: list[str] = []

    def note(credential: str) -> str:
        whole.append(credential)
        return ""

    replace(text, note, is_secret)
    return [*whole, *(each.partition(":")[2] for each in whole)]
