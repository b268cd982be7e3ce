"""A fact or behaviour written into one MLP: a rank-one edit of its down-projection per fact.

1. The down-projection is read as a memory: what an MLP holds at the last token of a subject is a key k, what it gives
   there a value k W. A key is the mean over prompts of one fact, with and without ordinary text before them.
2. The value: v = k W + d, with d found by gradient: d is added to the projection's output at the subject and

       L(d) = mean -log p(answer) + kl mean KL(before || after) + decay (|d| / (reach |k W|))^2

   The KL keeps what follows "SUBJECT is a" and what follows the other prompt of each pair where it has the same subject.
   |d| is held at reach |k W|. (ROME, Meng et al. 2022, section 3.1 and appendix E.5.)
3. Closed form, for any number of facts: among all W' with k_i W' = v_i the one nearest to W as ordinary text sees it,

       W' = W + C^-1 K^T (K C^-1 K^T)^-1 (V - K W),     C = E[k k^T] over tokens of ordinary text,

   which minimises E|k (W' - W)|^2. One fact is ROME; its change has rank 1, that of n facts rank n (cf. MEMIT, 2023).

C is taken from a few thousand tokens, so a share of its mean diagonal is added to it. That a value can be written does
not show that the model kept the fact there before (Hase et al. 2023).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from assay.data.metrics import kl
from assay.data.prepare import Unusable, longest_of, token_finder
from assay.errors import SiteError, TaskError, bad_argument
from assay.model.model import Model
from assay.records import Pair
from assay.sites import Site
from assay.steer.weights import Changed, WeightEditor, matrix_of

ESSENCE = "{} is a"
RIDGE = 1e-2  # of the mean diagonal of C, added to its diagonal
DEPENDENT = 1e10  # condition of the keys' Gram matrix from which on they are the same key
END = "end"
Report = Callable[[int], None]


@dataclass(frozen=True)
class Spot:
    """Token ids of a prompt, and the position of the subject's last token in it."""

    tokens: tuple[int, ...]
    place: int


@dataclass(frozen=True)
class Fact:
    """One subject with its answers. `train`: prompts with the tokens that should follow, any of them; `keep`: prompts
    after which nothing should change; `keys`: where the key is read."""

    subject: str
    answers: tuple[str, ...]
    train: tuple[tuple[Spot, tuple[int, ...]], ...]
    keep: tuple[Spot, ...]
    keys: tuple[Spot, ...]


@dataclass(frozen=True)
class ValuePlan:
    """How values are found. `rate`: of Adam, in units of |k W| / sqrt(d_model); `enough`: mean loss at which it stops."""

    steps: int = 12
    rate: float = 0.5
    kl: float = 1.0
    decay: float = 0.1
    reach: float = 4.0
    enough: float = 0.05


@dataclass(frozen=True, eq=False)
class Written:
    """Keys and the changes of their values at one layer; `loss`: mean -log p(answer), first and last."""

    layer: int
    keys: Float[Tensor, "fact d_mlp"]
    deltas: Float[Tensor, "fact d_model"]
    moment: Float[Tensor, "d_mlp d_mlp"]
    loss: tuple[float, float] = (float("nan"), float("nan"))


# closed form -------------------------------------------------------------------------------------


def rank_update(
    rows: Float[Tensor, "d_in d_out"],
    keys: Float[Tensor, "fact d_in"],
    values: Float[Tensor, "fact d_out"],
    moment: Float[Tensor, "d_in d_in"],
) -> Float[Tensor, "d_in d_out"]:
    """The change of W with keys (W + change) = values that is smallest in E|k change|^2 = tr(change^T C change).

    Meng et al. 2022, equation 2, for any number of keys. Raises UsageError for keys that depend on each other or a
    moment that is not positive definite.
    """
    rows, keys, values, moment = (x.double() for x in (rows, keys, values, moment))
    factor, info = torch.linalg.cholesky_ex(moment)
    if int(info):
        raise bad_argument("moment", "a matrix that is not positive definite", "E[k k^T] over more tokens, or with a ridge")
    towards = torch.cholesky_solve(keys.T, factor)  # (d_in, fact)
    gram = keys @ towards
    if not float(torch.linalg.cond(gram)) < DEPENDENT:
        raise bad_argument("keys", f"{len(keys)} keys that depend on each other", "one key per fact", "Join facts with one"
                           " subject, or give another layer.")  # fmt: skip
    return towards @ torch.linalg.solve(gram, values - keys @ rows)


