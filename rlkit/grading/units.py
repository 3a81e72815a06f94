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
        "°C ℃ celsius",
        "°F fahrenheit",
        "Ω ohm ohms \\Omega",
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
SI = frozenset(list_words("N J W V A Hz kHz MHz Pa kPa mol eV keV kJ kW mA kV nm pm rpm sq"))
KOREAN_COUNTERS = frozenset(
    list_words("개 명 원 권 마리 살 세 시간 분 초 일 번 도 장 대 그루 송이 자루 미터 센티미터 킬로미터 그램 킬로그램 리터")
)
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
    r"from|except|without|instead|versus|vs|would|could|should|might|may|factorial|doubled|tripled|reciprocal|inverse|hex|binary|octal|tens|ppm|"
    r"negative|remainder|power|infinite|undefined|nan|for|when|as|at|of|sin|cos|tan|log|above|below|fewer|assuming|some|quarter|score|gross|basis|mille)\b|[=<>?+*!\\\d~]|[不或和約约]|以上|以下|未満|以内|左右|倍|이상|이하|미만|보다|[\u3040-\u30ff]",
    re.IGNORECASE,
)
WORDS = r"[^\W\d_][^\W\d_'’.-]*(?:[ /·-][^\W\d_][^\W\d_'’.-]*){0,4}"
EXPONENT = r"(?:\^\ ?\{?\ ?-?\d\ ?\}?)?"
UNIT = re.compile(
    rf"""(?P<temperature>\ ?\^\ ?\{{?\ ?\\circ\ ?\}}?\ ?(?:\\text\{{\ ?)?[CFK]\ ?\}}?)
      | (?:\ ?\\text\ ?\{{(?P<text>[^{{}}]*)\}}(?P<power>{EXPONENT})(?P<rest>(?:\ ?(?:(?:/|\\cdot)\ ?)?\\text\ ?\{{[^{{}}]*\}}{EXPONENT})*))
      | (?P<space>\ ?)\(?(?P<words>{WORDS})(?P<exponent>{EXPONENT})\)?""",
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
        one_letter = len(match["text"].strip()) == 1 and not match["rest"] and match["text"].strip() not in LETTER_UNITS | SI
        named = match["text"].strip() in SAME_UNITS
        return None if NO_UNIT.search(match["text"]) or FRACTIONS.search(match["text"]) or (one_letter and not named) else _name_unit(found)
    words = re.sub(r"^degrees?\s+(?=Celsius|Fahrenheit)", "", match["words"])
    if len(words.split()) > 1 and "in" in words.split():
        return None
    if re.search("[가-힣]", words) and words not in KOREAN_COUNTERS:
        return None
    if NO_UNIT.search(words) or FRACTIONS.search(words) or _is_symbol(words, bool(match["space"])):
        return None
    return _name_unit(words + _read_exponent(match["exponent"]))


def is_usual(unit: str) -> bool:
    """Whether a unit is of the table, with a power or in a quotient too."""
    stems = [re.sub(r"-?\d$", "", part) for part in unit.split("/")]
    return all(stem in SAME_UNITS.values() or stem in SI or stem.startswith("°") for stem in stems)


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
    parts = [
        SAME_UNITS.get(part, SAME_UNITS.get(part.casefold(), _singular(part.casefold() if len(part) > 2 else part)))
        for part in per.split("/")
    ]
    return "/".join(parts) + power


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
