"""Run by test_modes.py as a process of its own: the notebook in a kernel, which is killed."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import nbformat
from jupyter_client import KernelManager
from nbclient import NotebookClient

from tests.ray.marks import wait_until
from tests.ray.processes import is_running
from tests.support.directories import short_directory


class Kernel:
    """A kernel that executes cells of a notebook; used as a context."""

    def __init__(self, directory: Path) -> None:
        self.notebook = nbformat.read(os.environ["NOTEBOOK"], as_version=4)
        # Sockets instead of ports.
        self.private = short_directory()
        manager = KernelManager(
            kernel_name="python3",
            transport="ipc",
            ip=f"{self.private}/kernel",
            connection_file=f"{self.private}/kernel.json",
        )
        self.client = NotebookClient(self.notebook, km=manager, timeout=120)
        environment = {**os.environ, "IPYTHONDIR": self.private}
        self.setup = self.client.setup_kernel(cwd=str(directory), env=environment)

    def __enter__(self) -> Kernel:
        self.setup.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.setup.__exit__(*error)
        shutil.rmtree(self.private, ignore_errors=True)

    def kill(self) -> None:
        """SIGKILL it."""
        pid = self.client.km.provisioner.pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_running(pid), "the kernel is gone")

    def execute(self, source: str) -> str:
        """Execute a cell; what it printed and its value, as text."""
        cell = nbformat.v4.new_code_cell(source)
        self.notebook.cells.append(cell)
        self.client.execute_cell(cell, len(self.notebook.cells) - 1)
        texts = [
            output.get("text") or output["data"]["text/plain"]
            for output in cell.outputs
            if output.get("name") != "stderr"
        ]
        return "".join(texts)

    def cells(self) -> list[str]:
        return [cell.source for cell in self.notebook.cells if cell.cell_type == "code"]


BESIDE = """
@ray.remote
def look():
    import beside
    return beside.NAME
workflow.run(look.options(**workflow.options(task_id="look")).bind(), workflow_id="beside")
"""


def main(directory: Path) -> None:
    with Kernel(directory) as kernel:
        first, *cells = kernel.cells()
        kernel.execute(first)
        for _ in ("first", "again"):
            tasks, draft, awaited, failing, last = map(kernel.execute, cells)
            assert not tasks
            assert draft == "Report(durable: 7, workflow: 8)"
            assert awaited == "['one: 3', 'three: 5']"
            assert "nobody has approved it" in failing, failing
            assert "FAILED" in last, last
        assert "twice" in kernel.execute("try: ray.init()\nexcept RuntimeError as e: print(e)")
        # An edited task under a finished id: the stored output. A value of a class that was
        # defined again is still one of the class it was made of.
        cells[0] = cells[0].replace("{len(word)}", "edited")
        assert kernel.execute("\n".join(cells[:2])) == "Report(durable: 7, workflow: 8)"
        assert kernel.execute("await workflow.run_async(count.bind('x'))") == "'x: edited'"
        # A module beside the notebook, which only a task imports.
        beside = directory / "beside.py"
        beside.write_text("NAME = 'beside'\n")
        assert kernel.execute(BESIDE) == "'beside'"
        kernel.kill()
    (directory / "approved").touch()
    beside.unlink()
    with Kernel(directory) as kernel:
        # Without the cells that define the tasks and the class.
        text = kernel.execute(f"{first}\nfrom pathlib import Path\n{cells[-1]}")
        again = "workflow.get_output(workflow.fork('beside', from_task='look'))"
        assert kernel.execute(again) == "'beside'"
    assert text.startswith("Report(durable: 7, workflow: 8)\n")
    assert "SUCCESSFUL" in text
    print("all right", flush=True)


if __name__ == "__main__":
    main(Path.cwd())
