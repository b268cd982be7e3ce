"""Importing this registers every finding."""

from assay.replicate.findings import (  # noqa: F401
    attention_sinks,
    copy_suppression,
    function_vectors,
    greater_than,
    induction_formation,
    induction_heads,
    ioi_heads,
    polysemantic_neurons,
    random_networks,
    refusal_direction,
    sentiment_direction,
    successor_heads,
    superposition_phases,
    truth_direction,
)
