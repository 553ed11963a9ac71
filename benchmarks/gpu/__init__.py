"""Checks of what only a GPU can show (see gpu_checks)."""