def write_facts(model: Model, written: Written, strength: float = 1.0) -> Changed:
    """A copy of the model in which every key gives its value; `strength` times the change of the value is written."""
    if not 0 < strength < float("inf"):
        raise bad_argument("strength", strength, "a positive number")
    editor, path = WeightEditor(model), down_path(model, written.layer)
    matrix = editor.matrix(path)
    keys = written.keys.to(matrix.rows)
    values = keys @ matrix.rows + strength * written.deltas.to(matrix.rows)
    change = rank_update(matrix.rows, keys, values, written.moment.to(matrix.rows))
    editor.write_matrix(matrix, matrix.rows + change, len(keys), f"{len(keys)} fact(s) written, strength {strength:g}")
    return editor.done()


def down_path(model: Model, layer: int) -> str:
    """Path of the down-projection of a layer. Raises SiteError where there is no single one."""
    (site,) = model.sites(Site("mlp_act", layer))
    assert site.layer is not None
    path = model.layout.blocks[site.layer].down
    if path is None:
        raise SiteError(f"{site}: no single down-projection was found, so nothing can be written there.")
    return path


# facts -------------------------------------------------------------------------------------------


def facts_of(
    model: Model, pairs: Sequence[Pair], label: str | None = None, prefixes: Sequence[str] = ()
) -> tuple[Fact, ...]:
    """One fact per subject and answers from the clean prompts of some pairs.

    `label`: the label of a pair that marks the subject (an offset in its first word; `LABEL_end` marks a letter of its last
    word where it has several), or "end" for the prompt's last token. None: `subject`, or the only label there is.
    `prefixes`: ordinary texts put before prompts where keys are read. Prompts longer than the model's context are left out.
    Raises TaskError for pairs without that label, or where all are too long.
    """
    pairs = [pair for pair in pairs if _fits(model, pair)]
    if not pairs:
        raise TaskError(f"no prompt of discover fits into the {longest_of(model)} tokens of {model.name}.")
    name = label or subject_label(pairs)
    groups: dict[tuple[str, tuple[str, ...]], list[Pair]] = {}
    for pair in pairs:
        groups.setdefault((subject_of(pair, name, 0)[0], pair.answers), []).append(pair)
    return tuple(_fact(model, subject, answers, group, name, prefixes) for (subject, answers), group in groups.items())


def _fits(model: Model, pair: Pair) -> bool:
    """Whether both prompts, and the clean one with every answer, are within the model's context."""
    texts = [pair.corrupted, *(pair.clean + answer for answer in pair.answers)]
    return max(map(len, model.tokens(texts))) <= longest_of(model)


def subject_label(pairs: Sequence[Pair]) -> str:
    """The label that marks the subject. Raises TaskError where that is not clear."""
    names = set.intersection(*(set(pair.labels) for pair in pairs)) if pairs else set()
    names = {name for name in names if not name.endswith("_end")}
    if "subject" in names or len(names) == 1:
        return "subject" if "subject" in names else names.pop()
    known = ", ".join(sorted(names)) or "none"
    raise TaskError(f"a rank-one edit needs to know the subject; labels that all pairs have: {known}."
                    ' Add "labels": {"subject": [offset in clean, offset in corrupted]} to the file, or name one with'
                    " --subject LABEL; --subject end writes at the last token.")  # fmt: skip


def subject_of(pair: Pair, label: str, side: int) -> tuple[str, int]:
    """(the subject, offset of its last letter) in the clean (0) or corrupted (1) prompt; ("", last letter) for "end"."""
    text = pair.texts[side]
    if label == END:
        return "", len(text.rstrip()) - 1
    if label not in pair.labels:
        raise TaskError(f"pair {pair.clean!r} has no label {label!r}; it has: {', '.join(pair.labels) or 'none'}.")
    start = pair.labels[label][side]
    last = pair.labels.get(f"{label}_end", (start, start))[side]
    entity = next((name for name in pair.entities if text.startswith(name, start)), "")
    while not entity and start and text[start - 1].isalnum() and text[start].isalnum():
        start -= 1
    last = max(last, start + len(entity) - 1)
    while last + 1 < len(text) and (text[last + 1].isalnum()):
        last += 1
    return text[start : last + 1], last


