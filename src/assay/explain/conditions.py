"""What a rule can ask of a prefix. Each kind of condition gives a prefix one or more values; a condition names a set of them.

1. A kind is a function of a prefix: `token` gives its last token, `previous` the word before, `brackets` how many are open.
   A condition `{"is": KIND, "of": [values]}` holds where one of the kind's values is among those named.
2. Most kinds look at the prefix cut into items (`View`); those that depend on every character before (open brackets and
   quotes) keep a state that each character changes. Along a row of tokens either costs little, and gives what the whole
   prefix gives: `values(text)` and `along(row)` agree.
3. The length of a condition in bits, under a stated prior: every kind is as likely as any other, the number of values m
   costs 2 floor(log2 m) + 1 bits (Elias 1975, gamma code), and each set of m of the kind's V values is as likely as any:
   log2(kinds) + gamma(m) + log2 C(V, m).  V is the number of different values in the text that the rule was found in.

A further kind is one entry of `KINDS`. Left out, for want of a kept library that works offline: parts of speech of open
classes (nouns, verbs); English function words are looked up in lists instead.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from assay.errors import NeedsExtra, bad_argument
from assay.explain.function_words import WORD_CLASS, plural
from assay.explain.views import LINE_END, Prefix, Row, View, as_prefix, view
from assay.registry import Registry

Values = tuple[str, ...]
MOST_VALUES, LONGEST_VALUE = 10_000, 1_000
NOUN, CLAUSE = "noun", "clause"


@dataclass(frozen=True)
class Kind:
    """A kind of condition. `of`: its values at a view; `scan`: or, at a state that every piece changes.

    `part`: whether it says what the rule fires *on* (a noun) or *where* (a clause); `say`: values to words.
    `most`: how many values a prefix can have. `able`: None, or what is missing for it to be used here.
    `costly`: left out unless asked for. `over`: the kind it generalises: a value is worth naming only where several values of
    that one have it (an ending, where several words end so). `lasts`: it says the same of many tokens in turn.
    """

    name: str
    part: str
    say: Callable[[Sequence[str]], str]
    of: Callable[[View], Values] | None = None
    scan: "Scan | None" = None
    most: int = 1
    able: Callable[[], None] = lambda: None
    costly: bool = False
    over: str = ""
    lasts: bool = False

    def values(self, prefix: Prefix) -> Values:
        """At one prefix, from its text alone."""
        if self.scan is not None:
            return self.scan.read(self.scan.step(self.scan.first(), prefix.text))
        return self.of(view(prefix)) if self.of is not None else ()

    def along(self, row: Row) -> Iterator[Values]:
        """At every token of a row."""
        if self.scan is None:
            yield from (self.of(seen) for seen in row.views if self.of is not None)
            return
        state = self.scan.first()
        for piece in row.pieces:
            state = self.scan.step(state, piece)
            yield self.scan.read(state)


@dataclass(frozen=True)
class Scan:
    """A state that characters change one after the other: `step(step(s, a), b) == step(s, a + b)`."""

    first: Callable[[], Any]
    step: Callable[[Any, str], Any]
    read: Callable[[Any], Values]


KINDS: Registry[Kind] = Registry("condition")


def check_condition(record: Any) -> Kind:
    """The kind of a condition. Raises UsageError for anything that is not one, NeedsExtra where it cannot be applied."""
    if not isinstance(record, Mapping) or set(record) != {"is", "of"}:
        raise bad_argument("condition", record, '{"is": KIND, "of": [values]}')
    kind, values = KINDS.get(str(record["is"])), record["of"]
    if isinstance(values, str) or not isinstance(values, Sequence) or not 0 < len(values) <= MOST_VALUES:
        raise bad_argument(f"{kind.name}.of", values, f"a list of 1 to {MOST_VALUES:,} values")
    if wrong := [value for value in values if not isinstance(value, str) or len(value) > LONGEST_VALUE]:
        raise bad_argument(f"{kind.name}.of", wrong[0], f"texts of at most {LONGEST_VALUE:,} characters")
    kind.able()
    return kind


def holds(record: Mapping[str, Any], prefix: Prefix | str) -> bool:
    """Whether a condition holds at a prefix. Raises UsageError for a record that is no condition."""
    kind = check_condition(record)
    return not set(record["of"]).isdisjoint(kind.values(as_prefix(prefix)))


def gamma_bits(n: int) -> int:
    """Bits of a whole number n >= 1 in Elias' gamma code."""
    return 2 * (n.bit_length() - 1) + 1


