"""The command line ``ray-workflows``: one module per command. Nothing here is for importing."""
