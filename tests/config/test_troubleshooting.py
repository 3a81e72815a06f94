"""Each message that rlkit/docs/troubleshooting.md explains is one that the code can print; its links lead somewhere."""

from __future__ import annotations

import ast
import re

from tests.conftest import ROOT
from tests.test_laws import CODE, tree

PAGE = (ROOT / "rlkit" / "docs" / "troubleshooting.md").read_text()
MESSAGES = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)


def test_every_message_of_the_page_is_in_the_code() -> None:
    texts = [node.value for path in CODE for node in ast.walk(tree(path)) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert len(MESSAGES) > 35 and [message for message in MESSAGES if not any(message in text for text in texts)] == []


def test_its_links_lead_to_pages() -> None:
    for name in ("troubleshooting", "keys", "metrics", "migrate"):
        page = ROOT / "rlkit" / "docs" / f"{name}.md"
        assert [link for link in re.findall(r"\]\(([^)#]+)", page.read_text()) if not (page.parent / link).exists()] == []
