"""The tokens of an expression: numbers, commands of LaTeX, symbols, signs. Words are none: a text with a word is not understood."""

from __future__ import annotations

import re
from dataclasses import dataclass


def list_words(text: str) -> list[str]:
    """The words of a table."""
    return text.split()


GREEK = frozenset(
    list_words(
        "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi varphi chi "
        "psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega hbar ell"
    )
)
FUNCTIONS = frozenset(
    list_words("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log lg exp max min gcd lcm sqrt abs floor ceil")
)
CONSTANTS = {"pi": "pi", "infty": "infinity", "infinity": "infinity", "inf": "infinity", "oo": "infinity"}
SAME_FUNCTION = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "tg": "tan", "ctg": "cot", "arctg": "arctan", "cbrt": "cbrt"}
SHORT_WORDS = frozenset(list_words("no on yes not odd one two six ten all any"))  # other short runs of letters are products
SYMMETRIC = frozenset({"max", "min", "gcd", "lcm"})

TOKEN = re.compile(
    r"""\s*(?:
      (?P<repeating>\d*\.\d*(?:\\(?:overline|bar)\s*\{?\s*\d+\s*\}?|(?:\\dot\s*\{?\s*\d\s*\}?)(?:\d*\\dot\s*\{?\s*\d\s*\}?)?))
    | (?P<number>(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+(?![\w.]))?|\d+\.(?!\d))
    | (?P<command>\\[a-zA-Z]+|\\[{}|%])
    | (?P<letters>[a-zA-Z]+)
    | (?P<sign>\*\*|.))""",
    re.VERBOSE | re.DOTALL,
)


class NotUnderstood(ValueError):
    """The text, or a part of it, is no expression that this module reads."""


@dataclass(slots=True)
class Token:
    kind: str
    text: str
    spaced: bool = False  # a space stands before it


def tokenize(text: str) -> list[Token]:
    tokens: list[Token] = []
    for match in TOKEN.finditer(text.rstrip()):
        kind = str(match.lastgroup)
        found, spaced = match[kind], match.start(kind) > match.start()
        if kind == "letters":
            tokens += _split_letters(found, spaced)
        else:
            tokens.append(Token(kind, "^" if found == "**" else found, spaced))
    return tokens


def _split_letters(run: str, spaced: bool) -> list[Token]:
    r"""The tokens of letters that stand together: a function (sin), a constant (pi), or at most three symbols (abc)."""
    if run in FUNCTIONS or run in CONSTANTS or run in SAME_FUNCTION or run in GREEK:
        return [Token("command", f"\\{run}", spaced)]
    for name in ("arcsin", "arccos", "arctan", "sqrt", "sin", "cos", "tan", "log", "ln", "pi"):
        rest = run.removeprefix(name)
        if rest != run and len(rest) == 1:
            return [Token("command", f"\\{name}", spaced), Token("letters", rest)]
        if run.endswith(name) and len(run) - len(name) == 1:  # xsin(x)
            return [Token("letters", run[0], spaced), Token("command", f"\\{name}")]
    if len(run) > 3 or run.casefold() in SHORT_WORDS:
        raise NotUnderstood(f"a word: {run}")
    return [Token("letters", letter, spaced and not number) for number, letter in enumerate(run)]
