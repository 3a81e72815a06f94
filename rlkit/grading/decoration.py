r"""Removes from an answer what has no meaning: delimiters of mathematics, quotes, emphasis, colours, spaces; and writes symbols as LaTeX.

Also the texts that are compared where an answer is no expression: "normalised" means that two writings of one text are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rlkit.grading.tokens import list_words

GREEK_LETTERS = list_words(
    "α alpha β beta γ gamma δ delta ε epsilon θ theta λ lambda μ mu ν nu ξ xi π pi ρ rho σ sigma τ tau φ varphi χ chi ψ psi ω omega "
    "Δ Delta Γ Gamma Θ Theta Λ Lambda Σ Sigma Φ Phi Ψ Psi Ω Omega"
)
FRACTIONS = list_words("½12 ⅓13 ⅔23 ¼14 ¾34 ⅕15 ⅖25 ⅗35 ⅘45 ⅙16 ⅚56 ⅛18 ⅜38 ⅝58 ⅞78")
OPERATORS = list_words(
    "× times ÷ div · cdot ⋅ cdot ∙ cdot ± pm ∓ mp ∞ infty ≤ le ≦ le ⩽ le ≥ ge ≧ ge ⩾ ge ≠ neq ≈ approx ≡ equiv ∅ emptyset ∪ cup ∩ cap ∈ in "
    "∉ notin ⊂ subset ⊆ subseteq ∠ angle … ldots ⋯ ldots → to ⇒ to ⌊ lfloor ⌋ rfloor ⌈ lceil ⌉ rceil ∥ parallel ⊥ perp"
)
SPACES_OF_ALL_KINDS = "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000\t"
INVISIBLE = "\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u2062\u2063\u2064\ufeff\u00ad"
SYMBOLS = {
    **dict.fromkeys("−–—‒‐‑﹣", "-"),
    **dict.fromkeys("′’‘", "'"),
    **dict.fromkeys("“”", '"'),
    **dict.fromkeys(SPACES_OF_ALL_KINDS, " "),
    **dict.fromkeys(INVISIBLE, ""),
    **{chr(code + 0xFEE0): chr(code) for code in range(0x21, 0x7F) if chr(code) not in ",;:."},  # full-width forms
    **dict(zip("∗ℝℤℕℚℂ⁄∕∶：", "*RZNQC//::", strict=True)),
    **{glyph: rf"\frac{{{above}}}{{{below}}}" for glyph, above, below in map(tuple, FRACTIONS)},
    **{glyph: f"\\{name} " for glyph, name in zip(GREEK_LETTERS[::2], GREEK_LETTERS[1::2], strict=True)},
    **{glyph: f"\\{name} " for glyph, name in zip(OPERATORS[::2], OPERATORS[1::2], strict=True)},
    "°": r"^\circ ",
    "℃": r"^\circ C",
    "、": ", ",
    "，": ", ",
    "；": "; ",
    "。": ".",
    "．": ".",
}
TRANSLATION = str.maketrans(SYMBOLS)
RAISED, LOWERED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n"), str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
RAISED_RUN, LOWERED_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+"), re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
ROOT = re.compile(r"([√∛])\s*(\d+(?:\.\d+)?|\([^()]*\)|[a-zA-Zπ])")
MATHEMATICS = re.compile(
    r"\$\$(.+?)\$\$|\A\$((?:\\.|[^$\\])*)\$\Z|(?<!\\)\$(?=\S)((?:\\.|[^$\\])*?)(?<=\S)\$(?!\d)", re.DOTALL
)  # not the dollars of $3 and $4
DELIMITERS = re.compile(r"(?<!\\)\\[()\[\]]")
SIZES = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits|centering|hfill)(?![a-zA-Z])\s*\.?(?=\W|\w|\Z)")
BARS = re.compile(r"\\(left|right)\s*\|")
SPACES = re.compile(r"(?<!\\)\\[,;:! ]|(?<![~\s])~(?![~\s\d])|\\q?quad(?![a-zA-Z])|\\(?:hspace|vspace|phantom|hphantom)\*?\{[^{}]*\}")
UNWRAPPED = re.compile(
    r"\\(?:mathbf|boldsymbol|bm|pmb|mathit|mathsf|mathtt|mathnormal|mathcal|underline|boxed|fbox|bold|emph|uline|ensuremath|operatorname\*?)"
    r"\s*\{"
)
TEXTS = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)|mbox|hbox)\s*\{")
ROMAN = re.compile(r"\\math(?:rm\s*\{\s*([eidRNZQCAPEVDT])|bb\s*\{\s*([A-Za-z]))\s*\}|\\mathbb\s*([A-Z])")
ROMAN_FUNCTION = re.compile(r"\\math(?:rm|sf)\s*\{\s*(sin|cos|tan|cot|sec|csc|ln|log|lg|exp|max|min|gcd|lcm|arcsin|arccos|arctan)\s*\}")
OHM = re.compile(r"(?<=\d)\s*\\Omega(?![a-zA-Z])")
NOT_EQUAL = re.compile(r"!=|\\not\s*=")
OVER = re.compile(r"\{([^{}]*)\\over(?![a-zA-Z])([^{}]*)\}")
THOUSANDS = re.compile(r",\\!\s*(?=\d{3})")
CHOOSE = re.compile(r"\{([^{}]*)\\choose(?![a-zA-Z])([^{}]*)\}")
ROMAN_WORD = re.compile(r"\\mathrm\s*\{")
COLOURED = re.compile(r"\\(?:textcolor|colorbox)\s*\{[^{}]*\}\s*\{|\\color\s*\{[^{}]*\}")
EMPHASIS = re.compile(r"(?<![\w)}*])(\*\*|__)(?=\S)(.+?)(?<=\S)\1(?![\w({*])", re.DOTALL)
LABEL = re.compile(
    r"\s*(?:\\text\s*\{)?\s*(?:the\s+)?(?:(?:final|correct)\s+)*(?:answer|ans|答案|答)(?:\s+is)?\s*:\s*(?P<text>\})?", re.IGNORECASE
)
NUMBER_IN_TEXT = re.compile(r"\\text\s*\{\s*(-?\.?\d[^{}]*)\}")
MAX_LAYERS = 10  # of quotes and brackets around an answer
FENCE = re.compile(r"```[a-zA-Z]*\n(.*?)\n?```", re.DOTALL)
QUOTES = (("`", "`"), ("_", "_"), ("*", "*"), ('"', '"'), ("'", "'"), ("``", "''"), ("「", "」"), ("《", "》"), ("【", "】"))
SAME_COMMANDS = dict(
    pair.split(":")
    for pair in list_words(
        r"dfrac:frac tfrac:frac cfrac:frac dbinom:binom tbinom:binom leq:le leqslant:le geq:ge geqslant:ge ne:neq lt:< gt:> "
        r"varnothing:emptyset lbrace:{ rbrace:} "
        r"mid:| vert:| lvert:| rvert:| dots:ldots cdots:ldots dotsc:ldots dotsb:ldots rightarrow:to degree:^\circ "
        r"ast:* lor:or vee:or land:and wedge:and"
    )
)
COMMAND = re.compile(r"\\([a-zA-Z]+)")
GROUP_OF_ONE = re.compile(r"\{(\\?[a-zA-Z]+|[^{}\\])\}")
SHORT_ANSWERS = frozenset({"yes", "no", "am", "pm", "true", "false"})
SAME_TEXTS = {"all real numbers": "R", "all reals": "R", "空集": r"\emptyset", "empty set": r"\emptyset"}
TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")


def strip_decoration(text: str) -> str:
    """The answer with its symbols as LaTeX, without what surrounds it and without what has no meaning."""
    text = MATHEMATICS.sub(lambda match: match[1] or match[2] or match[3] or "", re.sub(r"[^\S\n]+", " ", text.strip()))
    text = RAISED_RUN.sub(lambda run: f"^{{{run[0].translate(RAISED)}}}", text)
    text = LOWERED_RUN.sub(lambda run: f"_{{{run[0].translate(LOWERED)}}}", text)
    text = ROOT.sub(_write_root, text).translate(TRANSLATION)
    text = THOUSANDS.sub(",", NOT_EQUAL.sub(r"\\neq ", text))
    text = OHM.sub(r"\\text{ ohm}", text.replace("...", r"\ldots "))
    text = OVER.sub(r"\\frac{\1}{\2}", text)
    text = CHOOSE.sub(r"\\binom{\1}{\2}", DELIMITERS.sub(" ", text))
    text = SPACES.sub(" ", SIZES.sub("", BARS.sub(lambda match: rf"\{match[1][0]}vert ", text)))
    text = ROMAN_FUNCTION.sub(r"\\\1 ", ROMAN.sub(lambda match: f" {match[1] or match[2] or match[3]}", text))
    for pattern, replacement in ((COLOURED, ""), (UNWRAPPED, ""), (TEXTS, r"\text{"), (ROMAN_WORD, r"\text{")):
        text = _replace_wrappers(text, pattern, replacement)
    text = NUMBER_IN_TEXT.sub(r"\1", EMPHASIS.sub(r"\2", text))
    if (label := LABEL.match(text)) and bool(label["text"]) == (r"\text" in label[0]):
        text = text[label.end() :]
    for _ in range(MAX_LAYERS):
        if (inner := _strip_ends(text)) == text:
            break
        text = inner
    return text


def _strip_ends(text: str) -> str:
    text = text.strip().rstrip("., \n")
    if fenced := FENCE.fullmatch(text):
        return fenced[1]
    for opening, closing in QUOTES:
        inner = text[len(opening) : len(text) - len(closing)]
        if (
            len(text) > len(opening)
            and text.startswith(opening)
            and text.endswith(closing)
            and opening not in inner
            and closing not in inner
        ):
            return inner
    if text.startswith("{") and find_closing(text, 0) == len(text) - 1 and "," not in text:
        return text[1:-1]
    return text


def _write_root(match: re.Match[str]) -> str:
    return f"\\sqrt{'[3]' if match[1] == '∛' else ''}{{{match[2]}}}"


def _replace_wrappers(text: str, pattern: re.Pattern[str], replacement: str) -> str:
    r"""Replaces \command{...} by its content, or by another command around it. A command without an argument is deleted."""
    pieces, at = [], 0
    dropped: set[int] = set()  # closing braces of commands that are gone
    for match in pattern.finditer(text):
        if match[0].endswith("{") and not replacement:
            dropped.add(match.end() - 1)
    closing = dict(_match_braces(text))
    ends = {closing[opening] for opening in dropped if opening in closing}
    for match in pattern.finditer(text):
        if match[0].endswith("{") and not replacement and match.end() - 1 not in closing:
            continue  # unclosed: it is no decoration
        pieces.append(_drop_positions(text, at, match.start(), ends) + replacement)
        at = match.end()
    pieces.append(_drop_positions(text, at, len(text), ends))
    return "".join(pieces)


def _drop_positions(text: str, start: int, end: int, dropped: set[int]) -> str:
    return "".join(text[at] for at in range(start, end) if at not in dropped) if dropped else text[start:end]


def _match_braces(text: str) -> Iterator[tuple[int, int]]:
    r"""Positions of pairs of { and }, without \{ and \}."""
    opened: list[int] = []
    for match in re.finditer(r"\\\\|\\[{}]|[{}]", text):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            yield opened.pop(), match.start()


def find_closing(text: str, opening: int) -> int | None:
    """The position of the brace that closes the one at `opening`; None where it is never closed."""
    return next((end for start, end in _match_braces(text) if start == opening), None)


def normalise_text(text: str) -> str:
    """A text for comparison as a whole: without spaces and text commands, with one name for each symbol; words without case."""
    text = strip_decoration(text)
    if re.search(r"[^\W\d_]{2}", TEXT.sub(r"\1", text)) and "\\" not in TEXT.sub("", text):
        text = re.sub(r"[^\W\d_]+", _fold_case, TEXT.sub(r"\1", text).strip()).rstrip(".")
        text = re.sub(r"^(?:the|an?)\s+(?=[a-z]{2})", "", text)
        text = SAME_TEXTS.get(text, text)
    text = COMMAND.sub(lambda match: "\\" + SAME_COMMANDS.get(match[1], match[1]) + " ", TEXT.sub(r"\1", text))
    text = re.sub(r"\\([^a-zA-Z{}\\])", r"\1", text)  # \| and \<, from the table
    text = re.sub(r"(?<=\d)\s+(?=\d)", "\0", re.sub(r"(\\[a-zA-Z]+)\s+(?=[a-zA-Z])", "\\1\0", text))
    text = re.sub(r"\s+", "", text)
    for _ in range(MAX_LAYERS):
        text = GROUP_OF_ONE.sub(r"\1", text)
    return text.replace("\0", " ")


def _fold_case(match: re.Match[str]) -> str:
    """A word in lower case, unless its capitals may have a meaning: AB, CO, MW, NaCl."""
    word = match[0]
    usual = word.istitle() or word.islower() or (word.isupper() and len(word) > 3)
    return word.casefold() if (usual and len(word) > 2) or word.casefold() in SHORT_ANSWERS else word
