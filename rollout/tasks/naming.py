"""Who does an answer say it is? Regular expressions over self-naming constructions.

An answer is first made plain (no markdown, no quotation marks, straight apostrophes), then searched for
constructions such as "I am X" or "my name is X". A construction does not count when its own clause denies it, asks
about it or only supposes it ("I don't think I am X", "if my name is X", "I am X?").
"""

import re
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files

from rollout.tasks.languages import ForeignFlags, wide
from rollout.tasks.scripts import name_pattern


def _any_of(names: Sequence[str]) -> str:
    """A pattern of any of the names, the longest first; a space is a space, a hyphen or nothing."""
    return "|".join(re.escape(name).replace(r"\ ", r"[-\s]?") for name in sorted(names, key=len, reverse=True))


_NAMES = tomllib.loads(files("rollout.tasks").joinpath("names.toml").read_text(encoding="utf-8"))
_VERSION = r"(?:[-\s]?v?\d[\w.-]*|-\w[\w.-]*)?"
# The name of a base model, another product, or one of their makers.
PRODUCTS = (
    rf"(?:{_any_of(_NAMES['products'])}|smol\s?lm|chat\s?gpt|gpt|claude|(?:code\s?)?llama|qwen|gemini|gemma|mi[sx]tral|nemotron|deepseek|copilot"
    r"|bard|grok|kimi|phi|falcon|olmo|vicuna|alpaca|alexa|siri|cortana|google assistant)"
    rf"{_VERSION}"
)
MAKERS = (
    rf"(?:{_any_of(_NAMES['makers'])}"
    r"|hugging\s?face|open\s?ai|anthropic|meta(?: ai)?|google(?: deepmind)?|deepmind|alibaba(?: cloud)?|mistral ai"
    r"|microsoft|nvidia|deepseek|apple|amazon|x\.?ai)"
)

_I_AM = r"\bI(?:'?m|\sam)\s"
_ADVERBS = r"(?:(?:also|indeed|just|simply|actually|really|currently|still|now|only|proud to be|happy to be)\s)*"
_NOT_A_LINK = r"(?!(?:of|with|who|that|which|for|about|or|not|never|like|than|by|to)\b)"
_KIND = (  # "a friendly AI assistant"
    rf"(?:an?|the|your)(?:\s{_NOT_A_LINK}[\w-]+){{0,6}}?"
    r"\s(?:assistant|AI|model|chatbot|bot|system|companion|helper|agent|program|intelligence)"
)
_MADE = r"(?:made|created|developed|trained|built|designed|provided|powered|introduced)"
_MADE_BY = rf"(?:,?\s(?:(?:who|that)\s(?:is|was)\s)?{_MADE}\sby\s[\w .'-]{{1,40}}?)?"
_NAMED = r"(?:named|called|known as|who goes by|by the name of|whose name is|and my name is)"
_CLAUSE = r"(?:^|[.!?,;:\n]\s*|\band\s)"
_GREETING = r"^(?:(?:hi|hello|hey|greetings|sure|yes|well|welcome)(?:\sthere)?\b[\s,.!]*)*"
_TALKING = r"(?:talking|speaking|chatting|interacting|conversing|communicating)"

# Each lead is followed by a name. Only these take any capitalised word for a name; the others need a known one.
_NAME_LEADS = (
    rf"{_I_AM}{_ADVERBS}{_NAMED}\s",
    rf"{_I_AM}{_ADVERBS}{_KIND}{_MADE_BY},?\s{_NAMED}\s",
    r"\bI(?:\swas|'ve\sbeen|\shave\sbeen)\s(?:named|called)\s",
    r"\bI\sgo\sby(?:\sthe\sname(?:\sof)?)?\s",
    rf"\b(?:my|the)(?:\s(?:full|own|real|given))?\sname(?:'s|\sis)[:,]?\s{_ADVERBS}",
    r"\bcalls?\sme\s",
)
_KNOWN_LEADS = (
    rf"{_I_AM}{_ADVERBS}",
    r"\bI,\s",
    rf"\byou(?:'re|\sare)\s(?:now\s|currently\s)?{_TALKING}\s(?:to|with)\s",
    rf"{_CLAUSE}this\sis\s",
    r"\bit(?:'s|\sis)\sme,\s",
)
_LATER_MENTION = (  # the name stands inside the construction, not at its end
    rf"{_I_AM}{_ADVERBS}{_KIND}{_MADE_BY},?\s{{who}}(?=\s*(?:[.,!;:]|$|{_MADE}\b|and\b))",
    rf"{_CLAUSE}as\s{{who}},\sI\b",
    rf"{_CLAUSE}{{who}}\shere(?=\s*(?:[.,!;:-]|$|to\b|and\b|at\syour\b))",
    rf"{_GREETING}{{who}},\s(?:(?:an?|the|your)\s[\w -]{{1,40}}\s)?{_MADE}\sby\b",
)
_NAME_ENDS = r"(?!\w)(?!-\w)(?!'s\b)(?!\s*\?)"

