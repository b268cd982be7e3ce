"""Scorers: how well an explanation predicts, one file each."""

from assay.explain.scorers import detection, embedding, fuzzing, intervention, intruder, simulation
from assay.explain.scorers.base import SCORERS, Outcome, Question, Scorer, Unscored, deranged, score_features
from assay.explain.scorers.untrained import Summary, summarise

__all__ = [
    "SCORERS",
    "Outcome",
    "Question",
    "Scorer",
    "Summary",
    "Unscored",
    "deranged",
    "detection",
    "embedding",
    "fuzzing",
    "intervention",
    "intruder",
    "score_features",
    "simulation",
    "summarise",
]