def condition_bits(record: Mapping[str, Any], sizes: Mapping[str, int]) -> float:
    """Bits of a condition; `sizes`: how many values each kind has in the text the rule was found in.

    Raises UsageError for a set larger than its kind has values.
    """
    m, size = len(record["of"]), sizes.get(record["is"], 0)
    if m > size:
        raise bad_argument(f"sizes[{record['is']}]", size, f"{m} or more")
    return math.log2(len(sizes)) + gamma_bits(m) + log2_choose(size, m)


def log2_choose(n: int, k: int) -> float:
    """log2 of the number of sets of k among n."""
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


# the words of a prefix -----------------------------------------------------------------------------

BUCKETS = ((1, "1"), (2, "2"), (4, "3-4"), (8, "5-8"), (16, "9-16"), (32, "17-32"), (64, "33-64"))
SHAPE_TAIL, NEAR = 200, 12
NUMBER = re.compile(r"\d[\d.,:/-]*$")
URL, MAIL = re.compile(r"(?:https?://|ftp://|www\.)\S*$", re.I), re.compile(r"[\w.+-]+@[\w.-]*$")
TAG, ASSIGNED = re.compile(r"<[/!?]?[A-Za-z][^<>\n]*$"), re.compile(r"\\[A-Za-z]+\{[^{}\n]*$")
SENTENCE_ENDS = {".", "!", "?", "。", "！", "？", LINE_END}


def bucket(n: int) -> str:
    """Whole numbers from 1 in a few steps, each twice as wide as the last."""
    return next((name for most, name in BUCKETS if n <= most), "65 or more")


def one(value: str) -> Values:
    """A value, or none where it is empty."""
    return (value,) if value else ()


def shape(text: str) -> str:
    """How letters and marks of a piece of text are written."""
    letters = [sign for sign in text if sign.isalpha()]
    if not letters:
        if any(sign.isdigit() for sign in text):
            return "digits"
        if not text.strip():
            return "" if not text else ("line ends" if "\n" in text else "spaces")
        return "marks"
    upper = [sign.isupper() for sign in letters]
    if not any(upper) and not any(sign.islower() for sign in letters):
        return "letters without case"
    if all(upper):
        return "single capitals" if len(letters) == 1 else "text in capitals"
    if not any(upper):
        return "lower-case text"
    return "capitalised text" if upper[0] and not any(upper[1:]) else "mixed-case text"


def number_shape(seen: View) -> Values:
    """The number that the prefix ends in, with 0 for every digit: 1,250 -> 0,000."""
    found = NUMBER.search(seen.tail(SHAPE_TAIL))
    return one(re.sub(r"\d", "0", found.group())[:24] if found else "")


def ending(n: int) -> Callable[[View], Values]:
    """The last n letters of longer words."""
    return lambda seen: one(seen.word[-n:].lower() if len(seen.word) > n else "")


def beginning(n: int) -> Callable[[View], Values]:
    """The first n letters of longer words."""
    return lambda seen: one(seen.word[:n].lower() if len(seen.word) > n else "")


def place_in_word(seen: View) -> Values:
    """Whether the token starts a word, or goes on with one."""
    if not seen.word or not (seen.word[0].isalnum() or seen.word[0] == "_"):
        return ()
    return ("begins",) if seen.end - len(seen.word) >= seen.start else ("goes on",)


def place_since(ends: frozenset[str] | set[str]) -> Callable[[View], Values]:
    """How many items since one of these, the last one counted."""

    def found(seen: View) -> Values:
        if not seen.word:
            return ()
        back = next((n for n, item in enumerate(reversed(seen.earlier)) if item in ends), len(seen.earlier))
        return (bucket(back + 1),)

    return found


def line_opens(seen: View) -> Values:
    """What the line begins with: a mark, or 0 for a number. Nothing where it begins with a word, or this is its first item."""
    line = seen.earlier
    back = next((n for n, item in enumerate(reversed(line)) if item == LINE_END), len(line))
    if not back or seen.word == LINE_END:
        return ()
    first = line[len(line) - back]
    return one("0" if first[0].isdigit() else "" if first[0].isalpha() else first)


