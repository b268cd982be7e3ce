"""Classes of positions: circuits whose nodes are at the subject, at the end, or elsewhere.

1. The classes are the labels of a task (`end`, the last position, has every prompt), and `rest` for all other positions. Of
   two labels at one position `end` has it, else the first in the alphabet.
2. Keys and values that are looked at from class d are to be exchanged without those that other classes look at. So a prompt
   is run in C copies. In copy d every key and value is the one that class d looks at; of what heads put out in it, only
   that at positions of class d is used: behind attention

       z at position p  =  z of copy class(p) at p        in all copies

   so that all copies have one residual stream, and the model's own attention is what runs.
3. With nothing cut all copies are the plain run. What gradients say of keys and values in copy d is what class d makes of
   them; of everything else the gradients of the copies are added up.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.circuits.graph import END, REST, Graph
from assay.data.prepare import PreparedTask


def classes_of(task: PreparedTask) -> tuple[str, ...]:
    """The classes of a task's positions: its labels, the rest, the end."""
    return (*sorted(set(task.labels) - {REST, END}), REST, END)


def positions_of(task: PreparedTask, classes: Sequence[str]) -> list[list[int]]:
    """The number of every position's class, by pair."""
    rest, end = classes.index(REST), classes.index(END)
    out = [[rest] * len(ids) for ids in task.clean]
    for name in sorted(set(classes) & set(task.labels) - {REST, END}, reverse=True):
        for row, position in zip(out, task.labels[name], strict=True):
            row[position] = classes.index(name)
    for row in out:
        row[-1] = end
    return out


def padded(rows: Sequence[Sequence[int]]) -> Int[Tensor, "row pos"]:
    """Classes of some prompts as one tensor; what is behind the end of a prompt has class 0, and is used by nothing."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])


def copies(prompts: Sequence[list[int]], graph: Graph) -> list[list[int]]:
    """Every prompt once per class, neighbours."""
    return [ids for ids in prompts for _ in range(len(graph.classes) or 1)]


def merged(
    z: Float[Tensor, "copy pos head d_head"], of: Int[Tensor, "row pos"], n_classes: int
) -> Float[Tensor, "copy pos head d_head"]:
    """What heads put out, in all copies that of the copy of each position's class."""
    apart = z.unflatten(0, (len(of), n_classes))
    rows, positions = torch.arange(len(of), device=z.device)[:, None], torch.arange(z.shape[1], device=z.device)[None]
    return apart[rows, of.to(z.device), positions].repeat_interleave(n_classes, 0)
