"""Generation with edits and captures, on the model's own `generate` and KV cache.

1. Prompts are padded on the left (or, where left padding is not proved for this model, batched by
   equal length), so the newest token is the last column of every row.
2. Hooks know how many positions came before, so edits keep their absolute positions and phases
   although the model sees one new token at a time.
3. Tokens and activations of prompt and generated positions come back from one call. A row that
   ended early keeps nothing after its end. The last generated token is never fed back, so there is
   no activation for it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assay.model.activations import Activations
from assay.model.edits import Frame
from assay.model.hooks import Pass, attached
from assay.model.run import Engine, Request
from assay.sites import Site


@dataclass(frozen=True, eq=False)
class Generation:
    """What was generated: texts and token ids (without the prompt), and captured activations.

    `activations[site]` covers prompt and generated positions, in that order.
    """

    texts: list[str]
    tokens: list[list[int]]
    prompts: list[list[int]]
    activations: Activations


@dataclass(frozen=True)
class Sampling:
    """How to pick tokens. Temperature 0 is greedy."""

    max_new_tokens: int = 32
    temperature: float = 0.0
    seed: int = 0
    stop_ids: tuple[int, ...] = ()


def generate(
    engine: Engine, request: Request, sampling: Sampling
) -> tuple[list[list[int]], Activations]:
    """New tokens of every prompt, and activations at the asked sites."""
    tokens: list[list[int]] = [[] for _ in request.tokens]
    parts: dict[Site, list[Tensor]] = {s: [torch.empty(0)] * len(tokens) for s in request.captures}
    with engine.exclusive(), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(sampling.seed)
        for rows in _groups(engine, request):
            new, captured = _generate_batch(engine, request, rows, sampling)
            for place, row in enumerate(rows):
                tokens[row] = new[place]
                for site, pieces in captured.items():
                    parts[site][row] = pieces[place]
    kept = [len(p) + max(0, len(n) - 1) for p, n in zip(request.tokens, tokens, strict=True)]
    packed = {site: torch.cat(pieces) for site, pieces in parts.items()}
    return tokens, Activations(kept, packed)


def _groups(engine: Engine, request: Request) -> list[list[int]]:
    groups = [batch.rows.tolist() for batch in engine.batches(request)]
    if engine.layout.left_padding:
        return groups
    by_length: dict[int, list[int]] = {}
    for row, tokens in enumerate(request.tokens):
        by_length.setdefault(len(tokens), []).append(row)
    return list(by_length.values())


def _generate_batch(
    engine: Engine, request: Request, rows: list[int], sampling: Sampling
) -> tuple[list[list[int]], dict[Site, list[Tensor]]]:
    prompts = [request.tokens[row] for row in rows]
    width = max(map(len, prompts))
    device = engine.device
    ids = torch.full((len(rows), width), engine.pad_id, device=device)
    for place, prompt in enumerate(prompts):
        ids[place, width - len(prompt) :] = torch.tensor(prompt, device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    frame = Frame(torch.tensor(rows, device=device), lengths, width - lengths)
    steps: dict[Site, list[Tensor]] = {site: [] for site in request.captures}

    def sink(site: Site, value: Tensor) -> None:
        steps[site].append(value.detach().cpu().clone())

    counter = _count_positions(engine, frame)
    try:
        with attached(engine.hf, engine.layout, Pass(frame, request.captures, request.edits, sink)):
            output = engine.hf.generate(ids, **_arguments(engine, frame, width, sampling))  # type: ignore[operator]
    finally:
        counter.remove()
    new = [_until_stop(row, sampling.stop_ids) for row in output[:, width:].tolist()]
    captured = {site: _assemble(values, frame, new) for site, values in steps.items()}
    return new, captured


def _arguments(engine: Engine, frame: Frame, width: int, sampling: Sampling) -> dict[str, Any]:
    columns = torch.arange(width, device=frame.pads.device)
    arguments: dict[str, Any] = {
        "attention_mask": (columns >= frame.pads[:, None]).long(),
        "max_new_tokens": sampling.max_new_tokens,
        "do_sample": sampling.temperature > 0,
        "pad_token_id": engine.pad_id,
        "use_cache": True,
    }
    if sampling.temperature > 0:
        arguments |= {"temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    else:
        arguments |= {"temperature": None, "top_p": None, "top_k": None}
    if sampling.stop_ids:
        arguments["eos_token_id"] = list(sampling.stop_ids)
    return arguments


def _count_positions(engine: Engine, frame: Frame) -> Any:
    """Before each forward: how many positions came before this slice."""
    seen = 0

    def count(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal seen
        ids = kwargs.get("input_ids", args[0] if args else None)
        width = ids.shape[1] if ids is not None else kwargs["inputs_embeds"].shape[1]
        frame.offset, seen = seen, seen + width

    return engine.hf.register_forward_pre_hook(count, with_kwargs=True)


def _until_stop(tokens: list[int], stop_ids: tuple[int, ...]) -> list[int]:
    for place, token in enumerate(tokens):
        if token in stop_ids:
            return tokens[: place + 1]
    return tokens


def _assemble(values: list[Tensor], frame: Frame, new: list[list[int]]) -> list[Tensor]:
    """Per row: prompt positions without padding, then generated positions until the row's end."""
    everything = torch.cat(values, dim=1)
    pieces = []
    for row, (pad, length) in enumerate(zip(frame.pads.tolist(), frame.lengths.tolist(), strict=True)):
        pieces.append(everything[row, pad : pad + length + max(0, len(new[row]) - 1)])
    return pieces