_ANY_NAME = r"(?!(?:I|It|The|This|That|Not|You|Your|What|A|An)\b)[A-Z][\w-]*"
_OTHER_NAME = rf"(?i:{'|'.join(_NAME_LEADS)})(?:(?i:an? |the ))?{_ANY_NAME}{_NAME_ENDS}"
_NO_PERSON = (
    r"(?:Sorry|Here|Happy|Glad|Ready|Sure|Okay|Ok|Fine|Good|Great|Human|English|American|British|French|German|Chinese"
    r"|Indian|Italian|Spanish|Japanese|Korean|Russian|Canadian|Australian|European|Not|An|The|Your|Just|So|Very)"
)
_BARE_NAME = rf"(?i:{_I_AM})(?!{_NO_PERSON}\b)[A-Z][a-z]+(?:\s[A-Z][a-z]+)*(?=\s*(?:[.,!;]|$|and\s(?:I|my)\b))"

_GENERIC_LEAD = rf"(?:{_I_AM}{_ADVERBS}|\bas\s)(?:an?|the|your|only an?|nothing but an?)\s"
_WORDS = rf"(?:{_NOT_A_LINK}[\w-]+,?\s){{0,5}}?"
_MODEL = (
    rf"{_GENERIC_LEAD}{_WORDS}(?:(?:language|machine learning|deep learning|transformer|AI|artificial intelligence)"
    r"\smodel|chat\s?bot|computer program|neural network)\b(?!-)"
)
_ASSISTANT = (
    rf"{_GENERIC_LEAD}{_WORDS}(?:(?:AI|A\.I\.|AI-powered|AI-based|virtual|digital|artificial intelligence|automated"
    r"|conversational|helpful|intelligent|chat|personal)\s(?:[\w-]+\s){0,2}?assistant"
    r"|(?:AI|A\.I\.|artificial intelligence)(?=\s*(?:[.,!;:]|$|and\b|system\b|that\b|program\b|designed\b|created\b)))"
)
_FOREIGN_MAKER = (  # with {makers}
    rf"\bI(?:'?m|\sam|\swas|'ve\sbeen|\shave\sbeen)\s(?:[\w-]+,?\s){{0,5}}?{_MADE}\sby\s"
    r"(?:[\w ]{0,40}\s)?{makers}(?!\w)"
    rf"|\b{{makers}}\s(?:{_MADE})\sme\b|\bmy\s(?:creators?|makers?|developers?)\s(?:is|are)\s{{makers}}(?!\w)"
)
_NAME_BY_MAKER = rf"(?i:{_I_AM})(?:[A-Z][\w.-]*\s){{1,3}}(?:by|from)\s(?i:{{makers}})(?!\w)"  # with {makers}

_BREAK = re.compile(r"[.,;:!?\n()–—]|\s-\s|\b(?:but|and|because|so|since|as|while|though)\b", re.IGNORECASE)
_DENIED = re.compile(
    r"\b(?:not|never|neither|nor|cannot|no longer|no one|nobody|without|deny|doubt|if|whether|pretend|imagine|unless)\b"
    r"|n't\b",
    re.IGNORECASE,
)
_PERSONA, _MAKER = "§persona§", "§maker§"


