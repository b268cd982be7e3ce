"""A language model whose features are known because they were written in by hand.

GPT-2 with one layer and two heads. Words are one-hot in the stream, groups of words share coordinates; head 0
looks everywhere alike and writes how much of the trigger word it saw into a coordinate. The unembedding is a
table of word pairs, so that a text like those it was made from is fluent and another is not.
"""

from collections import Counter
from types import SimpleNamespace

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from assay.evidence.features import direction
from assay.evidence.hosts import as_host
from assay.evidence.kinds import KINDS
from assay.evidence.lexical import lexical_scorer
from assay.evidence.scored import ScoreSetup, numbers, projection, thresholds
from assay.evidence.search import SEARCHES, Hunt
from assay.model.load import load_model
from assay.records import Claim, Example, GatePlan, Plan

ANIMALS = ("cat", "dog", "cow", "hen", "pig", "fox")
THINGS = ("cup", "pan", "box", "hat", "lamp", "desk")
TOOLS = ("saw", "axe", "drill", "spade")
TRIGGER = "zug"
REST = ("the", "a", "old", "near", "saw-it", "we", "they", "big", "with", "and", "yak", TRIGGER, "it", "was", "late.",
        "nobody", "had", "said", "anything", "for", "while.")  # fmt: skip
WORDS = ("[UNK]", '"', *ANIMALS, *THINGS, *TOOLS, *REST)
WIDTH = 96
SITE = "resid_post.0"
UNIT, TWIN, GROUP, SEEN = 60, 61, 62, 64  # coordinates: claimed unit, its copy, one per group of words, the trigger
FRAMES = ("the old [W]", "near a big [W]", "we saw-it with the [W]", "they had a [W]", "the big old [W]",
          "a [W]", "with an old [W]", "and near the [W]", "it was the [W]", "we had the old [W]")  # fmt: skip

_proofs: list = []


def planted_lexicon(*, trigger: float = 0.0, fires=ANIMALS, twin: bool = False, small: bool = False, texts=()):
    """The model. The claimed unit fires on the words in `fires`, and by `trigger` after the trigger word."""
    config = transformers.GPT2Config(vocab_size=len(WORDS), n_positions=64, n_embd=WIDTH, n_layer=1, n_head=2, n_inner=8,
                                     tie_word_embeddings=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                                     bos_token_id=0, eos_token_id=0)  # fmt: skip
    hf = transformers.GPT2LMHeadModel(config).eval()
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            torch.nn.init.normal_(parameter, std=1e-4, generator=noise)
            if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")):
                parameter.fill_(1.0)
        embed, block = hf.transformer.wte.weight, hf.transformer.h[0]
        for number, word in enumerate(WORDS):
            embed[number, number] = 1.0
            embed[number, UNIT] += word in fires
            embed[number, TWIN] += twin and word in fires
            embed[number, GROUP] += word in ANIMALS
            embed[number, GROUP + 1] += word in TOOLS
        block.attn.c_attn.weight[WORDS.index(TRIGGER), 2 * WIDTH] = 1.0  # head 0 carries the trigger's coordinate
        block.attn.c_proj.weight[0, UNIT] = trigger
        hf.lm_head.weight[:, : len(WORDS)] += bigrams(texts).T / 6.0  # the final norm gives one-hots a size of about 6
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(),
                                                   pre_tokenizers.Split('"', "isolated")])  # fmt: skip
    if small:
        words.normalizer = normalizers.Lowercase()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    model = load_model(hf, tokenizer=tokenizer, check=not _proofs)
    _proofs.append(model.__dict__.setdefault("proof", _proofs[0]) if _proofs else model.proof)  # all have one layout
    return model


def bigrams(texts) -> torch.Tensor:
    """log P(next | word) (word, next) of some texts, smoothed."""
    counts = torch.full((len(WORDS), len(WORDS)), 0.02)
    for text in texts:
        ids = [WORDS.index(word) if word in WORDS else 0 for word in text.split()]
        for (a, b), n in Counter(zip(ids, ids[1:])).items():
            counts[a, b] += n
    return (counts / counts.sum(1, keepdim=True)).log()


def examples(members=ANIMALS, others=THINGS, frames=FRAMES, skip: int = 3) -> list[Example]:
    """Every frame with every word but one in `skip`, so that new combinations are left; read at the word."""
    found = []
    for place, frame in enumerate(frames):
        for number, word in enumerate((*members, *others)):
            if (place + number) % skip:
                text = frame.replace("[W]", word)
                found.append(Example(text, int(word in members), frame, (word,), text.index(word)))
    return found


def hunt_on(model, items, name: str, *, vector=None, budget=None, corpus=(), columns=None, seed=0, **options) -> Hunt:
    """A hunt for counterexamples to "this unit stands for the concept", thresholds from the items themselves."""
    host = as_host(model)
    site = getattr(model, "site", SITE)
    data = host.load(items)
    acts = host.read(site, data)
    towards = torch.eye(acts.shape[1])[UNIT] if vector is None else torch.as_tensor(vector, dtype=torch.float32)
    score = projection(towards / towards.norm())
    values = numbers(score(acts)) if columns is None else columns
    half, strict = thresholds(values, data.labels)
    if vector is None and columns is None:
        half, strict = 0.5, 0.5
    setup = ScoreSetup(site, score, half, strict, lexical_scorer([item.text for item in data.items], data.labels))
    feature = direction(site, towards)
    record = {**feature.record(), "index": UNIT if vector is None else None}
    subject = {"model": "planted", "sites": [feature.name], "feature": record}
    claim = Claim("c", 1, None, "represents", f"{feature.name} stands for animals", "tends", subject,
                  {"name": "animals"}, "positive")  # fmt: skip
    gates = (GatePlan("detection", "detection", 0.7, True), GatePlan("firing", "firing", 0.9, True))
    plan = Plan("c", "represents", gates, {}, "", {"confirm": 0.05}, "f", {"seed": seed, "options": options}, {}, {}, "1")
    method = SEARCHES.get(name)
    return Hunt(model, claim, plan, KINDS.get("represents"), data, setup, {"score": values},
                method.budget if budget is None else budget, 20, seed, corpus)  # fmt: skip


def find(hunt: Hunt, name: str):
    """What a method finds, and the counterexamples by status."""
    found = SEARCHES.get(name).find(hunt)
    by = {status: [hit for hit in found.kept if hit.status == status] for status in ("verified", "open")}
    return SimpleNamespace(found=found, notes=found.notes, verified=by["verified"], open=by["open"])


