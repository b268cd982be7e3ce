"""A KV cache whose rows come and go between forward passes.

1. Every layer keeps one buffer (row, head, column, d_head) with room to spare. A pass writes its new column in place, so a step
   costs no copy of what is there.
2. Rows are aligned on the right: the newest token of every row is in the last used column, so distances between columns
   are distances between tokens (windows and biases by distance hold). What stands before a row's first token is masked.
3. A row that leaves is overwritten by the last row. A row that joins brings its own columns. Columns that nobody uses any
   more are cut off when they are many.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

SPARE = 64  # columns made at once, at least
WASTE = 4  # columns are cut off once more than one in so many is unused


class _Slots(DynamicLayer):
    """One layer: `held` buffers, of which rows and columns in use are given to the model."""

    held_keys: Tensor
    held_values: Tensor
    used: int

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise AssertionError("a layer of slots is made by Slots.admit")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The new column of every row, in place; everything in use comes back."""
        n, new = key_states.shape[0], key_states.shape[-2]
        end = self.used + new
        self.held_keys[:n, :, self.used : end] = key_states
        self.held_values[:n, :, self.used : end] = value_states
        self.used = end
        self.keys, self.values = self.held_keys[:n, :, :end], self.held_values[:n, :, :end]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.used


class Slots:
    """The rows of all layers. `lengths[i]`: tokens of row i; `columns`: columns in use."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.columns = 0
        self.cache: Cache | None = None

    def mask(self, device: torch.device) -> Tensor:
        """Which columns each row may look at in the next pass, its own new one included: (row, columns + 1) of 0 and 1."""
        first = torch.tensor([self.columns - length for length in self.lengths], device=device)
        return (torch.arange(self.columns + 1, device=device) >= first[:, None]).long()

    def admit(self, made: Cache, lengths: list[int]) -> None:
        """Take over rows of another cache, whose first `lengths[i]` columns are what row i holds."""
        columns, before = max(self.columns, *lengths), len(self.lengths)
        layers: list[Any] = made.layers
        if self.cache is None:
            self.cache = Cache(layers=[_Slots() for _ in layers])
        self._resize(before + len(lengths), columns, layers)
        for layer, new in zip(self._layers(), layers, strict=True):
            for row, length in enumerate(lengths):
                span = slice(columns - length, columns)
                layer.held_keys[before + row, :, span] = new.keys[row, :, :length]
                layer.held_values[before + row, :, span] = new.values[row, :, :length]
            layer.used = columns
        self.lengths += lengths
        self.columns = columns

    def ready(self) -> Cache:
        """The cache for a pass with one new token a row. Call `grown` after it."""
        assert self.cache is not None
        if self.columns + 1 > self._layers()[0].held_keys.shape[2]:
            self._resize(len(self.lengths), self.columns, None, spare=self.columns)
        for layer in self._layers():
            layer.used = self.columns  # also after a pass that failed half way
        return self.cache

    def grown(self) -> None:
        """Every row has one token more."""
        self.lengths = [length + 1 for length in self.lengths]
        self.columns += 1

    def drop(self, row: int) -> int:
        """Forget a row; the last row takes its place. Returns the number that the last row had."""
        last = len(self.lengths) - 1
        for layer in self._layers():
            if row != last:
                layer.held_keys[row] = layer.held_keys[last]
                layer.held_values[row] = layer.held_values[last]
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        if not self.lengths:
            self.cache, self.columns = None, 0
        else:
            self._cut(self.columns - max(self.lengths))
        return last

    # internal --------------------------------------------------------------------------------

    def _layers(self) -> list[_Slots]:
        return [] if self.cache is None else self.cache.layers  # type: ignore[return-value]

    def _cut(self, unused: int) -> None:
        """Move all rows to the left by columns that nobody uses."""
        if unused * WASTE <= self.columns:
            return
        left = self.columns - unused
        for layer in self._layers():
            for held in (layer.held_keys, layer.held_values):
                held[:, :, :left] = held[:, :, unused : self.columns].clone()
            layer.used = left
        self.columns = left

    def _resize(self, rows: int, columns: int, like: list[Any] | None, spare: int = SPARE) -> None:
        """Room for so many rows and columns, with what is held at the right of the columns."""
        shift = columns - self.columns
        for number, layer in enumerate(self._layers()):
            for name in ("held_keys", "held_values"):
                old = getattr(layer, name, None)
                pattern = old if old is not None else getattr(like[number], name.removeprefix("held_"))  # type: ignore[index]
                have = (0, 0) if old is None else (old.shape[0], old.shape[2])
                if old is not None and have[0] >= rows and have[1] > columns and shift == 0:
                    continue
                n_rows = have[0] if have[0] >= rows else max(rows, 2 * have[0])
                n_columns = have[1] if have[1] > columns else columns + max(SPARE, spare)
                new = pattern.new_zeros(n_rows, pattern.shape[1], n_columns, pattern.shape[3])
                if old is not None:
                    new[: have[0], :, shift : columns] = old[:, :, : self.columns]
                setattr(layer, name, new)
            layer.is_initialized = True
