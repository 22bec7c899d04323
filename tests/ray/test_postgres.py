"""Clusters whose workflows are in PostgreSQL, which is killed and away. Shared: `test_owners`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray.marks import Gate, Marks
from tests.ray.processes import DriverProcess

SECRET = "s3cr3t-w0rd"

# They share a server, which they kill.
pytestmark = pytest.mark.own_cluster("killed server")

PROLOGUE = """
    import numpy as np, ray, ray_workflows as workflow
    from tests.ray.marks import Gate, Marks, wait_until
    from tests.ray.test_crashes import chain, held, step
    from tests.ray.start import start_cluster

    start_cluster(num_cpus=2)
    workflow.init({url!r})
    marks, gate = Marks({marks!r}), Gate({gate!r})

    @ray.remote
    def make_objects():
        return {{"array": np.ones(2_000_000), "ref": ray.put(np.ones(300_000))}}

    @ray.remote
    def use_objects(objects, *rest):
        return float(objects["array"].sum() + ray.get(objects["ref"]).sum())
"""


@pytest.fixture(scope="module")
def server() -> Iterator:
    try:
        from tests.support.postgres import GUARDED, PostgresServer
    except ImportError:
        pytest.skip("psycopg is not installed")
    import psycopg

    with PostgresServer() as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {GUARDED} LOGIN PASSWORD '{SECRET}'")
            connection.execute(f"GRANT CREATE ON DATABASE postgres TO {GUARDED}")
        yield server


@pytest.fixture
def prologue(server, marks: Marks, gate: Gate, request) -> str:
    from tests.support.postgres import GUARDED

    url = (
        f"postgresql://{GUARDED}:{SECRET}@127.0.0.1:{server.port}/postgres"
        f"?schema={request.node.name}"
    )
    return PROLOGUE.format(url=url, marks=marks.directory, gate=gate.path)


def stored_bytes(server) -> bytes:
    """All that is in the database, as a dump has it."""
    import psycopg

    text = []
    with psycopg.connect(server.url) as connection:
        tables = connection.execute(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables "
            "WHERE schemaname LIKE 'test%'"
        ).fetchall()
        for (table,) in tables:
            rows = connection.execute(f"SELECT to_json(t)::text FROM {table} AS t")
            text += [line for (line,) in rows]
    return "\n".join(text).encode()


def directories(tmp_path: Path, count: int = 2) -> list[Path]:
    found = [tmp_path / str(number) for number in range(count)]
    for directory in found:
        directory.mkdir()
    return found


def test_the_loss_of_the_cluster_and_of_the_server(
    server, prologue: str, marks: Marks, gate: Gate, tmp_path: Path
) -> None:
    first = (
        prologue
        + """
    objects = make_objects.bind()
    waiting = held.bind(marks, gate, chain(marks, 10, objects))
    workflow.run_async(use_objects.bind(objects, waiting), workflow_id="interrupted")
    workflow.run(chain(marks, 1), workflow_id="finished")
    print("submitted", flush=True)
    gate.wait()
    """
    )
    second = (
        prologue
        + """
    assert workflow.get_status("finished") == "SUCCESSFUL"
    gate.open()
    ((workflow_id, ref),) = workflow.resume_all()
    assert workflow_id == "interrupted"
    assert ray.get(ref) == 2_300_000.0
    assert workflow.get_output("interrupted") == 2_300_000.0
    assert workflow.run(chain(marks, 1), workflow_id="finished") == 0
    workflow.delete("finished")
    print("all right", flush=True)
    """
    )
    one, two = directories(tmp_path)
    with DriverProcess(one, first) as driver:
        driver.wait_for_text("submitted")
        marks.wait_for("held")
        driver.kill_all()
        assert SECRET not in driver.text()
    before = marks.counts()
    server.kill()
    server.start()
    with DriverProcess(two, second) as driver:
        assert "all right" in driver.wait()
        assert SECRET not in driver.text()
    assert marks.counts() == {**before, "held": 2}
    stored = stored_bytes(server)
    assert b"interrupted" in stored
    assert b"make_objects".hex().encode() in stored
    # Bytes are in hexadecimal there.
    for form in (SECRET.encode(), SECRET.encode().hex().encode()):
        assert form not in stored


def test_a_server_that_is_away_is_waited_for(
    server, prologue: str, marks: Marks, gate: Gate, tmp_path: Path
) -> None:
    code = (
        prologue
        + """
    dag = held.bind(marks, gate, chain(marks, 3))
    ref = workflow.run_async(dag, workflow_id="running")
    marks.wait_for("held")
    print("running", flush=True)
    Gate(marks.directory + ".down").wait()
    gate.open()
    for verb in (
        lambda: workflow.get_status("running"),
        lambda: workflow.list_all(),
        lambda: workflow.run_async(dag, workflow_id="other"),
    ):
        try:
            raise SystemExit(f"answered {verb()}")
        except workflow.StorageUnavailableError as error:
            assert "127.0.0.1" in str(error), error
            assert "s3cr3t" not in str(error), error
    print("said so", flush=True)
    assert ray.get(ref) == 2
    assert marks.count("held") == 1
    assert workflow.get_status("running") == "SUCCESSFUL"
    print("all right", flush=True)
    """
    )
    with DriverProcess(tmp_path, code) as driver:
        driver.wait_for_text("running")
        server.kill()
        try:
            Gate(marks.directory + ".down").open()
            driver.wait_for_text("said so")
        finally:
            server.start()
        assert "all right" in driver.wait()


def test_values_elsewhere(server, prologue: str, tmp_path: Path) -> None:
    blobs = tmp_path / "values"
    code = (
        prologue.replace("workflow.init(", f"workflow.init(blobs={str(blobs)!r}, storage=")
        + f"""
    assert workflow.run(use_objects.bind(make_objects.bind()), workflow_id="w") == 2_300_000.0
    workflow.init()
    workflow.init(blobs={str(blobs)!r}, storage=URL)
    for other in (dict(storage=URL), dict(storage=URL, blobs={str(tmp_path)!r})):
        try:
            raise SystemExit(f"accepted {{workflow.init(**other)}}")
        except workflow.StorageConfigError as error:
            assert "One cluster has one storage" in str(error), error
            assert "{SECRET}" not in str(error), error
    print("all right", flush=True)
    """
    )
    url = prologue.split("workflow.init(")[1].split(")", maxsplit=1)[0]
    with DriverProcess(tmp_path, code.replace("URL", url)) as driver:
        assert "all right" in driver.wait()
    large = [path for path in blobs.rglob("*") if path.is_file() and path.stat().st_size > 2**20]
    assert len(large) == 2
    schema = url.rpartition("=")[2].strip("'")
    assert count_rows(server, f"{schema}.blobs") == 0
    assert count_rows(server, f"{schema}.catalog WHERE status <> 'NONE'") == 1


def count_rows(server, table: str) -> int:
    import psycopg

    with psycopg.connect(server.url) as connection:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