def _fact(
    model: Model, subject: str, answers: tuple[str, ...], pairs: Sequence[Pair], label: str, prefixes: Sequence[str]
) -> Fact:
    spots = [_spot(model, pair.clean, subject_of(pair, label, 0)[1]) for pair in pairs]
    train = tuple(row for pair, spot in zip(pairs, spots, strict=True) for row in _targets(model, pair, spot))
    others = [(pair, *subject_of(pair, label, 1)) for pair in pairs]
    keep = [_spot(model, pair.corrupted, last) for pair, name, last in others if subject and name == subject]
    if subject:
        keep.append(_spot(model, ESSENCE.format(subject), len(subject) - 1))
    longer = [_spot(model, f"{prefix} {pair.clean}", len(prefix) + 1 + subject_of(pair, label, 0)[1])
              for prefix in prefixes for pair in pairs]  # fmt: skip
    longer = [spot for spot in longer if len(spot.tokens) <= longest_of(model)]
    return Fact(subject, answers, train, tuple(dict.fromkeys(keep)), tuple(dict.fromkeys([*spots, *longer])))


def _spot(model: Model, text: str, offset: int) -> Spot:
    if not getattr(model.tokenizer, "is_fast", False):
        raise TaskError(f"the tokenizer of {model.name} does not say where its tokens stand in a text (it is no fast one),"
                        " so the subject is not found.")  # fmt: skip
    (ids,) = model.tokens(text)
    try:
        return Spot(tuple(ids), token_finder(text, len(ids), model)(offset))
    except Unusable as error:
        raise TaskError(f"prompt {text!r}: {error}.") from error


def _targets(model: Model, pair: Pair, spot: Spot) -> list[tuple[Spot, tuple[int, ...]]]:
    """What should follow: first tokens of all answers; of a single one also every later token after those before it."""
    found = []
    for answer in pair.answers:
        ids = model.tokens(pair.clean + answer)[0]
        if tuple(ids[: len(spot.tokens)]) == spot.tokens and len(ids) > len(spot.tokens):
            found.append(ids)
    if not found:
        raise TaskError(f"pair {pair.clean!r}: its answer merges with the prompt's last token.")
    begin = len(spot.tokens)
    rows = [(spot, tuple(dict.fromkeys(ids[begin] for ids in found)))]
    if len(found) == 1:
        (ids,) = found
        rows += [(Spot(tuple(ids[:end]), spot.place), (ids[end],)) for end in range(begin + 1, len(ids))]
    return rows


# keys and values ---------------------------------------------------------------------------------


def key_moments(
    model: Model, layers: Sequence[int], prompts: Sequence[Sequence[int]], report: Report | None = None, ridge: float = RIDGE
) -> dict[int, Float[Tensor, "d_mlp d_mlp"]]:
    """E[k k^T] of every layer over all tokens of some prompts but the first of each, with a ridge on the diagonal.

    Summed chunk by chunk: memory does not grow with the prompts.
    """
    sites = [Site("mlp_act", layer) for layer in layers]
    sums = {layer: torch.zeros(model.dims.d_mlp, model.dims.d_mlp, dtype=torch.float64) for layer in layers}
    count = 0
    long = [list(ids) for ids in prompts if len(ids) > 1]
    for start in range(0, len(long), 16):
        acts = model.capture(long[start : start + 16], sites)
        for site in sites:
            keys = torch.cat([row[1:] for row in acts.rows(site)])
            sums[site.layer or 0] += (keys.float().T @ keys.float()).double()
        count += sum(length - 1 for length in acts.lengths)
        if report:
            report(len(long[start : start + 16]))
    if not count:
        raise bad_argument("prompts", "none of two tokens or more", "ordinary texts")
    means = {layer: total / count for layer, total in sums.items()}
    for mean in means.values():
        mean.diagonal().add_(ridge * mean.diagonal().mean())
    return means


