"""What the pages say is there: links, options, messages, places in the site's navigation."""

import re
import sys
from pathlib import Path

import data
import pytest
import yaml

sys.path.insert(0, str(data.REPOSITORY / "website"))
import options_page

ROOT = data.REPOSITORY
OUTSIDE = re.compile(r"[a-z]+:")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "benchmarks/**/*.md")
    for path in ROOT.glob(pattern)
)


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub and the site name them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    text = FENCE.sub("", page.read_text())
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if OUTSIDE.match(link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_file(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def options() -> list[str]:
    return re.findall(r"^\| `(--[\w-]+)", options_page.table(), re.MULTILINE)


def test_the_page_of_options_is_the_parsers():
    page = options_page.PAGE.read_text()
    assert len(options()) >= 10
    assert page == options_page.page(page), "run: python website/options_page.py"


@pytest.mark.parametrize("option", options())
def test_the_readme_has_every_option(option):
    assert f"\n| `{option}" in (ROOT / "README.md").read_text()


def test_every_page_has_a_place_in_the_site():
    (hidden,) = re.findall(r"^not_in_nav: \|\n((?:  .*\n)+)", mkdocs_yml(), re.MULTILINE)
    nav = re.findall(r": (\S+\.md)$", mkdocs_yml(), re.MULTILINE)
    for page in PAGES:
        name = page.relative_to(ROOT)
        assert str(name) in nav or any(name.match(line) for line in hidden.split()), name


def test_the_sites_configuration_can_be_read():
    assert yaml.safe_load(mkdocs_yml())["hooks"] == ["website/pages.py"]


def mkdocs_yml() -> str:
    return (ROOT / "mkdocs.yml").read_text()