def span(seen: View) -> Values:
    """What kind of stretch the prefix ends inside: an address, a tag, code."""
    tail = seen.tail(SHAPE_TAIL)
    for name, pattern in (("web address", URL), ("e-mail address", MAIL), ("tag", TAG), ("LaTeX command", ASSIGNED)):
        if pattern.search(tail):
            return (name,)
    if seen.text.count("```", 0, seen.end) % 2 or tail.rpartition("\n")[2].count("`") % 2:
        return ("code",)
    return ()


def script(seen: View) -> Values:
    """The script of the last letter of the token."""
    import unicodedata

    letter = next((sign for sign in reversed(seen.token) if sign.isalpha()), "")
    return one(unicodedata.name(letter, "").split(" ")[0].split("-")[0].capitalize() if letter else "")


def echo(seen: View) -> Values:
    """How many items, up to the word, the text already had in this order: none, 1, 2, 3 or more."""
    if not seen.word:
        return ()
    now = [*(item.lower() for item in seen.earlier), seen.word.lower()]
    last, longest = len(now) - 1, 0
    for at in range(last):
        if now[at] == now[last]:
            run = 1
            while run < 3 and at - run >= 0 and now[at - run] == now[last - run]:
                run += 1
            longest = max(longest, run)
    return (("new", "1", "2", "3 or more")[longest],)


def seen_ago(seen: View) -> Values:
    """How many items ago the word last was in the text."""
    word = seen.word.lower()
    back = (n for n, item in enumerate(reversed(seen.earlier), 1) if item.lower() == word)
    return one(next(map(bucket, back), "") if word else "")


def near_words(seen: View) -> Values:
    """Words among the last twelve items before this one, without function words."""
    return tuple({item.lower(): 0 for item in seen.earlier[-NEAR:] if len(item) > 2 and item.isalpha()
                  and item.lower() not in WORD_CLASS})  # fmt: skip


def stretch(seen: View, every: int, most: int) -> str:
    """The last `most` items before one of every `every`: the same text for a while, so that it is judged only once."""
    end = len(seen.earlier) // every * every
    return " ".join(seen.earlier[max(0, end - most) : end])


# brackets and quotes -------------------------------------------------------------------------------

OPEN, CLOSE = "([{", {")": "(", "]": "[", "}": "{"}
BRACKET, QUOTE = re.compile(r"[()\[\]{}]"), re.compile(r"[\"“”\n]")


def step_brackets(stack: str, piece: str) -> str:
    """Open brackets, outermost first. A closing one that closes none is passed over."""
    for sign in BRACKET.findall(piece):
        if sign in OPEN:
            stack += sign
        elif CLOSE[sign] in stack:
            stack = stack[: stack.rindex(CLOSE[sign])]
    return stack


def step_quotes(inside: bool, piece: str) -> bool:
    """Whether a double quote is open; none outlasts its line."""
    for sign in QUOTE.findall(piece):
        inside = sign == "“" or (sign == '"' and not inside)
    return inside


# words for them ------------------------------------------------------------------------------------

SHOWN = 6


def listed(values: Sequence[str], quote: bool = True, joined: str = "or") -> str:
    """'a', 'b' or 'c'; the first six of more, with how many are left out."""
    shown = [(f"{value!r}" if value != LINE_END else "a line end") if quote else value for value in values[:SHOWN]]
    if len(values) > SHOWN:
        return f"{', '.join(shown)} {joined} {len(values) - SHOWN} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} {joined} {shown[-1]}"


def saying(form: str, quote: bool = True) -> Callable[[Sequence[str]], str]:
    """A phrase with the values at {}; an s in round brackets only where there are several. Numbers are put in order."""

    def say(values: Sequence[str]) -> str:
        if not quote and all(value[:1].isdigit() for value in values):
            values = sorted(values, key=lambda value: int(re.split(r"\D", value)[0]))
        return form.replace("(s)", "s" if len(values) > 1 else "").replace("{}", listed(values, quote))

    return say


def pairs(values: Sequence[str]) -> str:
    """Previous word and token as they stand in the text."""
    parts = [value.partition(" ") for value in values]
    return "what ends in " + listed([f"{left}{'' if right[:1].isspace() else '|'}{right}" for left, _, right in parts])


# language and topic --------------------------------------------------------------------------------