def find_values(
    model: Model, layer: int, facts: Sequence[Fact], moment: Tensor, plan: ValuePlan | None = None, report: Report | None = None
) -> Written:
    """Keys of all facts at a layer, and by gradient the change of each value that makes its answers likely."""
    plan = plan or ValuePlan()
    if plan.steps < 1:
        raise bad_argument("steps", plan.steps, "1 or more")
    keys = torch.stack([_mean_key(model, layer, fact.keys) for fact in facts])
    matrix = matrix_of(model, down_path(model, layer))
    sizes = (keys.to(matrix.rows) @ matrix.rows).norm(dim=1).float().clamp_min(1e-6)
    job = _Job(model, layer, facts)
    unit = (sizes / matrix.rows.shape[1] ** 0.5)[:, None]
    theta = torch.zeros(len(facts), matrix.rows.shape[1], device=model.device, requires_grad=True)
    adam = torch.optim.Adam([theta], lr=plan.rate)
    losses: list[float] = []
    for _ in range(plan.steps):
        adam.zero_grad()
        losses.append(job.backward(theta, unit, sizes * plan.reach, plan))
        if report:
            report(1)
        if losses[-1] < plan.enough:
            break
        adam.step()
        with torch.no_grad():
            length = (theta * unit).norm(dim=1, keepdim=True)
            theta *= (plan.reach * sizes[:, None] / length.clamp_min(1e-9)).clamp_max(1.0)
    return Written(layer, keys, (theta * unit).detach().cpu(), moment, (losses[0], losses[-1]))


def _mean_key(model: Model, layer: int, spots: Sequence[Spot]) -> Float[Tensor, " d_mlp"]:
    site = Site("mlp_act", layer)
    acts = model.capture([list(spot.tokens) for spot in spots], site).rows(site)
    return torch.stack([row[spot.place].double() for row, spot in zip(acts, spots, strict=True)]).mean(0)


class _Job:
    """The loss of all facts together, batch by batch."""

    def __init__(self, model: Model, layer: int, facts: Sequence[Fact]) -> None:
        self.model, self.site = model, Site("path", path=f"{down_path(model, layer)}:out")
        train = [(number, spot, target) for number, fact in enumerate(facts) for spot, target in fact.train]
        keep = [(number, spot, ()) for number, fact in enumerate(facts) for spot in fact.keep]
        self.rows = [*train, *keep]
        self.shares = [1 / (len(facts) * len(facts[number].train)) for number, _, _ in train]  # every fact counts the same
        self.shares += [1 / (len(facts) * len(facts[number].keep)) for number, _, _ in keep]
        self.prompts = [list(spot.tokens) for _, spot, _ in self.rows]
        self.batches = model.batches(self.prompts, gradients=True)
        self.before = {row: logits for batch in self.batches for row, logits in self._before(batch)}

    def _before(self, batch: Sequence[int]) -> list[tuple[int, Tensor]]:
        kept = [row for row in batch if not self.rows[row][2]]
        return list(zip(kept, self.model.logits([self.prompts[row] for row in kept]), strict=True)) if kept else []

    def backward(self, theta: Tensor, unit: Tensor, most: Tensor, plan: ValuePlan) -> float:
        """Gradients into `theta`; the mean -log p of the answers."""
        total = 0.0
        for batch in self.batches:
            delta = theta * unit
            logits = self.model.walk([self.prompts[row] for row in batch], [self.site], self._adder(batch, delta),
                                     logits=True, gradients=True)  # fmt: skip
            assert logits is not None
            with torch.enable_grad():
                loss, answers = self._loss(batch, logits, plan)
                loss.backward()
            total += answers
        with torch.enable_grad():
            (plan.decay * ((theta * unit).norm(dim=1) / most).square().mean()).backward()
        return total

    def _adder(self, batch: Sequence[int], delta: Tensor) -> Callable[[Site, Tensor], Tensor]:
        facts = torch.tensor([self.rows[row][0] for row in batch], device=delta.device)
        places = torch.tensor([self.rows[row][1].place for row in batch], device=delta.device)

        def add(site: Site, value: Tensor) -> Tensor:
            flat = value if value.dim() == 3 else value.unflatten(0, (len(batch), -1))
            at = (torch.arange(len(batch), device=value.device), places)
            return flat.index_put(at, delta[facts].to(flat.dtype), accumulate=True).reshape(value.shape)

        return add

    def _loss(self, batch: Sequence[int], logits: Tensor, plan: ValuePlan) -> tuple[Tensor, float]:
        loss, answers = logits.new_zeros(()), 0.0
        for row, line in zip(batch, logits, strict=True):
            target = self.rows[row][2]
            if target:
                part = -line.log_softmax(-1)[list(target)].logsumexp(-1)
                answers += self.shares[row] * float(part.detach())
                loss = loss + self.shares[row] * part
            else:
                loss = loss + plan.kl * self.shares[row] * kl(self.before[row].to(line)[None], line[None])[0]
        return loss, answers
