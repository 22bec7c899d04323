"""Values that are encoded by a codec of the user's: on disk, on the way back, and without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.ray.marks import Gate, Marks
from tests.ray.processes import OWN_CODE, ROOT, DriverProcess

#: What must not be found on the disk, and what is not encoded.
SECRET = "the-secret-of-somebody"
PLAIN = "what-is-not-encoded"

CODEC = """
    import hashlib, os, zlib
    import ray_workflows as workflow

    class Hidden(workflow.PayloadCodec):
        # Not encryption: only enough for a test to see what is encoded.
        name = "hidden-1"

        def __init__(self, key=b"right"):
            self.key = key

        def stream(self, salt, size):
            return hashlib.shake_128(self.key + salt).digest(size)

        def encode(self, data):
            salt = os.urandom(8)
            data = zlib.crc32(data).to_bytes(4, "big") + data
            stream = int.from_bytes(self.stream(salt, len(data)), "big")
            return salt + (int.from_bytes(data, "big") ^ stream).to_bytes(len(data), "big")

        def decode(self, data):
            salt, data = data[:8], data[8:]
            stream = int.from_bytes(self.stream(salt, len(data)), "big")
            data = (int.from_bytes(data, "big") ^ stream).to_bytes(len(data), "big")
            if zlib.crc32(data[4:]).to_bytes(4, "big") != data[:4]:
                raise ValueError("wrong key")
            return data[4:]
"""

PROLOGUE = """
    import warnings
    import numpy as np, ray
    from tests.ray.marks import Gate, Marks
    from tests.ray.start import start_cluster

    start_cluster(num_cpus=2)
    workflow.init({storage!r}{codec})
    marks, gate = Marks({marks!r}), Gate({gate!r})
    secret = {secret!r}

    @ray.remote
    def make(text):
        marks.add("make")
        assert text == secret
        inner = ray.put([text] * 10_000)
        ref = ray.put([inner, text])
        return {{"array": np.arange(200_000.0), "text": text * 5_000, "ref": ref}}

    @ray.remote
    def use(made):
        marks.add("use")
        inner, text = ray.get(made["ref"])
        return float(made["array"].sum()), made["text"][:22], len(ray.get(inner)), text

    @ray.remote
    def held(value):
        marks.add("held")
        gate.wait()
        return value

    @ray.remote(max_retries=0)
    def fail(text):
        # Messages are in the journal for people to read; the exception itself is a value.
        error = ValueError({plain!r})
        error.private = text
        raise error

    expected = (float(np.arange(200_000.0).sum()), secret, 10_000, secret)
