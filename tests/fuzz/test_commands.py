"""Whatever is typed after ``ray-workflows`` ends with an exit code and a message, and no traceback.

Commands that look for a cluster get arguments that they refuse before: that they find none takes
long, and has tests of its own.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

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
