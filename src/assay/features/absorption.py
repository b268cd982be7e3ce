"""Holes in latents: a concept's latent is silent where a narrower latent has taken over what it should say.

1. Absorption (after Chanin et al. 2024, arXiv 2409.14507): a linear probe for the concept; main latents: sparse probes
   with one latent more each time, as long as F1 on the fitting texts rises by more than .03 (how many: splitting).
   Of members that the probe gets right: absorbed where all main latents are silent, and others that point along the
   probe (cosine of .1 or more) carry .4 or more of the activation's projection on it, both from their means for fitting.
2. Hierarchy gap, where a narrower concept is labelled, too: recall of the concept by its best latent on members outside
   of the narrower concept, minus recall on those inside. A latent without holes has 0.
3. First letters: words of the model's own vocabulary, each in the same short context and read at its token; the concepts
   are "begins with s". Words for fitting and words for scores are apart.

SAEBench counts one latent (or the three largest) as carrying, of projections that are not centred, and up to ten main
latents: its numbers are lower and not to be compared with these.

A probe is fitted and can be wrong. Where it is at chance, nothing about the dictionary follows: its accuracy is beside.
"""

import hashlib
import string
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from sklearn.metrics import balanced_accuracy_score, f1_score
from torch import Tensor

from assay.errors import UsageError, bad_argument
from assay.features.dictionary import Dictionary
from assay.features.held_out import Limits
from assay.features.labelled import Labelled, labelled
from assay.features.sparse_probing import check_classes, linear_probe, mean_gaps
from assay.model.model import Model

ALIGNED, CARRIED, RISE, MOST_MAIN = 0.1, 0.4, 0.03, 5
FEWEST, CONTEXT = 20, "The next word in the list is"  # words of a letter on each side


@dataclass(frozen=True)
class Absorption:
    """Of one concept. `absorbed`, `silent`: shares of the members the probe gets right (`n`); `splits`: how many main latents.

    Without any (`main` is empty) all members are silent: none absorbed is then no merit."""

    concept: str
    absorbed: float
    silent: float
    splits: int
    main: tuple[int, ...]
    probe: float
    n: int


@dataclass(frozen=True)
class Gap:
    """Recall of a concept's best latent with and without the narrower concept."""

    latent: int
    without: float
    within: float

    @property
    def gap(self) -> float:
        """What the narrower concept costs."""
        return self.without - self.within


def absorption(
    fit: Labelled, held: Labelled, directions: Float[Tensor, "latent d"], label: str
) -> Absorption | None:
    """Of one concept, scored on `held`, with a probe on targets. None: the probe finds no member.

    Raises UsageError where a class is missing on either side."""
    check_classes(fit, held, label)
    weights, bias = linear_probe(fit.y, fit.label(label), 0.1)
    said = held.y.numpy().astype(float) @ weights + bias > 0
    right = torch.as_tensor(said & held.label(label))
    accuracy = float(balanced_accuracy_score(held.label(label), said))
    if not bool(right.any()):
        return None
    main = main_latents(fit, label)
    probe = torch.as_tensor(weights / max(float(np.linalg.norm(weights)), 1e-12)).float()
    along = directions @ probe
    aligned = along >= ALIGNED * directions.norm(dim=1)
    aligned[list(main)] = False
    silent = (held.codes[:, list(main)] == 0).all(1)
    projection = (held.y - fit.y.mean(0)) @ probe
    carried = (held.written - fit.written.mean(0))[:, aligned] @ along[aligned]
    absorbed = silent & (projection > 0) & (carried >= CARRIED * projection)
    return Absorption(label, float(absorbed[right].float().mean()), float(silent[right].float().mean()), len(main), main,
                      accuracy, int(right.sum()))  # fmt: skip


def main_latents(fit: Labelled, label: str) -> tuple[int, ...]:
    """The latents that stand for a concept: one, and others as long as a probe on them gains; none where no latent is
    larger at members."""
    member = fit.label(label)
    rows = torch.as_tensor(member)
    signed = fit.codes[rows].mean(0) - fit.codes[~rows].mean(0)
    order = torch.where(signed > 0, mean_gaps(fit.codes, member), -1.0).argsort(descending=True, stable=True)
    order = order[signed[order] > 0].tolist()
    best, chosen = -1.0, 1
    for k in range(1, min(MOST_MAIN, len(order)) + 1):
        weights, bias = linear_probe(fit.codes[:, order[:k]], member)
        said = fit.codes[:, order[:k]].numpy() @ weights + bias > 0
        score = float(f1_score(member, said)) if said.any() else 0.0
        if k > 1 and score <= best + RISE:
            break
        best, chosen = score, k
    return tuple(order[:chosen])


