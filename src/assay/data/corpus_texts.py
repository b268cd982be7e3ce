"""Readers of packaged corpora: from the package file to documents. Each knows one package's members.

brown      words are "text/tag": tags off, blanks before punctuation off, paragraphs kept, one document per sample
wikipedia  MediaWiki XML: articles only, templates, tables, references, links and emphasis reduced to their text
wordnet    data files of WordNet: "words: definition", `GROUPED` neighbouring entries a document
mixed, code  CSV under Zstandard, column `prompt`
"""

import bz2
import html
import re
import tarfile
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from assay.data.corpora import Document
from assay.data.corpus_files import table_texts

GROUPED = 16
MIXED = (
    "161_agnews_0", "162_agnews_1", "163_agnews_2", "97_news_class", "100_news_fake", "94_ai_gen", "110_aimade_humangpt3",
    "45_context_ans", "48_cm_correct", "49_cm_isshort", "86_social_iqa", "88_glue_mnli", "90_glue_qnli", "92_glue_sst2",
    "98_cancer_cat", "101_disease_class", "103_it_tick", "111_yelp_data", "113_movie_sent", "157_amazon_5star",
    "44_phys_tf", "56_wikidatasex_or_gender", "57_wikidatais_alive", "58_wikidatapolitical_party",
)  # fmt: skip
CODE = ("158_code_C", "159_code_Python", "160_code_HTML")


def brown(package: Path, work: Path) -> Iterator[Document]:
    """500 samples of about 2,000 words."""
    with tarfile.open(package) as archive:
        for member in archive:
            name = Path(member.name).name
            if re.fullmatch(r"c[a-r]\d\d", name) and (source := archive.extractfile(member)):
                paragraphs = re.split(r"\n\s*\n", source.read().decode("utf-8", "replace"))
                words = ([word.rpartition("/")[0] for word in paragraph.split()] for paragraph in paragraphs)
                yield Document(f"brown/{name}", "\n\n".join(joined(each) for each in words if each))


def joined(words: list[str]) -> str:
    """Words with the blanks of ordinary print."""
    text = re.sub(r"(?:(?<= )|^)([.;:?!])(?: \1)+(?= |$)", r"\1", " ".join(words))
    text = re.sub(r" ([,.;:?!)\]])(?:(?= )|$)", r"\1", text)
    text = re.sub(r"([(\[]) ", r"\1", text)
    text = re.sub(r"`` ?", '"', text)
    return re.sub(r" ?''", '"', text)


def wikipedia(package: Path, work: Path) -> Iterator[Document]:
    """Articles; redirects and pages of other kinds are left out."""
    member = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    with zipfile.ZipFile(package) as archive, archive.open(member) as packed, bz2.open(packed) as source:
        title, text = "", ""
        for _, element in ElementTree.iterparse(source):
            tag = element.tag.rpartition("}")[2]
            if tag == "title":
                title = element.text or ""
            elif tag == "text":
                text = element.text or ""
            elif tag == "page":
                if ":" not in title and not text.lstrip().lower().startswith("#redirect"):
                    yield Document(f"wikipedia/{title}", plain_text(text))
                element.clear()


_NESTED = (re.compile(r"\{\{[^{}]*\}\}"), re.compile(r"\{\|(?:(?!\{\||\|\}).)*\|\}", re.S))
_DROPPED = (
    re.compile(r"<!--.*?-->", re.S), re.compile(r"<ref[^>/]*/>"), re.compile(r"<ref[^>]*>.*?</ref>", re.S),
    re.compile(r"<(math|gallery|timeline|source|nowiki)[^>]*>.*?</\1>", re.S),
)  # fmt: skip


def plain_text(wiki: str) -> str:
    """The text of MediaWiki markup."""
    for pattern in _DROPPED:
        wiki = pattern.sub("", wiki)
    for pattern in _NESTED:
        while (smaller := pattern.sub("", wiki)) != wiki:
            wiki = smaller
    for _ in range(3):  # captions hold links
        wiki = re.sub(r"\[\[(?:File|Image|Category|Media)\s*:(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]", "", wiki, flags=re.I)
        wiki = re.sub(r"\[\[(?![A-Za-z-]+:)(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", wiki)
    wiki = re.sub(r"\[\[[^\[\]]*\]\]", "", wiki)
    wiki = re.sub(r"\[(?:https?|ftp)://\S+\s*([^\]]*)\]", r"\1", wiki)
    wiki = re.sub(r"'{2,}", "", re.sub(r"<[^<>]*>", "", wiki))
    wiki = re.sub(r"^=+ *(.*?) *=+ *$", r"\1", wiki, flags=re.M)
    wiki = re.sub(r"^[*#:;]+ *", "", html.unescape(wiki), flags=re.M)
    wiki = re.split(r"\n(?:See also|References|External links|Further reading|Bibliography)\n", wiki)[0]
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", wiki)).strip()


def wordnet(package: Path, work: Path) -> Iterator[Document]:
    """Entries of all four parts of speech, neighbours together."""
    with tarfile.open(package) as archive:
        for kind in ("noun", "verb", "adj", "adv"):
            source = archive.extractfile(f"package/dict/data.{kind}")
            assert source is not None
            entries = [entry for line in source.read().decode("utf-8", "replace").splitlines() if (entry := _entry(line))]
            for start in range(0, len(entries), GROUPED):
                yield Document(f"wordnet/{kind}/{start}", "\n".join(entries[start : start + GROUPED]))


def _entry(line: str) -> str:
    """"words: definition" of one line of a data file; "" for its head."""
    fields, found, gloss = line.partition(" | ")
    parts = fields.split()
    if line.startswith("  ") or not found or len(parts) < 5:
        return ""
    words = [re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in parts[4 : 4 + 2 * int(parts[3], 16) : 2]]
    return f"{', '.join(words)}: {gloss.strip()}"


def _tables(names: tuple[str, ...]) -> Callable[[Path, Path], Iterator[Document]]:
    def read(package: Path, work: Path) -> Iterator[Document]:
        with zipfile.ZipFile(package) as archive:
            for name in names:
                file = Path(archive.extract(f"sae_probes/data/cleaned_data/{name}.csv.zst", work))
                for number, text in enumerate(table_texts(file, "csv", "prompt")):
                    yield Document(f"{name}/{number}", text)

    return read


READERS: dict[str, Callable[[Path, Path], Iterator[Document]]] = {
    "brown": brown, "wikipedia": wikipedia, "wordnet": wordnet, "mixed": _tables(MIXED), "code": _tables(CODE)}  # fmt: skip
