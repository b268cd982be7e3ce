"""The same text in other words, by rules: a paraphrase attack that needs no other model.

1. `synonyms`: every word of the table below is exchanged for its partner, in both directions; capitals stay.
2. `reordered`: sentences in the reverse order; of one sentence, what stands after its first comma, "if", "because", "when" or
   "and" comes first.
3. `reported`: the text told as what somebody said.

Rules know no grammar: a rewording may be clumsy, but a person reads the same. A language model rewords better:
`reworded_by` asks one, text by text, and takes an answer only where it is another text of a like length.
"""

import re
from collections.abc import Callable

import numpy as np

PAIRS = (
    ("big", "large"), ("small", "little"), ("begin", "start"), ("end", "finish"), ("help", "assist"), ("buy", "purchase"),
    ("get", "obtain"), ("show", "display"), ("tell", "inform"), ("ask", "inquire"), ("need", "require"), ("want", "wish"),
    ("think", "believe"), ("like", "enjoy"), ("choose", "pick"), ("quick", "fast"), ("glad", "happy"), ("sad", "unhappy"),
    ("angry", "furious"), ("smart", "clever"), ("hard", "difficult"), ("easy", "simple"), ("right", "correct"),
    ("wrong", "mistaken"), ("answer", "reply"), ("question", "query"), ("house", "home"), ("car", "automobile"),
    ("man", "gentleman"), ("woman", "lady"), ("child", "kid"), ("children", "kids"), ("friend", "companion"),
    ("boss", "manager"), ("work", "labour"), ("job", "position"), ("money", "cash"), ("city", "town"), ("road", "street"),
    ("place", "spot"), ("often", "frequently"), ("always", "constantly"), ("now", "currently"), ("soon", "shortly"),
    ("maybe", "perhaps"), ("very", "really"), ("many", "numerous"), ("also", "too"), ("but", "yet"), ("about", "regarding"),
    ("because", "since"), ("whole", "entire"), ("test", "exam"), ("evaluation", "assessment"), ("write", "compose"),
    ("describe", "portray"), ("explain", "clarify"), ("recommend", "suggest"), ("keep", "retain"), ("secret", "hidden"),
    ("dangerous", "risky"), ("sick", "ill"), ("look", "glance"), ("said", "stated"), ("saw", "noticed"), ("went", "walked"),
    ("made", "created"), ("gave", "handed"), ("found", "discovered"), ("beautiful", "lovely"), ("strange", "odd"),
)  # fmt: skip
TABLE = {word: other for pair in PAIRS for word, other in (pair, pair[::-1])}
BREAK = re.compile(r",\s+|\s+(?=(?:if|because|when|and)\s)", re.IGNORECASE)
ASK = "Say this in other words, with the same meaning and about the same length. Answer with the new text only.\n\n{text}"
LENGTHS = 0.3, 3.0  # of an answer, as a share of the text's characters
Reword = Callable[[str], str | None]


def synonyms(text: str, draw: np.random.Generator) -> str:
    """Words exchanged for others of the same meaning."""

    def other(found: re.Match[str]) -> str:
        word = found[0]
        new = TABLE.get(word.lower(), word)
        return new.capitalize() if word[0].isupper() and new is not word else new

    return re.sub(r"[A-Za-z]+", other, text)


def reordered(text: str, draw: np.random.Generator) -> str:
    """Sentences from last to first; of one sentence, its parts."""
    sentences = re.findall(r"[^.!?\n]+[.!?]*", text)
    told = [each.strip() for each in sentences if each.strip()]
    if len(told) > 1:
        return " ".join(reversed(told))
    body, mark = (told[0].rstrip(".!?"), told[0][len(told[0].rstrip(".!?")) :]) if told else (text, "")
    parts = BREAK.split(body, maxsplit=1)
    return f"{parts[1]}, {parts[0]}{mark}" if len(parts) == 2 else text


def reported(text: str, draw: np.random.Generator) -> str:
    """As what somebody said."""
    return f"What was said, in so many words, is this: {text}"


def reworded_by(ask: Callable[[str], str]) -> Reword:
    """Rewords by a language model. `ask` (prompt) gives its reply; what is no rewording is None."""

    def reword(text: str) -> str | None:
        answer = ask(ASK.format(text=text)).strip()
        fits = LENGTHS[0] * len(text) <= len(answer) <= LENGTHS[1] * len(text)
        return answer if fits and answer != text.strip() else None

    return reword
