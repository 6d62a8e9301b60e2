"""Metadata that depends on the repository's address: project URLs, and README with links that also work on PyPI."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(?P<image>!?)(?P<text>\[[^\]]*\])\((?!https?:|#)(?P<target>[^)\s]+)\)")


class RepositoryHook(MetadataHookInterface):
    """Fills in `urls` and `readme` from `repository` in pyproject.toml."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the dynamic fields."""
        repository = self.config["repository"]
        metadata["urls"] = {
            "Repository": repository,
            "Documentation": f"{repository}/blob/main/docs/index.md",
            "Changelog": f"{repository}/blob/main/CHANGELOG.md",
            "Issues": f"{repository}/issues",
        }
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, repository)}


def absolute(text: str, repository: str) -> str:
    """Markdown whose relative links and images point into the repository."""

    def link(match: re.Match[str]) -> str:
        folder = "raw" if match["image"] else "blob"
        return f"{match['image']}{match['text']}({repository}/{folder}/main/{match['target']})"

    return LINK.sub(link, text)
