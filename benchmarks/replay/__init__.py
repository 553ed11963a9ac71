"""Nodes that come and go, and processes that die, under any launcher; and what that cost it."""