def hierarchy_gap(fit: Labelled, held: Labelled, parent: str, child: str) -> Gap | None:
    """Holes of a parent's best latent where a child is; None where no latent stands for the parent.

    Raises UsageError where a class is missing, or members with or without the child."""
    check_classes(fit, held, parent)
    member, inside = held.label(parent), held.label(child)
    if not (member & inside).any() or not (member & ~inside).any():
        raise bad_argument("texts", f"members of {parent!r} only with or only without {child!r}", "both")
    if not (main := main_latents(fit, parent)):
        return None
    latent = main[0]
    firing = (held.codes[:, latent] > 0).numpy()
    return Gap(latent, float(firing[member & ~inside].mean()), float(firing[member & inside].mean()))


# first letters -----------------------------------------------------------------------------------


def first_letters(
    model: Model, dictionary: Dictionary, limits: Limits | None = None, words: int = 60, context: str = CONTEXT
) -> tuple[Absorption, ...]:
    """Absorption of every letter that enough one-token words begin with. Raises UsageError for a model without such words."""
    fit, held = letter_texts(model, dictionary, limits, words, context)
    found = []
    for letter in fit.labels:
        made = absorption(fit, held, dictionary.directions(), letter)
        if made is not None:
            found.append(made)
    return tuple(found)


def letter_texts(
    model: Model, dictionary: Dictionary, limits: Limits | None = None, words: int = 60, context: str = CONTEXT
) -> tuple[Labelled, Labelled]:
    """Words for fitting and words for scores, at most so many of a letter on each side, divided by hash."""
    letters, sides = letter_words(model, words)
    start = model.tokens([context])[0]
    made = []
    for side in sides:
        kept = [(token, text) for token, text in side if text[0] in letters]
        labels = {letter: [text[0] == letter for _, text in kept] for letter in letters}
        rows = [[*start, token] for token, _ in kept]
        made.append(labelled(model, dictionary, rows, labels, [text for _, text in kept], [len(start)] * len(rows), limits))
    return made[0], made[1]


def letter_words(
    model: Model, words: int = 60
) -> tuple[list[str], tuple[list[tuple[int, str]], list[tuple[int, str]]]]:
    """Letters that enough words of the vocabulary begin with, and the words for fitting and for scores. Raises UsageError."""
    if words < FEWEST:
        raise bad_argument("words", words, f"{FEWEST} or more, of a letter on each side")
    sides = vocabulary_words(model, words)
    letters = [letter for letter in string.ascii_lowercase
               if min(sum(text.startswith(letter) for _, text in side) for side in sides) >= FEWEST]  # fmt: skip
    if len(letters) < 2:
        raise UsageError(f"first letters: {model.name} has {FEWEST} one-token words on each side for {len(letters)} letters;"
                         " allowed: two letters or more. Use labelled texts instead.")  # fmt: skip
    return letters, sides


def vocabulary_words(model: Model, most: int) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """(token, word) of lower-case words with a space before them, for fitting and for scores, no word on both sides."""
    if model.tokenizer is None:
        raise UsageError(f"first letters: {model.name} has no tokenizer; allowed: a model with one.")
    sides: tuple[list[tuple[int, str]], list[tuple[int, str]]] = ([], [])
    counts: dict[tuple[int, str], int] = {}
    pieces = sorted(set(model.tokenizer.get_vocab().values()))
    texts = [model.piece(token) for token in pieces]
    hashed = sorted(zip(pieces, texts, strict=True), key=lambda pair: hashlib.sha256(pair[1].encode()).digest())
    for token, text in hashed:
        word = text[1:]
        if not (text.startswith(" ") and len(word) > 2 and word.isascii() and word.isalpha() and word.islower()):
            continue
        side = hashlib.sha256(word.encode()).digest()[-1] % 2
        if counts.get((side, word[0]), 0) < most and token < model.dims.d_vocab:
            counts[side, word[0]] = counts.get((side, word[0]), 0) + 1
            sides[side].append((token, word))
    return sides
