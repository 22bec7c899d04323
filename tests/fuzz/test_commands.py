"""Whatever is typed after ``ray-workflows`` ends with an exit code and a message, and no traceback.

Commands that look for a cluster get arguments that they refuse before: that they find none takes
long, and has tests of its own.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ray_workflows import cli
from ray_workflows.cli.clusters import NoClusterError
from ray_workflows.cli.main import main
from tests.cli.store import Store
from tests.fuzz import fuzz
from tests.fuzz.test_arguments import TEXTS

#: These need nothing but a storage.
READING = ("list", "show", "output", "env")

#: Of all commands, but for the one that names a file to write.
OPTIONS = sorted(
    {name for each in main.commands.values() for p in each.params for name in p.opts} - {"--to"}
)

WORDS = TEXTS | st.sampled_from([*OPTIONS, "done", "broken", "--", "-", "0", "-1", "1e9", "x=y"])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    store = Store(tmp_path_factory.mktemp("fuzz") / "store")
    store.successful("done")
    store.failed("broken")
    store.storage.close()
    return str(store.directory)


@fuzz
@given(command=st.sampled_from(READING), words=st.lists(WORDS, max_size=4))
def test_commands_that_read(directory: str, command: str, words: list[str]) -> None:
    done = CliRunner().invoke(main, [command, "--storage", directory, *words])
    ended = done.exception is None or isinstance(done.exception, SystemExit)
    assert ended, (command, words, done.exception)
    assert done.exit_code in (0, 1, 2)
    assert "Traceback" not in done.output
    assert done.exit_code == 0 or done.stderr


#: These act, on a storage or through a cluster, of which there is none.
ACTING = (
    *("cancel", "copy", "delete", "doctor", "fork"),
    *("prune", "repair", "resume", "signal"),
)

#: Those that would start a cluster, or run a file.
NOT_HERE = ("--local", "--script")


@pytest.fixture(scope="module")
def no_cluster() -> Iterator[None]:
    """Nobody looks for a cluster."""
    with pytest.MonkeyPatch.context() as patch:
        for module in pkgutil.iter_modules(cli.__path__, f"{cli.__name__}."):
            if module.name.endswith("__main__"):
                continue
            found = importlib.import_module(module.name)
            for name, stand_in in (("attach", nowhere), ("reaches", lambda *_: False)):
                if hasattr(found, name):
                    patch.setattr(found, name, stand_in)
        yield


def nowhere(*_: Any, **__: Any) -> NoReturn:
    raise NoClusterError("There is none.")


@fuzz
@given(
    command=st.sampled_from(ACTING),
    ids=st.lists(st.sampled_from(["done", "broken"]) | TEXTS, max_size=1),
    words=st.lists(WORDS.filter(lambda word: word not in NOT_HERE), max_size=4),
)
def test_commands_that_act(
    no_cluster: None,
    tmp_path_factory: pytest.TempPathFactory,
    command: str,
    ids: list[str],
    words: list[str],
) -> None:
    store = Store(tmp_path_factory.mktemp("fuzz") / "store")
    store.successful("done")
    store.failed("broken")
    store.storage.close()
    done = CliRunner().invoke(main, [command, *ids, "--storage", str(store.directory), *words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (0, 1, 2)
    assert "Traceback" not in done.output
    assert done.exit_code == 0 or done.output


@fuzz
@given(words=st.lists(TEXTS, min_size=1, max_size=3))
def test_commands_that_do_not_exist(words: list[str]) -> None:
    done = CliRunner().invoke(main, ["no-such-command", *words])
    assert done.exit_code == 2
    assert "No such command" in done.stderr


def test_a_storage_is_as_it_was(directory: str) -> None:
    """Reading, however wrongly it was asked for, has written nothing."""
    files = {path.name for path in Path(directory).iterdir()}
    assert {name for name in files if not name.startswith("workflows.sqlite")} <= {"blobs"}
