r"""Reads an expression in LaTeX or plain text, 2\sqrt{3}+x^2 or 2*sqrt(3)+x**2, into a tree. The whole text is understood, or nothing is.

Left out, and therefore compared as text by the callers: integrals, limits, logic, functions of the user, everything with words in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rlkit.grading.tokens import CONSTANTS, FUNCTIONS, GREEK, SAME_FUNCTION, SYMMETRIC, NotUnderstood, Token, tokenize

MAX_CHARACTERS = 2000
MAX_DEPTH = 30  # of brackets, fractions, powers and functions
MAX_NODE_DEPTH = 80  # of what was read: 1/2/3/4 nests to the left
MAX_EXPONENT = 4000  # of a number such as 5e3

OPENING = {"(": ")", "[": "]", "{": "}", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil", r"\lvert": r"\rvert", "|": "|"}
OPENING_OF_LIST = {"(": ")", "{": "}", r"\{": r"\}"}
CALL_OF_BRACKET = {r"\lfloor": "floor", r"\lceil": "ceil", r"\lvert": "abs", "|": "abs"}
TIMES, DIVIDED = frozenset({"*", r"\cdot", r"\times", r"\ast"}), frozenset({"/", r"\div"})
ENDS = frozenset(
    {"", ")", "]", "}", "+", "-", r"\pm", r"\mp", ",", "=", *TIMES, *DIVIDED, r"\rfloor", r"\rceil", r"\rvert", r"\}", r"\choose"}
)


@dataclass(frozen=True, slots=True)
class Expression:
    """A part of an expression. kind: number, decimal, mixed, name, constant, add, mul, div, pow, neg, pm, call, factorial, degrees,
    percent, base, sum. args: its parts. value: a Fraction, a name; of pm the sign of the first case, of div whether its sign is ÷."""

    kind: str
    args: tuple[Expression, ...] = ()
    value: Any = None


def parse_expression(text: str) -> Expression:
    """The tree of an expression. Raises NotUnderstood where any of the text is left over, also where it is long or deep."""
    if len(text) > MAX_CHARACTERS:
        raise NotUnderstood("too long")
    parser = _Parser(tokenize(text))
    tree = parser.read_sum()
    if parser.peek():
        raise NotUnderstood(f"left over: {parser.peek()}")
    level = [tree]
    for _ in range(MAX_NODE_DEPTH):
        level = [part for node in level for part in node.args]
        if not level:
            return tree
    raise NotUnderstood("too deep")


def walk(tree: Expression) -> list[Expression]:
    """The node and all nodes in it."""
    found = [tree]
    for node in found:
        found.extend(node.args)
    return found


class _Parser:
    """Recursive descent over the tokens; one method for each level of precedence."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens, self._at, self._depth, self._bars = tokens, 0, 0, 0

    def peek(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._tokens[at].text if at < len(self._tokens) else ""

    def read_sum(self) -> Expression:
        terms = [self._read_signed(first=True)]
        while self.peek() in ("+", "-", r"\pm", r"\mp"):
            terms.append(self._read_signed(first=False))
        return terms[0] if len(terms) == 1 else Expression("add", tuple(terms))

    def _read_signed(self, first: bool) -> Expression:
        sign = self._take() if self.peek() in ("+", "-", r"\pm", r"\mp") else "+"
        if first and sign == "+" and self.peek() in ("+", "-"):
            raise NotUnderstood("two signs")
        term = self._read_product()
        if sign == "-":
            return Expression("neg", (term,))
        return term if sign == "+" else Expression("pm", (term,), 1 if sign == r"\pm" else -1)

    def _read_product(self) -> Expression:
        product = self._read_signed_factor()
        while True:
            if self.peek() in TIMES:
                self._take()
                product = _multiply(product, self._read_signed_factor())
            elif self.peek() in DIVIDED:
                sign = self._take()
                product = Expression("div", (product, self._read_signed_factor()), "sign" if sign == r"\div" else None)
            elif self.peek() not in ENDS and not (self._bars and self.peek() == "|"):
                if self._kind() in ("number", "repeating"):
                    raise NotUnderstood("a number after a factor")
                product = _multiply(product, self._read_power())
            else:
                return product

    def _read_signed_factor(self) -> Expression:
        if self.peek() == "-":  # 2 * -3
            self._take()
            return Expression("neg", (self._read_power(),))
        return self._read_power()

    def _read_power(self) -> Expression:
        base = self._read_atom()
        while True:
            mark = self.peek()
            if mark == "!":
                self._take()
                base = Expression("factorial", (base,))
            elif mark in (r"\%", "%"):
                self._take()
                base = Expression("percent", (base,))
            elif mark in ("°", r"\degree"):
                self._take()
                base = self._read_minutes(base)
            elif mark == "^":
                self._take()
                base = self._read_exponent(base)
            else:
                return base

    def _read_exponent(self, base: Expression) -> Expression:
        if self.peek() in (r"\circ", "°") or [self.peek(n) for n in range(3)] == ["{", r"\circ", "}"]:
            self._at += 3 if self.peek() == "{" else 1
            return self._read_minutes(base)
        exponent = self._read_group(whole_number=True)
        if self.peek() == "^":
            raise NotUnderstood("two exponents")
        if base.kind == "name" and exponent.kind == "number" and (counted := _read_arrangements(base.value, exponent)):
            return counted
        return Expression("pow", (base, exponent))

    def _read_minutes(self, degrees: Expression) -> Expression:
        """45 degrees 30 minutes is one number."""
        if degrees.kind == "number" and self._kind() == "number" and self.peek(1) in ("'", "′", r"\prime"):
            minutes = Fraction(self._take())
            self._take()
            degrees = Expression("number", (), degrees.value + minutes / 60)
        return Expression("degrees", (degrees,))

    def _read_atom(self) -> Expression:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise NotUnderstood("too deep")
        atom = self._read_atom_inside()
        self._depth -= 1
        return atom

    def _read_atom_inside(self) -> Expression:
        kind, text = self._kind(), self.peek()
        if kind == "number":
            return self._read_number()
        if kind == "repeating":
            return Expression("number", (), _read_repeating(self._take()))
        if kind == "letters":
            return self._read_name(self._take())
        if text in OPENING:
            return self._read_bracket(self._take())
        if kind == "command":
            return self._read_command(self._take()[1:])
        raise NotUnderstood(f"unexpected {text or 'end'}")

    def _read_number(self) -> Expression:
        text = self._take()
        exponent = re.search(r"[eE][+-]?(\d+)", text)
        if exponent and (len(exponent[1]) > 4 or int(exponent[1]) > MAX_EXPONENT):
            raise NotUnderstood("a large exponent")
        value = Fraction(text.rstrip(".") if text.endswith(".") else text)
        decimal = "." in text.rstrip(".") or "e" in text.lower()
        number = Expression("decimal" if decimal else "number", (), value)
        if decimal:
            return number
        if self.peek() == "_":
            self._take()
            return Expression("base", (), (text, self._read_group(whole_number=True)))
        return self._read_mixed(number)

    def _read_mixed(self, whole: Expression) -> Expression:
        r"""3\frac{1}{2} and 3 1/2 are mixed numbers; 2\frac{x}{2} is a product."""
        start = self._at
        if self.peek() in (r"\frac", r"\dfrac", r"\tfrac"):
            self._take()
            fraction = Expression("div", (self._read_group(), self._read_group()))
        elif self._kind() == self._kind(2) == "number" and self._tokens[start].spaced and self.peek(1) == "/" and self.peek(3) in ENDS:
            fraction = Expression("div", tuple(Expression("number", (), Fraction(self.peek(ahead))) for ahead in (0, 2)))
            self._at += 3
        else:
            return whole
        above, below = fraction.args
        if above.kind == below.kind == "number" and above.value < below.value:
            return Expression("mixed", (fraction,), whole.value + above.value / below.value)
        self._at = start
        return whole

    def _read_name(self, name: str) -> Expression:
        if self.peek() == "_":
            self._take()
            name = f"{name}_{self._read_subscript()}"
        while self.peek() in ("'", "′"):
            name += "'"
            self._take()
        if self.peek() == "^" and (primes := self._count_primes()):
            name += "'" * primes
        if (self.peek() == "(" and name.rstrip("'") in ("f", "g", "h", "F", "G")) or ("'" in name and self.peek() == "("):
            return Expression("call", (self._read_group(),), name)
        return Expression("name", (), name)

    def _count_primes(self) -> int:
        r"""Takes ^\prime, ^{\prime\prime}."""
        at = self._at + 1
        braced = self.peek(1) == "{"
        first = at = at + braced
        while at < len(self._tokens) and self._tokens[at].text in (r"\prime", "'"):
            at += 1
        count = at - first
        if count and (not braced or self.peek(at - self._at) == "}"):
            self._at = at + braced
            return count
        return 0

    def _read_subscript(self) -> str:
        if self.peek() != "{":
            return self._take()
        self._take()
        found = ""
        while self.peek() not in ("}", ""):
            found += self._take().removeprefix("\\")
        self._take()
        return found

    def _read_bracket(self, opening: str) -> Expression:
        bars, self._bars = self._bars, self._bars + 1 if opening == "|" else 0
        inner = [self.read_sum()]
        self._bars = bars
        if opening == "{" and self.peek() == r"\choose":
            self._take()
            inner = [Expression("call", (inner[0], self.read_sum()), "binomial")]
        self._expect(OPENING[opening])
        name = CALL_OF_BRACKET.get(opening)
        return Expression("call", (inner[0],), name) if name else inner[0]

    def _read_command(self, name: str) -> Expression:
        if name in ("frac", "dfrac", "tfrac", "cfrac"):
            return Expression("div", (self._read_group(), self._read_group()))
        if name in ("binom", "dbinom", "tbinom"):
            return Expression("call", (self._read_group(), self._read_group()), "binomial")
        if name in CONSTANTS:
            return Expression("constant", (), CONSTANTS[name])
        if name in GREEK:
            return self._read_name(name)
        if name in ("sum", "prod"):
            return self._read_range(name)
        if name in ("vec", "hat", "overline", "bar", "overrightarrow", "tilde", "widehat"):
            return Expression("call", (self._read_group(),), name)
        name = SAME_FUNCTION.get(name, name)
        if name in FUNCTIONS:
            return self._read_function(name)
        raise NotUnderstood(f"\\{name}")

    def _read_function(self, name: str) -> Expression:
        arguments: list[Expression] = []
        power: Expression | None = None
        if name == "sqrt" and self.peek() == "[":
            self._take()
            arguments = [self.read_sum()]
            self._expect("]")
        if name == "log" and self.peek() == "_":
            self._take()
            arguments = [self._read_group(whole_number=True)]
        if self.peek() == "^":
            self._take()
            power = self._read_group(whole_number=True)
        if name == "sqrt":
            arguments.insert(0, self._read_group(whole_number=True))
        elif name in SYMMETRIC:
            arguments = self._read_list()
        else:
            arguments.insert(0, self._read_argument())
        if power is not None and power == Expression("neg", (Expression("number", (), Fraction(1)),)):
            return Expression("call", tuple(arguments), {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}.get(name) or _refuse(name))
        call = Expression("call", tuple(arguments), name)
        return Expression("pow", (call, power)) if power else call

    def _read_argument(self) -> Expression:
        r"""What a function without brackets applies to: 2x of \sin 2x, x of \sin x \cos x, the bracket of \sin(x)y."""
        if self.peek() in OPENING:
            return self._read_power() if self.peek() != "(" else self._read_atom()
        argument = self._read_power()
        while self.peek() not in ENDS and self.peek().removeprefix("\\") not in FUNCTIONS and self._kind() != "number":
            argument = _multiply(argument, self._read_power())
        if self.peek() in DIVIDED and self._kind(1) == "number" and argument.kind in ("constant", "mul"):  # \sin \pi/4
            self._take()
            argument = Expression("div", (argument, self._read_power()))
        return argument

    def _read_list(self) -> list[Expression]:
        closing = OPENING_OF_LIST.get(self.peek())
        if closing is None:
            raise NotUnderstood("a list is expected")
        self._take()
        found = [self.read_sum()]
        while self.peek() == ",":
            self._take()
            found.append(self.read_sum())
        self._expect(closing)
        return found

    def _read_range(self, name: str) -> Expression:
        r"""\sum_{k=1}^{n} of the product that follows."""
        self._expect("_")
        self._expect("{")
        variable = self._read_name(self._take())
        self._expect("=")
        first = self.read_sum()
        self._expect("}")
        self._expect("^")
        last = self._read_group(whole_number=True)
        return Expression("sum", (first, last, self._read_product()), (name, variable.value))

    def _read_group(self, whole_number: bool = False) -> Expression:
        r"""What an argument of LaTeX is: {...}, or one token. Of 12 in \frac12 it is 1, after a power it is the whole number."""
        if self.peek() in ("{", "("):
            return self._read_atom()
        if self.peek() == "-" and whole_number and self.peek(1) != "-":
            self._take()
            return Expression("neg", (self._read_group(whole_number),))
        if self._kind() == "number":
            if whole_number:
                return self._read_number_alone(self._take())
            token = self._tokens[self._at]
            digit, rest = token.text[0], token.text[1:]
            if rest:
                self._tokens[self._at] = Token("number", rest)
            else:
                self._take()
            return self._read_number_alone(digit)
        return self._read_atom()

    def _read_number_alone(self, text: str) -> Expression:
        return Expression("decimal" if "." in text else "number", (), Fraction(text.rstrip(".")))

    def _kind(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._tokens[at].kind if at < len(self._tokens) else ""

    def _take(self) -> str:
        if self._at >= len(self._tokens):
            raise NotUnderstood("unexpected end")
        self._at += 1
        return self._tokens[self._at - 1].text

    def _expect(self, text: str) -> None:
        if self._take() != text:
            raise NotUnderstood(f"{text} is expected")


def _multiply(left: Expression, right: Expression) -> Expression:
    return Expression("mul", (*left.args, right)) if left.kind == "mul" else Expression("mul", (left, right))


def _read_arrangements(name: str, chosen: Expression) -> Expression | None:
    r"""A_5^2 and P_5^2 count arrangements, C_5^2 combinations."""
    letter, _, subscript = name.partition("_")
    if letter not in ("A", "P", "C") or not subscript.isdecimal():
        return None
    total = Expression("number", (), Fraction(subscript))
    return Expression("call", (total, chosen), "binomial" if letter == "C" else "permutations")


def _read_repeating(text: str) -> Fraction:
    r"""0.1\overline{6}, 0.\dot{3}, 0.\dot{1}4285\dot{7} as a fraction."""
    if "dot" in text:
        start = text.index("\\dot")
        plain, repeated = text[:start], re.sub(r"\D", "", text[start:])
    else:
        plain, _, tail = text.partition("\\")
        repeated = re.sub(r"\D", "", tail)
    whole, _, decimals = plain.partition(".")
    scale = 10 ** len(decimals)
    return Fraction(int(whole + decimals or "0"), scale) + Fraction(int(repeated), scale * (10 ** len(repeated) - 1))


def _refuse(name: str) -> Any:
    raise NotUnderstood(f"inverse of {name}")
