"""The site documents every command and public name, works from disk, and needs no network."""

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
import yaml
from examples import blocks
from execute import DOCS, ROOT
from playwright.sync_api import Browser, Page, expect

from eckart.cli.main import app

PACKAGES = sorted(
    path.name.removesuffix(".py")
    for path in (ROOT / "src" / "eckart").iterdir()
    if not path.name.startswith("__") and path.stem not in ("cli", "schemas", "version") and path.suffix != ".typed"
)
COMMANDS = sorted(typer.main.get_command(app).commands)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built strictly: a link that leads nowhere ends the build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(params=[1280, 390], ids="{} px".format)
def opened(request, browser: Browser, site: Path) -> Iterator[Page]:
    """A page of the site, opened from disk without network, on a wide and on a narrow screen."""
    context = browser.new_context(offline=True, viewport={"width": request.param, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page, problems = context.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda sent: problems.append(sent.url) if sent.url.startswith("http") else None)
    page.goto((site / "how-it-works" / "certainty.html").as_uri())
    yield page
    context.close()
    assert problems == []


def test_search_works_from_disk_at_every_width(opened):
    field = opened.locator("input.md-search__input")
    if not field.is_visible():
        opened.locator("label[for=__search]").first.click()
    expect(field).to_be_visible()
    field.press_sequentially("Dobriban")
    opened.locator(".md-search-result__link").first.click(timeout=60_000)
    expect(opened).to_have_title(re.compile("The mathematics"))


def test_copying_an_example_copies_its_command_without_prompt_and_output(opened):
    example = opened.locator(".language-console").first
    example.hover()
    example.locator("[data-md-type=copy]").click()
    expect(opened.locator(".md-dialog--active")).to_be_visible()
    copied = opened.evaluate("navigator.clipboard.readText()")
    source = next(block for block in blocks((DOCS / "how-it-works" / "certainty.md").read_text(encoding="utf-8")))
    assert copied == "\n".join("\n".join(each.written).removeprefix("$ ") for each in source.examples)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_a_page_with_an_example_and_all_its_options(command, site):
    source = (DOCS / "commands" / f"{command}.md").read_text(encoding="utf-8")
    assert f"\n$ eckart {command} " in source
    page = (site / "commands" / f"{command}.html").read_text(encoding="utf-8")
    shown = [
        option for option in typer.main.get_command(app).commands[command].params if not getattr(option, "hidden", 0)
    ]
    options = [name for option in shown for name in option.opts]
    assert [name for name in options if name.startswith("-") and f"<code>{name}</code>" not in page] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_of_a_package_is_in_the_reference(package, site):
    module = importlib.import_module(f"eckart.{package}")
    defined = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    public = [name for name in getattr(module, "__all__", defined) if not name.startswith("_")]
    assert public
    page = (site / "reference" / f"{package}.html").read_text(encoding="utf-8")
    assert [name for name in public if f'id="eckart.{package}.{name}"' not in page] == []


def test_the_site_loads_nothing_from_a_network(site):
    remote = re.compile(r"""<(?:script|img|iframe|source)[^>]*\ssrc=["'](https?:)?//|<link[^>]*href=["'](https?:)?//""")
    loading = [page for page in site.rglob("*.html") if remote.search(page.read_text(encoding="utf-8"))]
    assert loading == []
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", styles)


def test_every_json_format_is_described_with_its_version():
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    formats = {name for source in sources for name in re.findall(r'"(eckart-\w+/\d+)"', source)}
    formats -= {"eckart-journal/2"}  # a file of unfinished work, not a result
    assert len(formats) > 8
    described = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "formats").glob("*.md"))
    assert sorted(name for name in formats if f"`{name}`" not in described) == []


def test_relative_links_of_readme_lead_to_files():
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(targets) > 3
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_every_page_is_in_the_navigation():
    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages(part)]

    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(pages(navigation)) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
