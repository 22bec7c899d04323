"""The servers that tests start, on machines that are set up in other ways than most."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import psycopg
import pytest

from tests.support import postgres


@pytest.mark.parametrize("version", [16, 18])
def test_a_postgres_whose_installation_only_its_owner_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """As below a directory of mode 0700, or one installed with umask 077. Its server runs as
    another account where the tests are run by root."""
    package = postgres.installation(version)
    assert package is not None
    found = package.parent
    libraries = found.with_name(f"{found.name}.libs")
    for source in (package, libraries):
        shutil.copytree(source, tmp_path / source.relative_to(found.parent), symlinks=True)
    for top, _, files in os.walk(tmp_path):
        for name in files:
            path = Path(top, name)
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & 0o700)
        Path(top).chmod(0o700)
    private = tmp_path / package.relative_to(found.parent)
    monkeypatch.setattr(postgres, "installation", lambda version: private)
    with (
        postgres.PostgresServer(version=version) as server,
        psycopg.connect(server.url) as connection,
    ):
        assert connection.execute("SELECT 1").fetchone() == (1,)
