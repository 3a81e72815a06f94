"""Units, currencies and magnitudes that may stand after or before a number."""

from __future__ import annotations

import re

from rlkit.grading.tokens import list_words

SAME_UNITS = {
    name: group.split()[0]
    for group in (
        "mm millimeter millimeters millimetre millimetres 毫米",
        "cm centimeter centimeters centimetre centimetres 厘米",
        "dm decimeter decimeters decimetre decimetres 分米",
        "m meter meters metre metres 米",
        "km kilometer kilometers kilometre kilometres 千米 公里",
        "in inch inches",
        "ft foot feet",
        "yd yard yards",
        "mi mile miles",
        "mg milligram milligrams",
        "g gram grams 克",
        "kg kilogram kilograms kilo kilos 千克 公斤",
        "lb lbs pound pounds",
        "oz ounce ounces",
        "s sec secs second seconds 秒",
        "min mins minute minutes 分钟",
        "h hr hrs hour hours 小时",
        "day days 天",
        "week weeks 周",
        "month months 月",
        "year years yr yrs 年",
        "l L liter liters litre litres 升",
        "mL ml milliliter milliliters millilitre millilitres 毫升",
        "m/s mps",
        "km/h kph kmh",
        "mph",
        "° degree degrees 度",
        "$ dollar dollars usd USD 美元 buck bucks",
        "€ euro euros eur EUR 欧元",
        "£ gbp GBP",
        "¥ yuan rmb RMB cny CNY 元 yen jpy JPY 日元",
        "¢ cent cents",
        "rad radian radians",
        "unit units",
        "N J W V A K Hz Pa mol",
    )
    for name in (group.split() if not group.startswith("N ") else ())
}
LETTER_UNITS = frozenset("mgshL")  # after a space; others of one letter are symbols
SI = frozenset(list_words("N J W V A K Hz kHz MHz Pa kPa mol eV keV kJ kW mA kV nm pm rpm sq"))
CURRENCY = re.compile(r"^(-?)\s*(?:\\?([$€£¥])|(?:USD|US\s*\\?\$|RMB|EUR)\s*)\s*(?=[-\d.(\\])")
MAGNITUDES = {
    "hundred": 10**2, "thousand": 10**3, "lakh": 10**5, "million": 10**6, "crore": 10**7, "billion": 10**9, "trillion": 10**12,
    "dozen": 12, "万": 10**4, "亿": 10**8, "千": 10**3, "百": 10**2,
}  # fmt: skip
MAGNITUDE = re.compile(rf"\s*({'|'.join(MAGNITUDES)})s?\b(.*)", re.IGNORECASE | re.DOTALL)
FRACTIONS = re.compile(
    r"\b(?:third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth|millionth|billionth)(?:s\b|$)", re.IGNORECASE
)
NO_UNIT = re.compile(
    r"\b(?:is|are|was|were|not|no|nor|or|and|but|if|then|than|because|maybe|perhaps|either|to|plus|minus|times|divided|over|by|more|less|most|least|"
    r"about|approximately|around|roughly|almost|percent|pct|squared|cubed|pi|wrong|incorrect|false|mod|modulo|base|half|halves|root|of|times|different|"
    r"from|except|without|instead|versus|vs|would|could|should|might|may)\b|[=<>?+*!\\]|[不或和\u3040-\u30ff]",
    re.IGNORECASE,
)
WORDS = r"[^\W\d_][^\W\d_'’.-]*(?:[ /·-][^\W\d_][^\W\d_'’.-]*){0,4}"
EXPONENT = r"(?:\s*\^\s*\{?\s*-?\d\s*\}?)?"
UNIT = re.compile(
    rf"""(?P<temperature>\^\s*\{{?\s*\\circ\s*\}}?\s*(?:\\text\{{\s*)?[CFK]\s*\}}?)
      | (?:\s*\\text\s*\{{(?P<text>[^{{}}]*)\}}(?P<power>{EXPONENT})(?P<rest>(?:\s*/?\s*\\text\s*\{{[^{{}}]*\}}{EXPONENT})*))
      | (?P<space>\s*)\(?(?P<words>{WORDS})(?P<exponent>{EXPONENT})\)?""",
    re.VERBOSE,
)


def read_unit(text: str) -> str | None:
    """The unit that a text after a number is, in its usual writing; None where the text is no unit."""
    match = UNIT.fullmatch(text.rstrip(" ."))
    if match is None:
        return None
    if match["temperature"]:
        return "°" + re.sub(r"[^CFK]", "", match["temperature"][-3:])
    if match["text"] is not None:
        rest = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", match["rest"])
        found = match["text"].strip() + _read_exponent(match["power"]) + re.sub(r"[\s^{}]", "", rest)
        return _name_unit(found) if not NO_UNIT.search(match["text"]) and not FRACTIONS.search(match["text"]) else None
    words = match["words"]
    if NO_UNIT.search(words) or FRACTIONS.search(words) or _is_symbol(words, bool(match["space"])):
        return None
    return _name_unit(words + _read_exponent(match["exponent"]))


def _is_symbol(words: str, spaced: bool) -> bool:
    """Whether a word without a text command may be symbols of the mathematics: x, ab, pi."""
    if words in SAME_UNITS or words in SI:
        return len(words) == 1 and words.isascii() and not (spaced and words in LETTER_UNITS)
    return words.isascii() and not (spaced and len(words) > 2)


def _read_exponent(power: str) -> str:
    return re.sub(r"[\s{}^]", "", power)


def _name_unit(unit: str) -> str:
    """One name for each unit: cm2 for square centimeters; of other words the last without its plural."""
    unit = re.sub(r"\s+", " ", unit.strip().strip("."))
    exponent = re.search(r"-?\d$", unit)
    stem = (unit[: exponent.start()] if exponent else unit).strip()
    power = exponent[0] if exponent else ""
    for words, number in (("square ", "2"), ("sq ", "2"), ("sq. ", "2"), ("cubic ", "3"), ("平方", "2"), ("立方", "3")):
        if stem.casefold().startswith(words):
            stem, power = stem[len(words) :], number
    if stem in SAME_UNITS or stem.casefold() in SAME_UNITS:
        return SAME_UNITS.get(stem, SAME_UNITS.get(stem.casefold(), stem)) + power
    per = re.sub(r"\s*(?:/|\bper\b)\s*", "/", stem)
    parts = [SAME_UNITS.get(part, SAME_UNITS.get(part.casefold(), _singular(part.casefold()))) for part in per.split("/")]
    return "/".join(parts) + power


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
