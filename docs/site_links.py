"""A hook of mkdocs: links that lead out of docs/ lead to the repository, in the site as on GitHub."""

from __future__ import annotations

import posixpath
import re
from typing import Any

LINK = re.compile(r"(\]\()((?!\w+:|/|#)[^)\s]+)(\))")
FENCE = re.compile(r"^( *```.*?^ *```)", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Turns relative links to files and folders that the site does not have into addresses of the repository."""
    folder = posixpath.dirname(page.file.src_uri)

    def outward(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", folder, match[2].partition("#")[0]))
        inside = target.startswith("docs/") and posixpath.splitext(target)[1]
        return match[0] if inside else f"{match[1]}{config.repo_url}/blob/main/{target}{match[3]}"

    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(outward, text) for text in parts[::2]]  # the rest is code
    return "".join(parts)
