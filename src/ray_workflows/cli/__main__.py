"""``python -m ray_workflows.cli`` is ``ray-workflows``."""

from ray_workflows.cli.main import main

main(prog_name="ray-workflows")
