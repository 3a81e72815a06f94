"""Search in a file of documents by BM25."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from rlkit.errors import UserError

TEXTS, TITLES = ("text", "contents", "content", "body"), ("title", "id", "name")  # columns, tried in this order


class Search:
    """A tool over the documents of a JSONL file, which each worker reads and indexes once."""

    def __init__(self, file: str, results: int = 3, characters: int = 600) -> None:
        """file: a document a line, with `text` and where it has one `title`. characters: of each result."""
        self.documents, self._index = _build_index(str(Path(file).resolve()))
        self._results, self._characters = min(results, len(self.documents)), characters

    def search(self, query: str) -> str:
        """Search the documents, and read the best results.

        Args:
            query: Words that the document should have.
        """
        import bm25s

        words = bm25s.tokenize([query], stopwords="en", show_progress=False, return_ids=False)
        if not words[0]:
            return "nothing found: the query has no words to search for"
        numbers, scores = self._index.retrieve(words, k=self._results, show_progress=False)
        found = [self._show(int(number)) for number, score in zip(numbers[0], scores[0], strict=True) if score > 0]
        return "\n\n".join(found) or "nothing found"

    def _show(self, number: int) -> str:
        title, text = self.documents[number]
        return f"[{title}]\n{text[: self._characters]}{'...' if len(text) > self._characters else ''}"


@functools.cache
def _build_index(file: str) -> tuple[list[tuple[str, str]], Any]:
    """Title and text of each document, and their index. Raises UserError."""
    try:
        import bm25s
    except ImportError:
        raise UserError("the tool search needs the package bm25s: pip install 'rlkit[search]'") from None
    documents = []
    try:
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    documents.append(_read_document(json.loads(line), number, file))
    except (OSError, ValueError) as error:
        raise UserError(f"search: file={file} cannot be read: {error}") from error
    if not documents:
        raise UserError(f"search: file={file} holds no documents")
    index = bm25s.BM25()
    index.index(bm25s.tokenize([f"{title} {text}" for title, text in documents], stopwords="en", show_progress=False), show_progress=False)
    return documents, index


def _read_document(row: Any, number: int, file: str) -> tuple[str, str]:
    text = next((row[name] for name in TEXTS if isinstance(row.get(name), str)), None) if isinstance(row, dict) else None
    if text is None:
        raise UserError(f"search: file={file} line {number} has none of the columns {', '.join(TEXTS)} with a text")
    return str(next((row[name] for name in TITLES if row.get(name) is not None), number)), text
