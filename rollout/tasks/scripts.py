"""Where a name begins and ends, by the script of its letters: a name as a pattern, for any text.

Scripts without spaces (Chinese, Japanese, Thai and their like) have no border to look for; Korean puts particles after
a name, Arabic and Hebrew put prefixes before it, Cyrillic languages decline it, and the scripts of India have vowel
signs that are no letters to `re`. A neighbour in another script than the name's is a border anywhere: 我是Kestrel。
"""

import re
from dataclasses import dataclass

# Letters of scripts that touch a name of another script without being part of it.
_HAN, _KANA = "\u3400-\u9fff\uf900-\ufaff", "\u3040-\u30ff\uff66-\uff9f"
_HANGUL = "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af"
_THAI, _INDIC = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff", "\u0900-\u0963\u0966-\u0dff"
_ARABIC = "\u0620-\u06d3\u06d5-\u06ff\u0750-\u077f"
_HEBREW, _CYRILLIC = "\u0591-\u05bd\u05bf\u05c1-\u05c2\u05c4-\u05f4", "\u0400-\u052f"
_FOREIGN = _HAN + _KANA + _HANGUL + _THAI + _INDIC + _ARABIC + _HEBREW
_THAI_MARKS = "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd"  # of the syllable before them
_KATAKANA = "\u30a1-\u30fa\u30fc\uff66-\uff9f"
_PARTICLES = (
    "은|는|이|가|을|를|의|도|만|와|과|랑|이랑|에게|한테|에서|에|로|으로|로서|으로서|로써|처럼|보다|부터|까지|마다|님|씨|아|야"
    "|라고|이라고|라는|이라는|라며|이라며|이고|이며|입니다|이에요|예요|이야|였습니다|이었습니다|이라|라|인|일|이다|다|입니까|인가요"
    "|이지만|지만|이죠|죠|이네요|네요|이란|란|요|하고|께서|조차|밖에|이나|나|들|합니다"
)


@dataclass(frozen=True)
class Border:
    """What must not stand before and after a name that begins or ends in the script."""

    letters: str  # a character class's inside
    before: str
    after: str


_BORDERS = (
    Border(_HAN, "", ""),
    Border(_KATAKANA, f"(?<![{_KATAKANA}])", f"(?![{_KATAKANA}])"),
    Border(_KANA, "", ""),
    Border(_THAI, "", f"(?![{_THAI_MARKS}])"),
    Border(_HANGUL, f"(?<![{_HANGUL}])", f"(?=(?:{_PARTICLES}){{0,3}}(?![{_HANGUL}]))"),
    Border(_ARABIC, rf"(?<![{_ARABIC}])(?:[وفأ]?[بلك]?(?:ال)?)?", f"(?![{_ARABIC}])"),
    Border(_HEBREW, rf"(?<![{_HEBREW}])(?:[ושהכבלמ]{{0,3}})?", f"(?![{_HEBREW}])"),
    Border(_INDIC, f"(?<![{_INDIC}])", f"(?![{_INDIC}])"),
    Border(_CYRILLIC, r"(?<!\w)", r"(?:[аяуюыие]|ой|ей|ом|ем|ём)?(?!\w)"),
)
_OTHER = Border(  # of Latin letters and the rest
    "", rf"(?<![^\W{_FOREIGN}])", rf"(?![^\W{_FOREIGN}])"
)
_DECLINED = "аяьй"  # a name's last letter, where Cyrillic languages put an ending in its place


def name_pattern(words: list[str], endings: str = "") -> str:
    """A pattern for the words with a space between them, as a name of its own, to be matched without case.

    Args:
        endings: what a language may add to a name in Latin letters, alternatives of `re`.
    """
    first, last = _border(words[0][0]), _border(words[-1][-1])
    literal = r"\s".join(re.escape(word) for word in words)
    if last.letters == _CYRILLIC and words[-1][-1].lower() in _DECLINED and len(words[-1]) > 2:
        literal += "?"
    if endings and last is _OTHER:
        literal += f"(?:{endings})?"
    return first.before + literal + last.after


def _border(letter: str) -> Border:
    return next((border for border in _BORDERS if re.match(f"[{border.letters}]", letter)), _OTHER)


AFTER_LATIN = _OTHER.after  # what must not follow a name in Latin letters
BEFORE_NUMBER = rf"(?<![^\W_{_FOREIGN}])(?<!\.)"  # what must not stand before one in digits: A12, 1.12; 有12 is one
BEFORE_SIGN = rf"{BEFORE_NUMBER}(?<!\d[{_FOREIGN}])"  # and before its sign: 2020年-2024年 are two years
