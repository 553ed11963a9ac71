"""The user's own code, shipped to where it is missing."""

from __future__ import annotations

import io
import os
import zipfile


def pack_folder(folder: str) -> bytes:
    """The Python package in `folder` as a zip file, without what Python itself caches."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for parent, folders, files in os.walk(folder):
            folders[:] = [f for f in folders if f != "__pycache__" and not f.startswith(".")]
            for name in files:
                path = os.path.join(parent, name)
                archive.write(path, os.path.relpath(path, os.path.dirname(folder)))
    return buffer.getvalue()


def unpack_folder(packed: bytes, name: str, place: str) -> str:
    """What `pack_folder` packed is a folder again, in `place`; returns its path."""
    zipfile.ZipFile(io.BytesIO(packed)).extractall(place)
    return os.path.join(place, name)