"""


@pytest.fixture
def prologue(tmp_path: Path, marks: Marks, gate: Gate):
    def make(codec: str) -> str:
        fields = {
            "storage": str(tmp_path / "store"),
            "marks": marks.directory,
            "gate": gate.path,
            "secret": SECRET,
            "plain": PLAIN,
        }
        return CODEC + PROLOGUE.format(codec=f", codec={codec}" if codec else "", **fields)

    return make


def directories(tmp_path: Path, count: int) -> list[Path]:
    found = [tmp_path / str(number) for number in range(count)]
    for directory in found:
        directory.mkdir()
    return found


def on_disk(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file())


@pytest.mark.own_cluster
def test_values_are_encoded(prologue, tmp_path: Path, marks: Marks, gate: Gate) -> None:
    """By the driver, the workers, and for the next cluster, which resumes."""
    first = (
        prologue("Hidden()")
        + """
    with warnings.catch_warnings():
        # The same arguments are the same plan, though they are other bytes each time.
        warnings.simplefilter("error", UserWarning)
        for _ in range(2):
            dag = use.bind(make.options(**workflow.options(task_id="made")).bind(secret))
            assert workflow.run(dag, workflow_id="done") == expected
    try:
        workflow.run(fail.bind(secret), workflow_id="failed")
    except workflow.WorkflowExecutionError as error:
        cause = error.__cause__.cause
        assert (cause.args, cause.private) == (({plain!r},), secret)
    assert workflow.get_output(workflow.fork("done", from_task="made")) == expected
    workflow.run_async(use.bind(held.bind(make.bind(secret))), workflow_id="interrupted")
    print("submitted", flush=True)
    gate.wait()
    """.replace("{plain!r}", repr(PLAIN))
    )
    second = (
        prologue("")
        + """
    try:
        workflow.get_output("done")
    except workflow.PayloadCodecError as error:
        assert "'hidden-1'" in str(error) and "init(codec=" in str(error)
    else:
        raise AssertionError
    gate.open()
    try:
        workflow.resume("interrupted")
    except Exception as error:
        print(type(error).__name__, error)
        assert "hidden-1" in str(error), error
    else:
        raise AssertionError
    assert workflow.get_status("interrupted") == "RESUMABLE"
    try:
        workflow.init(codec=Hidden())
    except workflow.StorageConfigError as error:
        assert "hidden-1" in str(error)
    else:
        raise AssertionError

    # The next coordinator has the codec.
    from tests.ray.clusters import stop_coordinator
    stop_coordinator()
    workflow.init({storage!r}, codec=Hidden())
    assert workflow.get_output("done") == expected
    assert workflow.resume("interrupted") == expected
    print("all right", flush=True)
    """.replace("{storage!r}", repr(str(tmp_path / "store")))
    )
    places = directories(tmp_path, 2)
    with DriverProcess(places[0], first, **OWN_CODE) as driver:
        driver.wait_for_text("submitted")
        marks.wait_for("held")
        driver.kill_all()
    stored = on_disk(tmp_path / "store")
    assert SECRET.encode() not in stored
    assert PLAIN.encode() in stored
    before = marks.counts()
    with DriverProcess(places[1], second, **OWN_CODE) as driver:
        assert "all right" in driver.wait()
    assert marks.counts() == {**before, "held": 2, "use": before["use"] + 1}
    check_command_line(tmp_path)


#: Runs commands in one process, which is not that of a driver.
COMMANDS = """
import json, sys
from click.testing import CliRunner
from ray_workflows.cli.main import main
for arguments in json.loads(sys.argv[1]):
    done = CliRunner().invoke(main, arguments)
    print(json.dumps([done.exit_code, done.stdout, done.stderr]))
"""


def check_command_line(tmp_path: Path) -> None:
    """What reads values needs the codec, what does not need them needs none."""
    (tmp_path / "my_codecs.py").write_text(
        textwrap.dedent(CODEC) + "\nright, wrong = Hidden(), Hidden(b'wrong')\n"
    )
    store = ("--storage", str(tmp_path / "store"))
    output = ("output", "done", *store)
    commands = [
        (*output, "--codec", "my_codecs:right"),
        (*output, "--codec", "my_codecs:Hidden"),
        (*output, "--codec", "my_codecs:wrong"),
        output,
        (*output, "--codec", "my_codecs"),
        (*output, "--codec", "my_codecs:none"),
        ("show", "done", *store),
        ("copy", "done", *store, "--to", "copied"),
        ("output", "done", "--storage", "copied", "--codec", "my_codecs:right"),
        ("doctor", "--deep", *store),
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    right, by_class, wrong, without, *unusual, shown, copied, of_copy, doctor = answers
    for code, printed, _ in (right, by_class, of_copy):
        assert code == 0
        assert SECRET in printed
    assert wrong[0] == 1
    assert "output of 'done': ValueError: wrong key" in wrong[2]
    assert without[0] == 1
    assert "'hidden-1'" in without[2]
    assert "--codec module:object" in without[2]
    assert "Traceback" not in without[2]
    for (code, _, said), message in zip(unusual, ("module:object", "AttributeError"), strict=True):
        assert code == 2
        assert message in said
    assert "SUCCESSFUL" in shown[1]
    assert copied[0] == 0
    assert doctor[1].count("problem") <= 2
