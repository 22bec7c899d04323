"""How an error becomes the text that is kept of it. Made by users, it may do anything when it is
looked at; nothing here lets that out."""

from __future__ import annotations

from ray_workflows._model.values import ErrorInfo, Value

#: Characters kept of a message and of a traceback, from the head and from the tail of each.
MESSAGE_CHARACTERS, TRACEBACK_CHARACTERS = 16_000, 48_000


def clean(text: str) -> str:
    """A text that UTF-8 can hold: lone surrogates, as file names bring them, are escaped."""
    # Not its own methods: it may be of a class that the user wrote.
    return str.encode(text, "utf-8", "backslashreplace").decode()


def clip(text: str, most: int) -> str:
    """A text of about so many characters at most: head and tail say more than the middle."""
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
    """What ``str`` gives for an error, whatever that does."""
    try:
        return clean(str(error))
    except BaseException:
        return "<its __str__ raised>"


def error_info(
    type_name: str, message: str, traceback: str = "", exception: Value | None = None
) -> ErrorInfo:
    """An error as the journal keeps it: cleaned, and clipped to about 64 KiB of text."""
    return ErrorInfo(
        type_name=clean(type_name),
        message=clip(clean(message), MESSAGE_CHARACTERS),
        traceback=clip(clean(traceback), TRACEBACK_CHARACTERS),
        exception=exception,
    )
