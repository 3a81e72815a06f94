r"""Whether the final answer is right: exactly equal to the reference, and worked out. 1/2 is 0.5, {1, 2} is {2, 1}; 27 + 18 is not 45.

Extraction, decoration and comparison are rlkit.grading. The table of what earns and what does not is in rewards/README.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlkit.grading.comparison import is_right
from rlkit.grading.extraction import find_answer
from rlkit.grading.references import list_references


def accuracy(completion: str, answer: Any, prompt: str | Sequence[Mapping[str, Any]] | None = None, **columns: Any) -> float:
    r"""1.0 where the final answer of the completion equals `answer` (or one of them, if it is a list), else 0.0.

    Raises ValueError where the reference is blank or of a kind that cannot be graded: an error in the data, not in the completion.
    """
    references = list_references(answer)
    given = find_answer(completion)
    if given is None:
        return 0.0
    question = prompt if isinstance(prompt, str) else "\n".join(str(message.get("content")) for message in prompt or ())
    return float(any(is_right(reference, text, question) for reference in references for text in given.texts))


accuracy("1", "2")  # patterns are compiled in the first call: now, and not within the timeout of the first sample
