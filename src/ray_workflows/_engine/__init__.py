"""The pure core: what happens next, given what has happened.

No clock, no randomness, no I/O, no threads, no Ray: time is an argument, everything else is a
message, so that a journal always replays to the same state.
"""
