"""The page rlkit/docs/migrate.md, made of the tables in foreign_keys.py: python -m rlkit.config.migration > rlkit/docs/migrate.md"""

from __future__ import annotations

from rlkit.config.foreign_keys import FOREIGN_KEYS, FOREIGN_KEYS_OFFLINE
from rlkit.config.renamed import split_answer

INTRODUCTION = """\
# From other toolkits

What their keys are called here. A run that gets one of them refuses it with the same answer, and `rlkit keys WORD` describes ours. Reward
functions of TRL and verl run unchanged ([rewards/README.md](../../rewards/README.md)), and so do their data:
[rlkit/data/README.md](../data/README.md). This page is made by `python -m rlkit.config.migration`.
"""


def format_migration_page() -> str:
    """The page as Markdown."""
    tables = [(project, table) for project, table in FOREIGN_KEYS.items()]
    tables[1:1] = [(f"{project}: DPO, KTO and other offline algorithms", table) for project, table in FOREIGN_KEYS_OFFLINE.items()]
    parts = [INTRODUCTION]
    for title, table in tables:
        rows = "\n".join(f"| `{theirs}` | {_format_ours(ours)} |" for theirs, ours in table.items())
        parts.append(f"## {title}\n\n| theirs | here |\n|---|---|\n{rows}\n")
    return "\n".join(parts)


def _format_ours(answer: str) -> str:
    names, note = split_answer(answer)
    shown = " and ".join(f"`{name}`" for name in names.split(" and ") if name)
    return ": ".join(filter(None, (shown or "no key", note)))


if __name__ == "__main__":
    print(format_migration_page(), end="")