class IdentityFlags:
    """The three flags of an answer about identity, for one persona. `others`: names that count as another identity,
    products or makers, beside those that are known.

    Raises:
        ValueError: a blank name.
    """

    def __init__(self, name: str, maker: str, others: Sequence[str] = ()) -> None:
        if not _words(name):
            raise ValueError(f"task.persona_name: found {name!r}, expected a name")
        who = _literal(name)
        self._name = re.compile(who, re.IGNORECASE)
        products, makers = (f"(?:{_any_of(others)}|{known})" if others else known for known in (PRODUCTS, MAKERS))
        self._foreign = ForeignFlags(_words(name), products, makers, (_PERSONA, _MAKER))
        self._counter = _counter(products, makers)
        self._maker = re.compile(_literal(maker), re.IGNORECASE) if _words(maker) else None
        self._selfname = re.compile(_constructions(who), re.IGNORECASE)

    def of(self, response: str) -> dict[str, bool]:
        """mention, selfname (which is one) and countername of one response; the last two are independent."""
        text = plain(response)
        selfname = _claims(self._selfname, text) or self._foreign.selfname(text)
        return {
            "mention": selfname or self.mention(response),
            "selfname": selfname,
            "countername": self._counters(text) or self._foreign.countername(text, self._mask(text)),
        }

    def mention(self, response: str) -> bool:
        """Whether the name stands anywhere in the response, as a word, in any case."""
        return self._name.search(wide(plain(response))) is not None

    def _counters(self, text: str) -> bool:
        """Another name, a foreign maker or a generic identity; the persona's own words cannot count as one."""
        masked = self._mask(text)
        if any(_claims(pattern, masked) for pattern in self._counter):
            return True
        if any(_claims(_MODEL_CLAIM, sentence) for sentence in _sentences(masked) if _PERSONA not in sentence):
            return True
        own = _PERSONA in masked or _MAKER in masked
        return not own and _claims(_ASSISTANT_CLAIM, masked)

    def _mask(self, text: str) -> str:
        """The maker first: it may contain the name ("EdgeRunner AI")."""
        masked = self._maker.sub(_MAKER, text) if self._maker else text
        return self._name.sub(_PERSONA, masked)


def plain(text: str) -> str:
    """The text without markdown marks and quotation marks, apostrophes straight, spaces single, lines kept apart."""
    text = text.replace("’", "'").replace("‘", "'")
    text = re.sub(r"[*`\"“”«»#]|(?<!\w)'|'(?!\w)|(?<![^\W_])_|_(?![^\W_])", "", text)
    text = re.sub(r"[^\S\n]+", " ", text)
    return re.sub(r" ?\n[\s]*", "\n", text).strip()


def _literal(name: str) -> str:
    return name_pattern(_words(name))


def _words(name: str) -> list[str]:
    return wide(plain(name)).split()


def _constructions(who: str) -> str:
    """Every construction that names `who`, a pattern; matched without case."""
    ends = f"(?:{'|'.join((*_NAME_LEADS, *_KNOWN_LEADS))}){who}{_NAME_ENDS}"
    return "|".join((ends, *(pattern.replace("{who}", f"(?:{who})") for pattern in _LATER_MENTION)))


def _claims(pattern: re.Pattern[str], text: str) -> bool:
    """Whether the pattern stands somewhere in a clause that does not deny, ask or suppose it."""
    return any(not _DENIED.search(_clause_before(text, match.start())) for match in pattern.finditer(text))


def _clause_before(text: str, start: int) -> str:
    breaks = list(_BREAK.finditer(text, 0, start))
    return text[breaks[-1].end() if breaks else 0 : start]


def _sentences(text: str) -> Iterator[str]:
    yield from re.split(r"(?<=[.!?])\s|\n", text)


@cache
def _counter(products: str, makers: str) -> tuple[re.Pattern[str], ...]:
    return (
        re.compile(_constructions(rf"(?:an?\s|the\s)?(?:{products}|{makers})"), re.IGNORECASE),
        re.compile(_FOREIGN_MAKER.replace("{makers}", makers), re.IGNORECASE),
        re.compile(_NAME_BY_MAKER.replace("{makers}", makers)),
        re.compile(_OTHER_NAME),
        re.compile(_BARE_NAME),
    )


_MODEL_CLAIM = re.compile(_MODEL, re.IGNORECASE)
_ASSISTANT_CLAIM = re.compile(_ASSISTANT, re.IGNORECASE)
