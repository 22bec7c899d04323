"""Unpickles outputs with the user's code, and prints or writes them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

import click
from ray import cloudpickle

from ray_workflows.cli.printing import print_result
from ray_workflows.exceptions import WorkflowError


def load(read: Callable[[], Any], directories: Callable[[], Iterable[str]]) -> Any:
    """The result of ``read``. If a class can't be imported, tries the driver's directories too.

    Args:
        read: unpickles a value.
        directories: the import directories of the driver.

    Raises:
        WorkflowError: there is no such output.
        click.ClickException: it can't be unpickled here.
    """
    try:
        return read()
    except WorkflowError:
        raise
    except Exception as error:
        failure = error
    added = [path for path in directories() if path not in sys.path]
    # At the end of the path, so that they replace nothing installed here.
    sys.path.extend(added)
    try:
        if added:
            return read()
    except WorkflowError:
        raise
    except Exception as error:
        failure = error
    finally:
        sys.path[:] = [path for path in sys.path if path not in added]
    raise click.ClickException(
        f"The output is stored, but it can't be restored here: {type(failure).__name__}: "
        f"{failure}. Run this with the Python environment of the workflow, and with the "
        f"directory of its modules in PYTHONPATH."
    ) from failure


def print_value(value: Any, *, as_json: bool) -> None:
    """Print a value as Python or as JSON.

    Raises:
        click.ClickException: JSON can't represent it, or its ``repr`` fails.
    """
    if as_json:
        try:
            text = json.dumps(value, indent=2, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise click.ClickException(
                f"The output, of type {type(value).__name__}, can't be represented as JSON: "
                f"{error}. Leave --json out to see it as Python shows it, or write it to a file "
                f"with `output --to FILE`."
            ) from error
    else:
        try:
            text = repr(value)
        except Exception as error:
            raise click.ClickException(
                f"The repr() of the output, of type {type(value).__name__}, raised "
                f"{type(error).__name__}: {error}. Write it to a file with `output --to FILE`."
            ) from error
    print_result(text)


def pickle_value(value: Any) -> bytes:
    """Pickle a value for ``pickle.load``, with classes of the user's ``__main__`` by value."""
    try:
        data: bytes = cloudpickle.dumps(value)
    except Exception as error:
        raise click.ClickException(
            f"The output, of type {type(value).__name__}, can't be pickled by itself: {error}"
        ) from error
    return data
