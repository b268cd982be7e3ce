"""Prompts that would make circuit scores meaningless, refused by name before anything is attributed.

    AnswerInPrompt   a prompt already ends with the answer (or foil) that it is scored on
    PadInPrompt      a pad token stands inside a prompt, as if it were text
    LengthMismatch   clean and corrupted have different numbers of tokens
    DoubledBos       a prompt begins with BOS twice: one in its text, one put before it
    SeveralTokens    an answer has several tokens and the metric reads one of them
    NoDifference     clean and corrupted metrics are the same: there is nothing to attribute
    InvertedSign     the metric says that the behaviour is stronger on corrupted than on clean prompts

Tasks made by `prepare` cannot have the first three; tasks made by hand can.
"""

from collections.abc import Callable, Sequence

import numpy as np

from assay.circuits.patch import has_effect
from assay.data.prepare import PreparedTask
from assay.errors import TaskError
from assay.model.model import Model

WHOLE_ANSWER = ("prob", "prob_diff", "loss", "rank")
LOWER_IS_BETTER = ("loss", "rank", "kl")
SHOWN = 3


class AnswerInPrompt(TaskError):
    """A prompt ends with the answer that it is scored on."""


class PadInPrompt(TaskError):
    """A pad token stands inside a prompt."""


class LengthMismatch(TaskError):
    """Clean and corrupted have different numbers of tokens."""


class DoubledBos(TaskError):
    """A prompt begins with BOS twice."""


class SeveralTokens(TaskError):
    """An answer has several tokens and the metric reads one."""


class NoDifference(TaskError):
    """Clean and corrupted metrics are the same."""


class InvertedSign(TaskError):
    """The metric is better on corrupted than on clean prompts."""


def check_task(model: Model, task: PreparedTask, metric: str) -> None:
    """Raises the first of the errors above that applies."""
    n = range(len(task))
    _refuse(LengthMismatch, "clean and corrupted have different numbers of tokens",
            [i for i in n if len(task.clean[i]) != len(task.corrupted[i])],
            "Make pairs of equal length; see: assay tasks")  # fmt: skip
    both = [(i, ids) for i in n for ids in (task.clean[i], task.corrupted[i])]
    ends = [i for i, ids in both if ids[-1] in (*task.answers[i], *task.foils[i])
            and (ids[-1] not in ids[:-1] or _is_word(model, ids[-1]))]  # fmt: skip
    _refuse(AnswerInPrompt, "the prompt already ends with its answer or foil", ends, "Cut the prompts before the answer.")
    _refuse(PadInPrompt, "the prompt holds a pad token as text", [i for i, ids in both if _is_padded(model, ids)],
            "Give prompts without padding: batches are padded and masked for you.")  # fmt: skip
    check_bos(model, task)
    several = sum(count for note, count in task.notes.items() if note.startswith("scored on"))
    if several and metric in WHOLE_ANSWER:
        raise SeveralTokens(f"answers of several tokens ({several} pairs), and {metric} reads one token."
                            " Use logit_diff, which compares the first tokens that differ, or one-token answers.")  # fmt: skip


def check_bos(model: Model, task: PreparedTask) -> None:
    """Raises DoubledBos where a prompt begins with BOS twice."""
    both = [(i, ids) for i in range(len(task)) for ids in (task.clean[i], task.corrupted[i])]
    _refuse(DoubledBos, "the prompt begins with BOS twice",
            [i for i, ids in both if model.bos_id is not None and ids[:2] == [model.bos_id] * 2],
            "Take it out of the texts, or load the model with prepend_bos=False.")  # fmt: skip


def check_metrics(metric: str, clean: np.ndarray, corrupted: np.ndarray) -> None:
    """Raises NoDifference or InvertedSign. `clean`, `corrupted`: the metric, one number per pair."""
    if not has_effect(clean, corrupted):
        raise NoDifference(f"clean and corrupted prompts have the same mean {metric} up to rounding ({clean.mean():.4g}):"
                           " there is no effect to locate. Pairs whose differences cancel do this too.")  # fmt: skip
    better: Callable[[float, float], bool] = (float.__lt__ if metric in LOWER_IS_BETTER else float.__gt__)
    if not better(float(clean.mean()), float(corrupted.mean())):
        raise InvertedSign(f"mean {metric} is {clean.mean():.4g} on clean and {corrupted.mean():.4g} on corrupted prompts:"
                           " the model shows the behaviour where it should not. Are answers and foils, or clean and"
                           " corrupted, exchanged?")  # fmt: skip


def _is_padded(model: Model, ids: list[int]) -> bool:
    """Whether a pad token stands in a prompt. One that also begins or ends texts may stand alone in it, not twice in a row and
    not at the end."""
    pad = getattr(model.tokenizer, "pad_token_id", None)
    if pad is not None and pad in (model.bos_id, getattr(model.tokenizer, "eos_token_id", None)):
        return ids[1:][-1:] == [pad] or any(a == b == pad for a, b in zip(ids[1:], ids[2:], strict=False))
    return pad in ids


def _is_word(model: Model, token: int) -> bool:
    """Whether a token begins a word: a name, not one more digit of a year, which may well come twice."""
    return model.tokenizer is None or model.piece(token)[:1].isspace()


def _refuse(error: type[TaskError], what: str, pairs: Sequence[int], advice: str) -> None:
    if pairs:
        shown = ", ".join(map(str, sorted(set(pairs))[:SHOWN]))
        raise error(f"{what}: {len(set(pairs))} pairs (numbers {shown}{', ..' if len(set(pairs)) > SHOWN else ''}). {advice}")
