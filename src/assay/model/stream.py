"""Generation token by token, for many rows that come and go.

    stream = Stream(model, sites=["resid_post.15"], width=32)
    row = stream.join(model.tokens("The cat sat")[0], Picking(max_new_tokens=20))
    while stream.busy:
        for step in stream.step():
            step.row, step.token, step.captured, step.finish

1. `join` puts a prompt in the queue. A step runs the prompts for which there is room, as one batch padded on the right, and
   then all running rows by one token on their KV cache (`slots.py`). Rows join and leave between steps.
2. What is asked for at `sites` is read in these same passes: a step brings the activations of the positions it ran. The last
   token of a row that reached its length is run once more when sites are read, so that every token of a reply is seen.
3. Edits belong to a row and name absolute positions and phases as everywhere; they may be changed between steps, and then hold
   for positions that come.
4. Tokens are picked per row, by its own temperature, top_p (the least set of tokens whose probabilities sum to it; Holtzman et
   al. 2020) and random generator: who else is in the batch changes nothing but rounding. Greedy equals `Model.generate`.
5. A model for which left padding or a cached run is not proved is run without a cache: each step runs the rows from
   their first token, padded on the right. That is slow, and right.
"""

import inspect
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from assay.errors import SiteError, bad_argument
from assay.model.context import context_length
from assay.model.edits import Edit, Frame
from assay.model.hooks import Pass, StopPass, attached
from assay.model.model import Model, Sites
from assay.model.prefix import keep_only
from assay.model.run import BATCH_TOKENS
from assay.model.slots import Slots
from assay.sites import Site


@dataclass(frozen=True)
class Picking:
    """How to continue one row. Temperature 0 is greedy; `stop_ids` None: the model's own end tokens."""

    max_new_tokens: int = 32
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise bad_argument("max_new_tokens", self.max_new_tokens, "1 or more")
        if not 0 <= self.temperature < float("inf"):
            raise bad_argument("temperature", self.temperature, "0 or more")
        if not 0 < self.top_p <= 1:
            raise bad_argument("top_p", self.top_p, "above 0, at most 1")


@dataclass(frozen=True, eq=False)
class Step:
    """What one step did to one row: the token it added (None where it only ran the last one), and why the row ended.

    `captured[site]` is (positions, *feature), of absolute positions `start` and up.
    """

    row: int
    token: int | None
    finish: str | None
    start: int
    captured: dict[Site, Tensor]


@dataclass(eq=False)
class _Row:
    number: int
    prompt: list[int]
    picking: Picking
    stops: tuple[int, ...]
    edits: tuple[Edit, ...]
    random: torch.Generator | None
    new: list[int] = field(default_factory=list)
    seen: int = 0  # positions that were run
    ending: str | None = None  # runs its last token, then ends

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.new


