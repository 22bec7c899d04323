"""Options and kinds of values that several commands share."""

from __future__ import annotations

import importlib
import operator
import os
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ray_workflows._client.environments import CURRENT, RECORDED
from ray_workflows.cli.messages import CODEC, GIVEN, GIVEN_BLOBS
from ray_workflows.codec import check_codecs

Command = TypeVar("Command", bound=Callable[..., Any])

SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


def parse_duration(text: str) -> float:
    """The seconds of ``30d``, ``12h``, ``90m``, ``45s`` or ``2w``."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhdw])", text.strip(), re.ASCII)
    if match is None:
        raise click.BadParameter(
            f"{text!r} is not a duration. Write a number and a unit without a blank: 30d, 12h, "
            f"90m, 45s or 2w."
        )
    return float(match[1]) * SECONDS[match[2]]


def remember_storage(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Keep the given storage for the remedies in messages."""
    ctx.find_root().meta[GIVEN] = value
    return value


def remember_blobs(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Keep ``--blobs`` in the context, from which opening the storage reads it."""
    ctx.find_root().meta[GIVEN_BLOBS] = value


def storage_option(command: Command) -> Command:
    """The options that name a storage. Without them, `find_reader` and `connect` find one."""
    for option in (
        click.option(
            "--blobs",
            metavar="DIR|URL",
            callback=remember_blobs,
            expose_value=False,
            help="Where the values are, if not there. Default: $RAY_WORKFLOW_BLOBS, if the "
            "storage is not named either.",
        ),
        click.option(
            "--storage",
            metavar="DIR|URL",
            callback=remember_storage,
            help="Directory or URL of the workflows. Default: $RAY_WORKFLOW_STORAGE, else what the "
            "running cluster uses, else the directory of this user.",
        ),
    ):
        command = option(command)
    return command


def load_codec(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Load the codecs that ``module:object`` names into the context, for opening the storage."""
    if value is None:
        return
    module, colon, name = value.partition(":")
    if not (module and colon and name):
        raise click.BadParameter(f"{value!r} is not of the form module:object.")
    # As for `python -m`: import from the current directory too.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = operator.attrgetter(name)(importlib.import_module(module))
        codec = found() if isinstance(found, type) else found
        ctx.find_root().meta[CODEC] = check_codecs(codec)
    except Exception as error:
        raise click.BadParameter(
            f"{value!r} can't be used: {type(error).__name__}: {error} Name a module that can be "
            f"imported here, and in it a PayloadCodec, a class of one that takes no arguments, or "
            f"a list of them."
        ) from error


codec_option = click.option(
    "--codec",
    metavar="MODULE:OBJECT",
    callback=load_codec,
    expose_value=False,
    help="The codec of the values, if init() was given one. Default: that of the running cluster.",
)

code_option = click.option(
    "--code",
    type=click.Choice((RECORDED, CURRENT)),
    default=RECORDED,
    show_default=True,
    help="With the code that it has, or with that of the same modules here, and of --script.",
)

address_option = click.option(
    "--address",
    metavar="HOST:PORT",
    help="The Ray cluster to connect to. Default: $RAY_ADDRESS, else the one that runs on this "
    "machine. None is ever started.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")

workflow_argument = click.argument("workflow_id", metavar="ID")