EVERY, STRETCH = 8, 32  # items
TOPIC_EVERY, TOPIC_STRETCH, ENCODER = 16, 64, "minilm"
TOPICS = {
    "biology and nature": "Animals, plants, species, cells, genes and evolution in nature.",
    "business": "A company, its customers, products, marketing and management.",
    "computers and software": "Software, programming, code, files, servers and the internet.",
    "crime": "Police arrested a suspect for murder, theft or another crime.",
    "education": "Students, teachers, schools, universities, courses and exams.",
    "entertainment": "A film, a television show, actors, celebrities and games.",
    "family and relationships": "Parents, children, marriage, love and friendship.",
    "fashion and beauty": "Clothes, shoes, make-up, hair, style and design.",
    "finance": "Money, banks, stocks, investment, prices and taxes.",
    "food": "A recipe, cooking, ingredients, restaurants and meals.",
    "geography and travel": "Cities, countries, rivers, hotels, tourists and journeys.",
    "health and medicine": "Patients, doctors, diseases, symptoms, drugs and treatment.",
    "history": "Ancient kings, empires, centuries and historical events.",
    "house and garden": "Furniture, rooms, tools, repairs, gardens and cleaning.",
    "law": "A court, a judge, a contract, rights and legal procedure.",
    "literature": "A novel, poems, an author, characters and a story.",
    "mathematics": "Numbers, equations, a theorem, a proof and geometry.",
    "military": "Soldiers, war, weapons, an army, a battle and a navy.",
    "music": "A song, an album, a band, a concert and instruments.",
    "physics and chemistry": "Energy, atoms, forces, chemical reactions and experiments.",
    "politics": "The government, an election, a president, parties and policy.",
    "psychology": "The mind, feelings, stress, behaviour and therapy.",
    "religion": "God, prayer, the church, the Bible, faith and rituals.",
    "sports": "A team, players, a match, goals, a season and championships.",
    "technology": "Machines, engines, devices, electronics and engineering.",
    "transport": "Cars, trains, aircraft, ships, roads and traffic.",
    "visual arts": "Paintings, museums, photography, sculpture and artists.",
    "weather and environment": "Climate, rain, storms, pollution, energy use and recycling.",
}


@lru_cache(maxsize=100_000)
def language_of(text: str) -> str:
    """The language of a text by py3langid (Lui & Baldwin 2012), as its two-letter code; nothing for fewer than 8 items."""
    from py3langid import classify

    return str(classify(text)[0]) if text.count(" ") >= EVERY - 1 else ""


@lru_cache(maxsize=1)
def _topics() -> Any:
    from assay.model.encoders import SentenceEncoder

    encoder = SentenceEncoder(ENCODER)
    return encoder, encoder(list(TOPICS.values()))


@lru_cache(maxsize=100_000)
def topic_of(text: str) -> str:
    """The topic whose describing sentence is nearest by sentence embedding; nothing for fewer than 16 items."""
    if text.count(" ") < TOPIC_EVERY - 1:
        return ""
    encoder, centres = _topics()
    return list(TOPICS)[int((encoder([text]) @ centres.T).argmax())]


def needs_langid() -> None:
    """Raises NeedsExtra without the package that tells languages."""
    if find_spec("py3langid") is None:
        raise NeedsExtra("Telling the language of a text", "language")


# the kinds -----------------------------------------------------------------------------------------


def _class_of(word: str) -> Values:
    return one(WORD_CLASS.get(word.lower(), ""))


def _add(name: str, part: str, of: Callable[[View], Values], say: Callable[[Sequence[str]], str], **more: Any) -> None:
    KINDS.add(name, Kind(name, part, say, of, **more))


def _classes(article: bool) -> Callable[[Sequence[str]], str]:
    def say(values: Sequence[str]) -> str:
        names = [f"{'an' if name[0] in 'aeiou' else 'a'} {name}" if article else plural(name) for name in values]
        return f"after {listed(names, quote=False)}" if article else listed(names, quote=False, joined="and")

    return say


