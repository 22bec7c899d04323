"""Turns an error into the text that the journal keeps. A user's exception may run any code when it
is converted to text; errors of that code do not get out of here."""

from __future__ import annotations

from ray_workflows._model.values import ErrorInfo, Value

#: Characters kept of a message and of a traceback, from the head and from the tail of each.
MESSAGE_CHARACTERS, TRACEBACK_CHARACTERS = 16_000, 48_000


def clean(text: str) -> str:
    """A text that UTF-8 can encode: lone surrogates, as file names bring them, are escaped."""
    # Not the text's own method: it may be of a user's subclass.
    return str.encode(text, "utf-8", "backslashreplace").decode()


def clip(text: str, most: int) -> str:
    """A text cut to about ``most`` characters: head and tail say more than the middle."""
    left_out = len(text) - most
    if left_out <= 0:
        return text
    return f"{text[: most // 2]}\n[... {left_out} characters left out ...]\n{text[-(most // 2) :]}"


def name_of(error: BaseException) -> str:
    """The name of an error's type."""
    try:
        return clean(type(error).__name__)
    except BaseException:
        return "Exception"


def text_of(error: BaseException) -> str:
    """The result of ``str`` for an error, even if that raises."""
    try:
        return clean(str(error))
    except BaseException:
        return "<its __str__ raised>"


def error_info(
    type_name: str, message: str, traceback: str = "", exception: Value | None = None
) -> ErrorInfo:
    """The journal's record of an error: cleaned, and clipped to about 64 KiB of text."""
    return ErrorInfo(
        type_name=clean(type_name),
        message=clip(clean(message), MESSAGE_CHARACTERS),
        traceback=clip(clean(traceback), TRACEBACK_CHARACTERS),
        exception=exception,
    )
