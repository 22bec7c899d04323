"""Records a workflow's environment, the driver's runtime_env and modules, and restores it."""
