"""How long a prompt may be: what a model was made for, and what it cannot go beyond.

Rotary and relative positions go on past the length a model was trained at (badly, but they do); a table of learned positions
ends, and a model with one cannot read a longer prompt at all.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from assay.errors import LengthError

LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
OFFSETS = (0, 2)  # rows of a table before position 0: none, or OPT's two


def context_length(hf: nn.Module | None) -> int | None:
    """How many tokens the model was made for; None where its config does not say."""
    config: Any = getattr(hf, "config", None)
    found = [getattr(config, name, None) for name in LIMITS]
    return next((size for size in found if isinstance(size, int) and size > 0), None)


def learned_positions(hf: nn.Module) -> int | None:
    """How many positions a model has learned, one by one; None where they are computed."""
    length = context_length(hf)
    words = hf.get_input_embeddings() if hasattr(hf, "get_input_embeddings") else None  # type: ignore[operator]
    tables = [each for each in hf.modules() if isinstance(each, nn.Embedding) and each is not words]
    return length if length and any(each.num_embeddings - length in OFFSETS for each in tables) else None


def check_lengths(tokens: Sequence[Sequence[int]], most: int | None, new: int = 1) -> None:
    """Raises LengthError for a prompt beyond the last learned position, or with `new` tokens after it (the last of which is
    not read)."""
    if most is None or not tokens:
        return
    row = max(range(len(tokens)), key=lambda at: len(tokens[at]))
    if len(tokens[row]) > most:
        raise LengthError(f"prompts: got {len(tokens[row])} tokens in prompt {row}; allowed: at most {most}, the positions that"
                          " this model has. Give shorter texts, or cut them.")  # fmt: skip
    if len(tokens[row]) + new - 1 > most:
        raise LengthError(f"max_new_tokens: got {new} after {len(tokens[row])} tokens of prompt {row}; allowed: at most"
                          f" {most - len(tokens[row]) + 1}, as this model has {most} positions.")  # fmt: skip
