"""mkdocs' hook: the pages of the site are the repository's own files, where they are.

So a link is the same in a checkout and on the site. Files that pages link to come along.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

PAGES = ("*.md", "docs/**/*.md", "examples/*/*.md", "benchmarks/*/*.md")
LINKED = ("docs/*.svg", "docs/*.png", "benchmarks/*.jsonl", "benchmarks/**/*.py", "examples/**/*.*")


def on_files(files: Files, config: Any) -> Files:
    """What mkdocs found in its folder of pages is replaced by ours; the theme's files stay."""
    root = Path(config.config_file_path).parent
    names = sorted(
        {
            path.relative_to(root).as_posix()
            for pattern in (*PAGES, *LINKED)
            for path in root.glob(pattern)
            if path.is_file() and "__pycache__" not in path.parts
        }
    )
    ours = [File(name, str(root), config.site_dir, config.use_directory_urls) for name in names]
    theme = [file for file in files if file.src_dir != config.docs_dir]
    config.nav = pruned(config.nav, set(names))
    return Files([*theme, *ours])


def pruned(nav: list[Any], names: set[str]) -> list[Any]:
    """The navigation less pages that this checkout does not have, and sections without pages."""
    kept = []
    for item in nav:
        ((title, target),) = item.items()
        if isinstance(target, list):
            if section := pruned(target, names):
                kept.append({title: section})
        elif target in names:
            kept.append(item)
    return kept