class Stream:
    """Rows that are generated together. Not for more than one thread at a time."""

    def __init__(self, model: Model, sites: Sites = (), width: int = 32, batch_tokens: int = BATCH_TOKENS) -> None:
        """`sites`: what is read at every position; `width`: rows at a time; `batch_tokens`: of prompts run in one step.

        Raises SiteError for sites that cannot be read while generating.
        """
        if width < 1:
            raise bad_argument("width", width, "1 or more rows")
        none = not isinstance(sites, str | Site) and not len(sites)
        self.model, self.width, self.batch_tokens = model, width, batch_tokens
        self.sites = [] if none else model.sites(sites)
        _check_sites(self.sites)
        self.cached = model.layout.left_padding and model.layout.prefix_width > 0
        self.stops = stop_ids(model)
        self._penalty = float(getattr(model.hf.generation_config, "repetition_penalty", None) or 1.0)
        self._positions = "position_ids" in inspect.signature(model.hf.forward).parameters
        self._slots = Slots()
        self._waiting: deque[_Row] = deque()
        self._running: list[_Row] = []
        self._ended: list[Step] = []
        self._next = 0

    # rows ------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running or self._ended)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def join(self, prompt: Sequence[int], picking: Picking | None = None, edits: Sequence[Edit] = ()) -> int:
        """Queue a prompt (token ids); returns the row's number. Raises UsageError for a prompt that does not fit."""
        (tokens,), picking = self.model.tokens([list(prompt)]), picking or Picking()
        limit = context_length(self.model.hf)
        if limit is not None and len(tokens) + picking.max_new_tokens > limit:
            raise bad_argument("prompt", f"{len(tokens)} tokens and max_new_tokens {picking.max_new_tokens}",
                               f"{limit} together, as this model was made for", "Shorten the prompt or the reply.")  # fmt: skip
        random = torch.Generator().manual_seed(picking.seed) if picking.temperature > 0 else None
        stops = self.stops if picking.stop_ids is None else picking.stop_ids
        row = _Row(self._next, tokens, picking, stops, self._checked(edits), random)
        self._next += 1
        self._waiting.append(row)
        return row.number

    def leave(self, number: int) -> None:
        """Forget a row now; nothing happens where it has left already."""
        self._waiting = deque(row for row in self._waiting if row.number != number)
        for row in self._running:
            if row.number == number:
                self._remove(row)
                return

    def close(self, number: int, finish: str = "stop") -> None:
        """End a row, which has one more step: where sites are read, its last token is run in it."""
        for row in self._running:
            if row.number == number and row.ending is None:
                row.ending = finish
                if not self.sites:
                    self._remove(row)
                    self._ended.append(Step(number, None, finish, row.seen, {}))
                return

    def edit(self, number: int, edits: Sequence[Edit]) -> None:
        """The edits of a row from the next step on, in place of those it had."""
        for row in (*self._waiting, *self._running):
            if row.number == number:
                row.edits = self._checked(edits)

    # steps -----------------------------------------------------------------------------------

    def step(self) -> list[Step]:
        """Run every row by one token, and the prompts of rows that join; nothing to do: an empty list."""
        steps, self._ended = self._ended, []
        with self.model.engine.exclusive(), torch.no_grad():
            if self._running:
                steps += self._advance(list(self._running))
            if joining := self._joining():
                steps += self._begin(joining)
        return steps

    def _joining(self) -> list[_Row]:
        """Rows for which there is room, as many as make one batch."""
        rows: list[_Row] = []
        while self._waiting and len(self._running) + len(rows) < self.width:
            longest = max(len(row.prompt) for row in (*rows, self._waiting[0]))
            if rows and longest * (len(rows) + 1) > self.batch_tokens:
                break
            rows.append(self._waiting.popleft())
        return rows

    def _begin(self, rows: list[_Row]) -> list[Step]:
        """Run prompts from their first token."""
        cache = DynamicCache() if self.cached else None  # every layer whole: windows are a matter of the mask
        steps = self._whole(rows, cache)
        self._running += rows
        if cache is not None:
            self._slots.admit(cache, [len(row.prompt) for row in rows])
        return self._after(rows, *steps)

    def _advance(self, rows: list[_Row]) -> list[Step]:
        """One token more of all running rows."""
        if not self.cached:
            return self._after(rows, *self._whole(rows, None))
        device, at = self.model.device, [row.seen for row in rows]
        ids = torch.tensor([[row.new[-1]] for row in rows], device=device)
        positions = torch.tensor(at, device=device)
        frame = self._frame(rows, self._slots.columns - positions, self._slots.columns)
        arguments: dict[str, Any] = {"attention_mask": self._slots.mask(device), "past_key_values": self._slots.ready()}
        if self._positions:
            arguments["position_ids"] = positions[:, None]
        logits, held = self._run(rows, ids, frame, arguments)
        self._slots.grown()
        return self._after(rows, logits, [{site: x[place] for site, x in held.items()} for place in range(len(rows))])

    def _whole(self, rows: list[_Row], cache: Any) -> tuple[Tensor | None, list[dict[Site, Tensor]]]:
        """Rows from their first token, padded on the right; activations of positions that were not run before."""
        device = self.model.device
        batch = self.model.engine.batch([row.tokens for row in rows], list(range(len(rows))))
        frame = self._frame(rows, torch.zeros_like(batch.lengths), 0)
        arguments: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
        if batch.ragged or cache is not None:
            arguments["attention_mask"] = (torch.arange(batch.ids.shape[1], device=device) < batch.lengths[:, None]).long()
        keep = keep_only(self.model.hf, self.model.layout.unembed, batch.lengths - 1)
        try:
            logits, held = self._run(rows, batch.ids, frame, arguments)
        finally:
            keep.remove()
        ends = batch.lengths.tolist()
        parts = [{site: x[place, row.seen : ends[place]] for site, x in held.items()} for place, row in enumerate(rows)]
        return logits, parts

    def _run(
        self, rows: list[_Row], ids: Tensor, frame: Frame, arguments: dict[str, Any]
    ) -> tuple[Tensor | None, dict[Site, Tensor]]:
        """One pass: the last column's logits (row, vocab), and what was read. No row needs a token: no further than is read."""
        held: dict[Site, Tensor] = {}

        def sink(site: Site, value: Tensor) -> None:
            held[site] = value.detach().clone()

        model = self.model
        edits = [replace(edit, rows=(row.number,)) for row in rows for edit in row.edits]
        plan = Pass(frame, self.sites, edits, sink, stop=all(row.ending for row in rows))
        try:
            with attached(model.hf, model.layout, plan):
                return model.hf(input_ids=ids, use_cache="past_key_values" in arguments, **arguments).logits[:, -1], held
        except StopPass:
            return None, held

    def _frame(self, rows: list[_Row], pads: Tensor, offset: int) -> Frame:
        numbers = torch.tensor([row.number for row in rows], device=pads.device)
        lengths = torch.tensor([len(row.prompt) for row in rows], device=pads.device)
        return Frame(numbers, lengths, pads, offset)

    # after a pass ----------------------------------------------------------------------------

    def _after(self, rows: list[_Row], logits: Tensor | None, held: list[dict[Site, Tensor]]) -> list[Step]:
        """Pick tokens, say what happened, and let go of rows that ended."""
        steps, greedy = [], [] if logits is None else logits.argmax(-1).tolist()
        for place, row in enumerate(rows):
            start, row.seen = row.seen, len(row.prompt) + len(row.new)
            token = None
            if row.ending is None and logits is not None:
                token = self._pick(row, logits[place], greedy[place])
                row.new.append(token)
            finish = row.ending if token is None else self._finish(row, token)
            if finish is not None and finish != "stop" and token is not None and self.sites:
                row.ending, finish = finish, None
            steps.append(Step(row.number, token, finish, start, held[place]))
        for row, step in zip(rows, steps, strict=True):
            if step.finish is not None:
                self._remove(row)
        return steps

    def _finish(self, row: _Row, token: int) -> str | None:
        if token in row.stops:
            return "stop"
        return "length" if len(row.new) >= row.picking.max_new_tokens else None

    def _pick(self, row: _Row, logits: Float[Tensor, " vocab"], greedy: int) -> int:
        if self._penalty == 1.0 and row.random is None:
            return greedy
        scores = logits.float().cpu()
        if self._penalty != 1.0:
            scores = penalised(scores, row.tokens, self._penalty)
        if row.random is None:
            return int(scores.argmax())
        return sample(scores, row.picking.temperature, row.picking.top_p, row.random)

    def _remove(self, row: _Row) -> None:
        place = self._running.index(row)
        if self.cached:
            self._slots.drop(place)
        self._running[place] = self._running[-1]
        self._running.pop()

    def _checked(self, edits: Sequence[Edit]) -> tuple[Edit, ...]:
        """Edits of one row, checked against the model. Raises SiteError, ShapeError, UsageError."""
        for edit in edits:
            if edit.rows is not None:
                raise bad_argument("edits", f"an edit with rows {edit.rows}", "edits without rows: they are those of their row")
            per_prompt = isinstance(edit.positions, Tensor) and edit.positions.dim() == 2
            if per_prompt or edit.value.dim() > (0 if edit.direction is not None else edit_rank(self.model, edit)):
                raise bad_argument("edits", "values or positions per prompt", "one value for the row")
        resolved = tuple(self.model._resolved(edit, 1) for edit in edits)
        _check_sites([edit.site for edit in resolved])
        return resolved


