"""A worker: its preloaded server, and the rank that it runs."""
