"""Decisions, pure: what follows from what is observed."""