def edit_rank(model: Model, edit: Edit) -> int:
    """How many axes one position's value has at the site of an edit."""
    shape = model.feature_shape(edit.site)
    return 1 if shape is None else len(shape)


def _check_sites(sites: Sequence[Site]) -> None:
    for site in sites:
        if site.name in ("pattern", "logits"):
            raise SiteError(f"site {site} cannot be used while generating; use capture() on the text.")


def stop_ids(model: Model) -> tuple[int, ...]:
    """The tokens that end a text of this model: its generation settings, else its tokenizer's end token."""
    found = getattr(model.hf.generation_config, "eos_token_id", None)
    found = getattr(model.tokenizer, "eos_token_id", None) if found is None else found
    return tuple(found) if isinstance(found, list | tuple) else () if found is None else (int(found),)


def penalised(logits: Float[Tensor, " vocab"], tokens: Sequence[int], penalty: float) -> Float[Tensor, " vocab"]:
    """Logits of tokens that were seen, divided by the penalty where positive, else multiplied (Keskar et al. 2019)."""
    seen = torch.tensor(sorted(set(tokens)), device=logits.device)
    out, values = logits.clone(), logits[seen]
    out[seen] = torch.where(values > 0, values / penalty, values * penalty)
    return out


def sample(logits: Float[Tensor, " vocab"], temperature: float, top_p: float, random: torch.Generator) -> int:
    """A token by its probability at a temperature, from the least set of tokens that holds `top_p` of it; the likeliest where
    these are no numbers: at temperatures near 0, and of a model that half precision made overflow."""
    chances = (logits / temperature).softmax(-1)
    if not bool(chances.isfinite().all()):
        return int(logits.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).argmax())
    if top_p < 1:
        ordered, order = chances.sort(descending=True)
        beyond = ordered.cumsum(0) - ordered >= top_p
        chances = chances.clone()
        chances[order[beyond]] = 0
    return int(torch.multinomial(chances, 1, generator=random))
