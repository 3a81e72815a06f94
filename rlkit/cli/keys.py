"""`rlkit keys [WORD]`: the keys of recipes, as rlkit/docs/keys.md has them."""

from __future__ import annotations

from rlkit import run
from rlkit.cli.output import print_document, print_text
from rlkit.config.keys import find_entries, format_entry, list_entries
from rlkit.config.renamed import answer_foreign_key
from rlkit.config.suggestions import suggest
from rlkit.errors import EXIT_DONE, UserError


def run_keys(word: str, as_json: bool) -> int:
    """Prints the keys that speak of a word. Returns the exit code, as rlkit.run."""
    return run.handle_errors(lambda: print_entries(word, as_json), [])


def print_entries(word: str, as_json: bool) -> int:
    """As run_keys. Raises UserError where there is none."""
    found = find_entries(word)
    if not found:
        if answer := answer_foreign_key(word):
            raise UserError(answer)
        raise UserError(f"no key speaks of {word!r}{suggest(word, [entry.key for entry in list_entries()], 'keys')}")
    if as_json:
        print_document({"keys": [vars(entry) for entry in found]})
    else:
        print_text("\n".join(map(format_entry, found)))
    return EXIT_DONE