_add("token", NOUN, lambda seen: one(seen.token), saying("the token(s) {}"))
_add("word", NOUN, lambda seen: one(seen.word.lower()), saying("the word(s) {}"))
_add("word_class", NOUN, lambda seen: _class_of(seen.word), _classes(article=False))
_add("case", NOUN, lambda seen: one(shape(seen.token)), saying("{}", quote=False))
_add("number", NOUN, number_shape, saying("numbers written like {}"))
_add("ending_2", NOUN, ending(2), saying("words that end in {}"), over="word")
_add("ending_3", NOUN, ending(3), saying("words that end in {}"), over="word")
_add("ending_4", NOUN, ending(4), saying("words that end in {}"), over="word")
_add("beginning_2", NOUN, beginning(2), saying("words that begin with {}"), over="word")
_add("beginning_4", NOUN, beginning(4), saying("words that begin with {}"), over="word")
_add("length", NOUN, lambda seen: one(bucket(len(seen.word)) if seen.word else ""), saying("words of {} letters", quote=False))
_add("script", NOUN, script, saying("text in {} letters", quote=False))
_add("pair", NOUN, lambda seen: one(f"{seen.previous} {seen.token}" if seen.earlier and seen.token else ""), pairs)
_add("place_in_word", CLAUSE, place_in_word, lambda values: " or ".join(
    {"begins": "where a word begins", "goes on": "inside a word"}.get(value, value) for value in values))  # fmt: skip
_add("previous", CLAUSE, lambda seen: one(seen.previous.lower()), saying("after {}"))
_add("previous_2", CLAUSE, lambda seen: one(seen.earlier[-2].lower() if len(seen.earlier) > 1 else ""),
     saying("two words after {}"))  # fmt: skip
_add("previous_class", CLAUSE, lambda seen: _class_of(seen.previous), _classes(article=True))
_add("previous_case", CLAUSE, lambda seen: one(shape(seen.previous)), saying("after {}", quote=False))
_add("near", CLAUSE, near_words, saying("up to twelve words after {}"), most=NEAR, lasts=True)
_add("place_in_text", CLAUSE, lambda seen: (bucket(len(seen.earlier) + 1),), saying("at word {} of what was read", quote=False))
_add("place_in_sentence", CLAUSE, place_since(SENTENCE_ENDS), saying("at word {} of a sentence", quote=False))
_add("place_in_line", CLAUSE, place_since({LINE_END}), saying("at word {} of a line", quote=False))
_add("line_opens", CLAUSE, line_opens, saying("in a line that opens with {}"))
_add("span", CLAUSE, span, lambda values: "inside " + listed(
    [value if value == "code" else f"{'an' if value[0] == 'e' else 'a'} {value}" for value in values], quote=False), lasts=True)
_add("echo", CLAUSE, echo, lambda values: " or ".join(
    "where the word is new in the text" if value == "new" else "where the word was in the text before" if value == "1" else
    f"where the last {value} words were in the text before in this order" for value in values))  # fmt: skip
_add("seen_ago", CLAUSE, seen_ago, saying("where the same word came {} words ago", quote=False))
_add("language", CLAUSE, lambda seen: one(language_of(stretch(seen, EVERY, STRETCH))),
     saying("in text in the language {}"), able=needs_langid, lasts=True)  # fmt: skip
_add("topic", CLAUSE, lambda seen: one(topic_of(stretch(seen, TOPIC_EVERY, TOPIC_STRETCH))),
     saying("in text about {}", quote=False), costly=True, lasts=True)  # fmt: skip
KINDS.add("brackets", Kind("brackets", CLAUSE, lambda values: " or ".join(
    "outside brackets" if value == "0" else f"inside {value} bracket{'s' * (value != '1')}" for value in values),
    scan=Scan(lambda: "", step_brackets, lambda stack: (str(len(stack)) if len(stack) < 4 else "4 or more",))))  # fmt: skip
KINDS.add("inside", Kind("inside", CLAUSE, saying("right inside {}"), scan=Scan(lambda: "", step_brackets,
                                                                                lambda stack: one(stack[-1:]))))  # fmt: skip
KINDS.add("quotes", Kind("quotes", CLAUSE, lambda values: " or ".join(f"{value} double quotes" for value in values),
    scan=Scan(lambda: False, step_quotes, lambda inside: ("inside" if inside else "outside",))))  # fmt: skip


def usable(costly: bool = False) -> tuple[Kind, ...]:
    """The kinds that can be looked for here; `costly`: also those that need a model of their own."""
    found = []
    for kind in KINDS:
        try:
            kind.able()
        except NeedsExtra:
            continue
        if costly or not kind.costly:
            found.append(kind)
    return tuple(found)
