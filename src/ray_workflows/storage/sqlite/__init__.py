"""The embedded default: an SQLite database and blob files in a directory of one machine."""

from ray_workflows.storage.sqlite.storage import SqliteStorage

__all__ = ["SqliteStorage"]
