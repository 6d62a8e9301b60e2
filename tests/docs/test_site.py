"""The site is whole: every command and public name has its place, and no network is asked."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
import yaml
from execute import DOCS, ROOT

from eckart.cli.main import app

ROOMS = sorted(
    path.name.removesuffix(".py")
    for path in (ROOT / "src" / "eckart").iterdir()
    if not path.name.startswith("__") and path.stem != "cli"
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


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_a_page_with_an_example_and_all_its_options(command, site):
    source = (DOCS / "commands" / f"{command}.md").read_text(encoding="utf-8")
    assert f"\n$ eckart {command} " in source
    page = (site / "commands" / f"{command}.html").read_text(encoding="utf-8")
    options = [name for option in typer.main.get_command(app).commands[command].params for name in option.opts]
    assert [name for name in options if name.startswith("-") and f"<code>{name}</code>" not in page] == []


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_of_a_room_is_in_the_reference(room, site):
    module = __import__(f"eckart.{room}", fromlist=["__all__"])
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    public = getattr(module, "__all__", own)
    page = (site / "reference" / f"{room}.html").read_text(encoding="utf-8")
    assert [name for name in public if f'id="eckart.{room}.{name}"' not in page] == []


def test_the_site_asks_nothing_of_a_network(site):
    asked = re.compile(r"""<(?:script|img|iframe|source)[^>]*\ssrc=["'](https?:)?//|<link[^>]*href=["'](https?:)?//""")
    loading = [page for page in site.rglob("*.html") if asked.search(page.read_text(encoding="utf-8"))]
    assert loading == []
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", styles)


def test_every_page_is_in_the_navigation():
    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages(part)]

    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(pages(navigation)) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
