"""What is behind `ray_workflows.testing.Environment`: a coordinator and workers in one process."""
