"""What the words mean, in plain words: the glossary page, and the help behind words on every page.

One line per word; a page that uses a word as `help` or `term` has it here (a test sees to that).
"""

from collections.abc import Mapping
from functools import cache

from assay.report.context import GLOSSARY

MODEL = "Inside a model"
FEATURES = "Features"
MAP = "The map"
EVIDENCE = "Evidence"
ACTING = "Changing a model"
TOOL = "This program"

_FIRST = dict(GLOSSARY)
TERMS: Mapping[str, Mapping[str, str]] = {
    MODEL: {
        **{word: _FIRST[word] for word in ("activation", "layer", "residual stream", "attention head")},
        "token": "A piece of text as the model reads it: a word, a part of one, a sign.",
        "neuron": "One number in the middle of an MLP: the smallest part of a layer that has a value of its own.",
        "MLP": "The part of a layer that works on each token by itself.",
        "site": "An address inside the model: what is read or changed, in which layer, perhaps which head or neuron.",
        "logit": "The score the model gives to each possible next token, before scores become probabilities.",
        "pattern": "Where an attention head looks: for each token, how much it takes from every token before it.",
        "polysemantic": "Said of a neuron that responds to several things that have nothing to do with each other.",
        "superposition": "More features than dimensions: each is spread over many neurons, and neurons are shared.",
    },
    FEATURES: {
        "feature": "Anything with a value at each token and, mostly, a direction: a latent, a neuron, a head, a direction.",
        "dictionary": "A trained set of latents that rebuilds activations as a sum of a few of them.",
        "latent": "One entry of a dictionary: it is on at few tokens, and adds one fixed direction where it is.",
        "direction": "A list of numbers, as long as an activation, that activations are compared with or pushed along.",
        "density": "The share of tokens at which a feature is on.",
        "context": "A stretch of text around a token, with the feature's value at every token of it.",
        "quantile": "Where a value lies among all values at which the feature is on: 0.9 is above nine tenths of them.",
        "near miss": "A text that looks like one on which the feature is on, and on which it is not.",
        "promoted": "Tokens whose scores rise when the feature is on.",
        "suppressed": "Tokens whose scores fall when the feature is on.",
        "spread": "Over how many coordinates or neurons a feature's direction is spread: 1 means it is one of them.",
        "neighbour": "A feature that writes in nearly the same direction.",
        "coactive": "A feature that is on at the same tokens.",
        "dead": "Said of a latent that was never on in the texts that were read.",
    },
    MAP: {
        "atlas": "The folder in which everything known about one model is kept.",
        "map": "All features of one kind in one model, with what they respond to, what that might mean, and how sure that is.",
        "explanation": "What somebody, a rule or another model says a feature responds to. It may be wrong.",
        "rule": "An explanation that a machine can apply to a text, and therefore check.",
        "score": "How well an explanation predicts where the feature is on, in texts that were not used to write it.",
        "detection": "Score: told which texts the feature is on in, from the explanation alone. 0.5 is guessing.",
        "fuzzing": "Score: told whether the marked tokens are the ones the feature is on at. 0.5 is guessing.",
        "simulation": "Score: how the values predicted from the explanation go with the real ones. 0 is guessing, 1 is exact.",
        "embedding": "Score: are texts the feature is on in nearer in meaning to the explanation than others? 0.5 is guessing.",
        "intruder": "Score: whether the one text that does not belong is found among those that do.",
        "intervention": "Score: whether the explanation tells what changes in the model's output when the feature is set.",
        "chance": "What a score is for somebody who knows nothing.",
        "shuffled": "The same score with explanations of other features. What is not above it says nothing about this feature.",
        "untrained": "The same score on a copy of the model with random weights: what training did not put there.",
        "unexplained": "What the map does not account for. It comes first, because maps look finished when they are not.",
        "variance": "How much activations differ from their mean. A share of it says how much of them is rebuilt.",
    },
    EVIDENCE: {
        **{word: _FIRST[word] for word in ("clean and corrupted prompt", "patching", "effect", "logit difference", "interval",
                                           "control", "ledger")},
        "task": "Pairs of prompts that differ in one detail, with the right and the wrong next word.",
        "concept": "Texts that have a property and texts that do not.",
        "claim": "One sentence about a model that can turn out false, written down with its test before the test.",
        "verdict": "What the test says: supported, refuted, inconclusive, or not tested.",
        "supported": "Every gate that decides beats its bar on texts that were sealed, with a finished search for exceptions.",
        "refuted": "A gate that decides is clearly below its bar, or a claim about all cases met an exception.",
        "inconclusive": "Neither: the reasons say what was missing, often more data.",
        "not tested": "Nothing sealed was read, or there was nothing to test.",
        "gate": "One test that a claim must pass. Some decide, others only inform.",
        "smallest effect of interest": "The bar of a gate: the smallest effect worth calling one, chosen before the test.",
        "counterexample": "A text on which a claim fails.",
        "qualifier": "A warning beside a verdict: exploratory, a reused split, words alone, not unique, stale.",
        "exploratory": "The sealed data had been looked at before, or the plan was not followed. Not a confirmation.",
        "stale": "Something has changed since the verdict: model, data, or the code of a gate.",
        "split": "A part of the data. Discover and tune may be looked at; confirm and ood are sealed until the test.",
        "discover": "The part of the data to look at freely.",
        "tune": "The part of the data to choose sizes and thresholds on.",
        "confirm": "The sealed part that decides. Reading it again makes the test stricter.",
        "ood": "A sealed part of another kind than the rest: does the claim hold elsewhere?",
        "p": "How often chance alone would do as well, if nothing were there. Small is better; it is never 0.",
        "replication": "The claim measured again from its plan.",
        "error rate": "How often the tests themselves are wrong, measured on made-up cases whose truth is known.",
        "mediates": "Kind of claim: these parts carry a behaviour.",
        "represents": "Kind of claim: this feature stands for a concept.",
        "decodes": "Kind of claim: a property can be read at this site.",
        "uses": "Kind of claim: the model relies on this feature.",
        "connects": "Kind of claim: one feature drives another.",
        "steers": "Kind of claim: this change of activations changes behaviour.",
        "explains": "Kind of claim: this text or rule predicts where the feature is on.",
        "detects": "Kind of claim: this monitor finds what it is for.",
        "reconstructs": "Kind of claim: this dictionary can stand in for the activations, for a named use.",
    },
    ACTING: {
        "circuit": "Parts of a model and the connections between them that carry one behaviour.",
        "attribution graph": "For one prompt: which features made which others, up to the next word, by a linear estimate.",
        "ablation": "Switching a part off, to see what is lost.",
        "steering": "Pushing activations along a direction while the model writes.",
        "dose": "How hard a push is, as a share of the usual size of activations there.",
        "probe": "A small reader trained on activations to tell a property.",
        "faithfulness": "The share of a behaviour that is left when only a circuit is kept.",
        "monitor": "A reader of activations that watches a running model and raises an alert.",
    },
    TOOL: {
        "role": "What you may do here: read (look), intervene (change activations), modify (export changed weights).",
        "audit log": "Who did what and when, in a chain that cannot be edited unnoticed.",
        "job": "Work that takes long and goes on in the background. It can be cancelled and taken up again.",
    },
}  # fmt: skip


@cache
def meanings() -> dict[str, str]:
    """Every word with its meaning."""
    return {word: meaning for group in TERMS.values() for word, meaning in group.items()}
