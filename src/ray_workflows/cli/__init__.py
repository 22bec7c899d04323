"""The command line ``ray-workflows``: one module per command. Not a public API."""
