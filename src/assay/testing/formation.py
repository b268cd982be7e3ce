"""Small models that learn to copy, and when they do.

1. Text: random tokens of a small vocabulary that repeat with a period drawn anew for every text, so that looking back a fixed
   number of tokens is of no use. What follows is known from the second period on.
2. A stock Llama of `layers` layers is trained on next tokens (Adam).
3. Every twentieth of training, on other texts: the loss on tokens that can be known, and the induction score: attention from a
   token to what followed its last occurrence, the best head's mean.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB, LENGTH, PERIODS = 24, 40, (6, 16)
LOOKS, BATCH, HELD = 20, 48, 64


@dataclass(frozen=True)
class Formation:
    """One training run: induction score and loss on what can be known (nats), before training and at every look."""

    seed: int
    score: tuple[float, ...]
    loss: tuple[float, ...]

    @property
    def steepest(self) -> float:
        """Share of the whole rise of the score within the steepest tenth of training; 0 where it did not rise."""
        rise, window = self.score[-1] - self.score[0], LOOKS // 10
        steps = [b - a for a, b in zip(self.score, self.score[window:], strict=False)]
        return max(steps) / rise if rise > 0.05 else 0.0


def train_copiers(
    layers: int, steps: int, seeds: Sequence[int], report: Callable[[str, int, int], None] | None = None
) -> list[Formation]:
    """One model per seed, each deterministic in its seed."""
    found = []
    for number, seed in enumerate(seeds):
        if report is not None:
            report(f"models of {layers} layer{'s' if layers > 1 else ''}", number, len(seeds))
        found.append(_trained(layers, steps, seed))
    return found


def _trained(layers: int, steps: int, seed: int) -> Formation:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=VOCAB, hidden_size=64, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=LENGTH,
        ))  # fmt: skip
        model.set_attn_implementation("eager")  # patterns are read
    generator = torch.Generator().manual_seed(seed)
    held = _texts(HELD, torch.Generator().manual_seed(seed + 10_000))
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    looks = [_look(model, *held)]
    for step in range(1, steps + 1):
        texts, _ = _texts(BATCH, generator)
        logits = model(input_ids=texts).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), texts[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % max(1, steps // LOOKS) == 0:
            looks.append(_look(model, *held))
    return Formation(seed, tuple(score for score, _ in looks), tuple(loss for _, loss in looks))


def _texts(n: int, generator: torch.Generator) -> tuple[Int[Tensor, "n length"], Int[Tensor, " n"]]:
    """Texts and the period of each; tokens within a period differ."""
    periods = torch.randint(*PERIODS, (n,), generator=generator)
    order = torch.rand(n, VOCAB, generator=generator).argsort(1)
    return order.gather(1, torch.arange(LENGTH)[None] % periods[:, None]), periods


@torch.no_grad()
def _look(model: LlamaForCausalLM, texts: Tensor, periods: Tensor) -> tuple[float, float]:
    """(induction score of the best head, loss on what can be known)."""
    made = model(input_ids=texts, output_attentions=True)
    says = made.logits[:, :-1].log_softmax(-1).gather(2, texts[:, 1:, None])[..., 0]
    known = torch.arange(1, LENGTH)[None] >= periods[:, None] + 1
    rows, at = torch.nonzero(torch.arange(LENGTH)[None] >= periods[:, None], as_tuple=True)
    scores = [layer[rows, :, at, at - periods[rows] + 1].mean(0).max() for layer in made.attentions]
    return float(torch.stack(scores).max()), -float(says[known].mean())
