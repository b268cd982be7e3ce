"""Edits written into weights, so that the changed model needs no hooks and no Assay.

1. Work on a copy; the layout of the original was proved and is the copy's too.
2. A direction u is projected out of everything that writes to the residual stream: rows of every embedding that is added
   to it, output projections of attention and MLP, their biases:  W <- W - (W u) u^T,  b <- b - (b.u) u.
   Tied embeddings are untied first, else the unembedding would change too. Equal to projecting u out of `resid_pre.0` and
   of every `attn_out.L` and `mlp_out.L` while the model runs (directional ablation in weights, Arditi et al. 2024).
3. A head is d_head inputs of its layer's output projection, a neuron one input of the down-projection. Scaling by f:
   these rows of W times f. Mean ablation: these rows are 0 and the bias gets mean.W. Equal to `scale` and `patch`.
4. Mean ablation needs a bias. Where the module has none but the config has a switch for one (`attention_bias`,
   `mlp_bias`, ..), it is turned on and all biases it brings are 0, so plain `transformers` reads the checkpoint. Where
   there is no switch the edit is refused.

Which way round a weight lies is measured on the module. What cannot be equal is refused by name: a norm between a
projection and the stream (Gemma 2, OLMo 2), experts, a norm after the embeddings (BLOOM), quantised or offloaded weights.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.errors import ModelError, SiteError, bad_argument
from assay.model.layout import tolerance
from assay.model.model import Model
from assay.sites import Site

CHECK_TOKENS = (2, 12)  # prompts and tokens on which it is checked that a direction is gone
GONE = 0.05  # of the component that a random direction has: the most that may be left; less where rounding explains less
EXACT = 1e-6  # relative error at which a map in float64 is the one it should be
WHILE_RUNNING = "Name layers whose attention and MLP can be changed (--layer), or take it out while the model runs."


@dataclass(frozen=True)
class Change:
    """One weight that was changed. Norms are Frobenius norms, of the weight before and of the change.

    `rank`: of the change, at most. `what`: in words.
    """

    name: str
    shape: tuple[int, ...]
    norm: float
    change: float
    rank: int
    what: str


@dataclass(frozen=True, eq=False)
class Changed:
    """A changed copy of a model, what was changed in it, and what else had to be (`notes`)."""

    model: Model
    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()


def copy_model(model: Model) -> Model:
    """A copy with weights of its own; tokenizer and proved layout are shared. Raises ModelError for offloaded weights."""
    away = [name for name, weight in model.hf.named_parameters() if weight.is_meta]
    if away:
        raise ModelError(f"{model.name}: the weights are offloaded ({away[0]}, ..); they are changed in memory."
                         " Load the model without device_map.")  # fmt: skip
    made = Model(copy.deepcopy(model.hf), model.tokenizer, model.name, model.source, model.prepend_bos, model.bos_id,
                 model.modified)  # fmt: skip
    made.__dict__["proof"] = model.proof
    return made


class WeightEditor:
    """Writes weights of a copy of a model, and keeps what was changed."""

    def __init__(self, model: Model) -> None:
        self.model = copy_model(model)
        self._first: dict[str, Tensor] = {}
        self._told: dict[str, tuple[int, list[str]]] = {}
        self._notes: list[str] = []

    def done(self) -> Changed:
        """The copy and the changes, weights in the order of the module tree; what was written but is as before is left out."""
        weights = dict(self.model.hf.named_parameters())
        changes = [self._change(name, weights[name]) for name in weights if name in self._told]
        return Changed(self.model, tuple(change for change in changes if change.change > 0), tuple(self._notes))

    def _change(self, name: str, weight: Tensor) -> Change:
        before, (rank, words) = self._first[name], self._told[name]
        difference = float((weight.detach().double() - before.double()).norm())
        return Change(name, tuple(weight.shape), float(before.double().norm()), difference,
                      min(rank, *weight.shape), "; ".join(dict.fromkeys(words)))  # fmt: skip

    def note(self, text: str) -> None:
        """Something else that had to be done."""
        self._notes.append(text)

    def write(self, path: str, part: str, value: Tensor, rank: int, what: str) -> None:
        """Set a parameter of a module to `value`, in its own dtype. Raises ModelError for one that other modules use too."""
        name = f"{path}.{part}"
        weight: Any = getattr(self.model.hf.get_submodule(path), part)
        owners = [other for other, module in self.model.hf.named_modules(remove_duplicate=False)
                  if getattr(module, part, None) is weight]  # fmt: skip
        if len(owners) > 1:
            raise ModelError(f"{name} is shared by {', '.join(owners)}: a change for one of them would change the others.")
        self._first.setdefault(name, weight.detach().clone())
        before, words = self._told.get(name, (0, []))
        self._told[name] = (before + rank, [*words, what])
        with torch.no_grad():
            weight.copy_(value.to(weight.dtype))

    def matrix(self, path: str) -> "Matrix":
        """The linear map of a module of the copy."""
        return matrix_of(self.model, path)

    def write_matrix(self, matrix: "Matrix", rows: Float[Tensor, "d_in d_out"], rank: int, what: str) -> None:
        """Set the weight of a linear map, given as inputs x outputs."""
        self.write(matrix.path, "weight", rows if matrix.inputs_first else rows.T, rank, what)


@dataclass(frozen=True, eq=False)
class Matrix:
    """x -> x rows + bias, as a module computes it. `inputs_first`: the weight lies as inputs x outputs (Conv1D)."""

    path: str
    rows: Float[Tensor, "d_in d_out"]
    bias: Float[Tensor, " d_out"] | None
    inputs_first: bool

    @classmethod
    def of(cls, module: nn.Module, path: str) -> "Matrix":
        """In float64. Which way round it lies is measured on random inputs. Raises ModelError for anything else."""
        weight, bias = (getattr(module, part, None) for part in ("weight", "bias"))
        if not isinstance(weight, nn.Parameter) or weight.dim() != 2 or not weight.is_floating_point():
            raise ModelError(f"{path}: its weight is not a plain matrix of floats (quantised?), so it is not changed.")
        wide: Any = copy.deepcopy(module).double()  # half precision may not tell a square matrix from its transpose
        offset = wide.bias.detach() if isinstance(bias, Tensor) else 0.0
        for inputs_first in (False, True):
            rows = wide.weight.detach() if inputs_first else wide.weight.detach().T
            x = torch.randn(2, 3, len(rows), generator=torch.Generator().manual_seed(0)).to(rows)
            with torch.no_grad():
                try:
                    got = wide.forward(x)
                except RuntimeError:  # the other way round
                    continue
            want = x @ rows + offset
            if got.shape == want.shape and _near(got, want, EXACT):
                return cls(path, rows, None if bias is None else bias.detach().double(), inputs_first)
        raise ModelError(f"{path}: {type(module).__name__} does not compute x W + b, so its weights are not changed.")


def matrix_of(model: Model, path: str) -> Matrix:
    """The linear map of a module. Raises ModelError where it is none that can be written."""
    return Matrix.of(model.hf.get_submodule(path), path)


def _near(got: Tensor, want: Tensor, most: float) -> bool:
    return float((got - want).abs().max()) <= most * float(want.abs().max())


# directions --------------------------------------------------------------------------------------


def project_out(model: Model, direction: Float[Tensor, " d_model"], layers: Sequence[int] | None = None) -> Changed:
    """A copy in which nothing writes along `direction`: all embeddings, attention and MLPs, or those of `layers` only.

    Equal to `edits.project_out` at `resid_pre.0` (not with `layers`), `attn_out.L` and `mlp_out.L`. That the direction is
    gone is checked on the copy. Raises UsageError for a direction that is none of the residual stream, SiteError or
    ModelError, by name, where weights cannot do what the edit does.
    """
    unit = _unit(model, direction)
    editor = WeightEditor(model)
    chosen = range(model.n_layers) if layers is None else layers
    paths = [(site, path) for layer in chosen for site, path in writers(model, layer)]
    if layers is None:
        _project_embeddings(editor, unit)
    for _, path in paths:
        matrix = editor.matrix(path)
        editor.write_matrix(matrix, _without(matrix.rows, unit), 1, "direction projected out")
        if matrix.bias is not None:
            editor.write(path, "bias", _without(matrix.bias, unit), 1, "direction projected out")
    _check_gone(model, editor.model, unit, [site for site, _ in paths], whole=layers is None)
    return editor.done()


def writers(model: Model, layer: int) -> list[tuple[Site, str]]:
    """(site, path of the projection) that write to the stream in a layer. SiteError where weights alone do not decide."""
    layout, found = model.layout, []
    block = layout.blocks[layer]
    for name, path in (("attn_out", block.o_proj), ("mlp_out", block.down)):
        site = Site(name, layer)
        if site not in layout.points:
            if layout.absent.get(site) == "no attention in this block":
                continue
            (site,) = model.sites(site)  # raises, with the reason
        norm = block.post_norm if name == "attn_out" else _post_norm(layout.points[site].path, block.mlp_raw)
        if norm is not None:
            raise SiteError(f"{site}: the norm {norm} stands between the projection and the residual stream, so no change"
                            f" of weights equals taking the direction out. {WHILE_RUNNING}")  # fmt: skip
        if path is None:
            raise SiteError(f"{site}: {layout.absent.get(Site('mlp_act', layer), 'no single output projection was found')},"
                            " so the direction cannot be taken out of its weights.")  # fmt: skip
        found.append((site, path))
    return found


def _post_norm(path: str, raw: str | None) -> str | None:
    """The norm after an MLP: what gives mlp_out where that is not the MLP itself."""
    return None if raw is None or path == raw else path


def _unit(model: Model, direction: Tensor) -> Tensor:
    vector = direction.detach().double().to(model.device)
    if vector.shape != (model.dims.d_model,):
        raise bad_argument("direction", f"shape {tuple(vector.shape)}", f"({model.dims.d_model},), the width of the stream")
    if not 0 < float(vector.norm()) < float("inf"):
        raise bad_argument("direction", f"norm {float(vector.norm()):g}", "a finite, non-zero vector")
    return vector / vector.norm()


def _without(rows: Tensor, unit: Tensor) -> Tensor:
    """Vectors (.., d_model) without their component along a unit vector."""
    return rows - (rows @ unit)[..., None] * unit


def _project_embeddings(editor: WeightEditor, unit: Tensor) -> None:
    """Every embedding of the stream's width that runs before the first block: tokens, positions, types."""
    hf, layout = editor.model.hf, editor.model.layout
    first = layout.order_of(layout.blocks[0].path, "in")
    _untie(editor)
    for path, module in hf.named_modules():
        early = path in layout.orders and layout.orders[path][0] < first
        if early and isinstance(module, nn.Embedding) and module.weight.shape[-1] == len(unit):
            editor.write(path, "weight", _without(module.weight.detach().double(), unit), 1, "direction projected out")


def _untie(editor: WeightEditor) -> None:
    """Give the unembedding a weight of its own where it shares the embedding's."""
    hf: Any = editor.model.hf
    head, tokens = hf.get_output_embeddings(), hf.get_input_embeddings()
    if head is None or head.weight is not tokens.weight:
        return
    head.weight = nn.Parameter(tokens.weight.detach().clone(), requires_grad=tokens.weight.requires_grad)
    for config in {id(one): one for one in (hf.config, hf.config.get_text_config())}.values():
        config.tie_word_embeddings = False
    if hasattr(hf, "get_expanded_tied_weights_keys"):
        hf.all_tied_weights_keys = hf.get_expanded_tied_weights_keys(all_submodels=True)
    editor.note(f"the unembedding was tied to the embedding and now has a weight of its own ({head.weight.numel():,} numbers)")


def _check_gone(before: Model, model: Model, unit: Tensor, sites: Sequence[Site], whole: bool) -> None:
    """SiteError, naming the site, where something still writes along the direction: a share of what is written there now, or
    was before where that was more (all of it may have gone)."""
    n, width = CHECK_TOKENS
    ids = torch.randint(0, model.dims.d_vocab, (n, width), generator=torch.Generator().manual_seed(1)).tolist()
    checked = [Site("resid_pre", 0), *sites] if whole else list(sites)
    if not checked:
        raise bad_argument("layers", "none", f"0 to {model.n_layers - 1}")
    acts, then = model.capture(ids, checked), before.capture(ids, checked)
    for site in checked:
        x = acts[site].double().flatten(0, -2)
        size = max(float(x.norm()), float(then[site].double().norm()), 1e-30)
        left = float((x @ unit.cpu()).norm()) / size
        why = _why(model, site)
        unseen = bool(why) and model.dtype != torch.float32  # rounding may hide what a norm puts back
        if unseen or left * len(unit) ** 0.5 > min(4 * tolerance(model.dtype), GONE):
            raise SiteError(f"{site} still has {left:.2g} of its length along the direction after the"
                            f" edit{why}. {WHILE_RUNNING}")  # fmt: skip


def _why(model: Model, site: Site) -> str:
    """Modules between the embeddings and the first block, where they are to blame."""
    if site.name != "resid_pre":
        return ""
    layout = model.layout
    first = layout.order_of(layout.blocks[0].path, "in")
    modules = dict(model.hf.named_modules())
    early = [path for path, (begin, _) in layout.orders.items() if begin < first]
    between = [path for path in early if _is_leaf_with_weights(modules[path]) and not isinstance(modules[path], nn.Embedding)]
    return f": between the embeddings and the first block stands {', '.join(between)}" if between else ""


def _is_leaf_with_weights(module: nn.Module) -> bool:
    return not any(True for _ in module.children()) and any(True for _ in module.parameters())


# heads and neurons -------------------------------------------------------------------------------


def scale_units(model: Model, units: Sequence[str | Site], factor: float) -> Changed:
    """A copy with heads (`z.L.H`) and neurons (`mlp_act.L.N`) times `factor`; equal to `edits.scale` at them."""
    if not -float("inf") < factor < float("inf"):
        raise bad_argument("factor", factor, "a finite number")
    editor = WeightEditor(model)
    for path, found in _inputs(model, units).items():
        rows = editor.matrix(path).rows.clone()
        places = torch.cat([places for _, places in found])
        rows[places] *= factor
        what = f"{_names(found)} times {factor:g}"
        editor.write_matrix(editor.matrix(path), rows, len(places), what)
    return editor.done()


def ablate_units(model: Model, units: Sequence[str | Site], means: Mapping[Site, Tensor]) -> Changed:
    """A copy with heads and neurons at a constant value: `means[site]`, as `unit_means` gives it. Equal to `edits.patch`.

    Raises SiteError where the projection has no bias and the config has no switch for one.
    """
    editor = WeightEditor(model)
    for path, found in _inputs(model, units).items():
        give_bias(editor, path)
        matrix = editor.matrix(path)
        assert matrix.bias is not None
        rows, places = matrix.rows.clone(), torch.cat([places for _, places in found])
        value = torch.cat([means[site].detach().double().reshape(-1).to(rows) for site, _ in found])
        what = f"{_names(found)} at the mean"
        editor.write(path, "bias", matrix.bias + value @ rows[places], 1, what)
        rows[places] = 0.0
        editor.write_matrix(matrix, rows, len(places), what)
    return editor.done()


def unit_means(model: Model, units: Sequence[str | Site], prompts: Sequence[Sequence[int]]) -> dict[Site, Tensor]:
    """The mean of every unit, (d_head,) or (), over all tokens of some prompts but the first of each (attention sinks)."""
    sites = model.sites(list(units))
    long = [list(ids) for ids in prompts if len(ids) > 1]
    if not long:
        raise bad_argument("prompts", "none of two tokens or more", "texts to take the mean over")
    acts = model.capture(long, sites)
    return {site: torch.cat([row[1:].double() for row in acts.rows(site)]).mean(0) for site in sites}


def _inputs(model: Model, units: Sequence[str | Site]) -> dict[str, list[tuple[Site, Tensor]]]:
    """Projection path -> [(unit, which of its inputs)]. SiteError for anything but heads and neurons."""
    found: dict[str, list[tuple[Site, Tensor]]] = {}
    for site in dict.fromkeys(model.sites(list(units)) if len(units) else ()):
        if site.index is None or site.layer is None or site.name not in ("z", "mlp_act"):
            raise SiteError(f"units: got {site}; allowed: heads (z.9.3) and neurons (mlp_act.9.100).")
        block, point = model.layout.blocks[site.layer], model.layout.points[site.whole]
        path = block.o_proj if site.name == "z" else block.down
        assert path is not None
        if site.name == "z":
            assert point.split is not None
            size = point.split.groups * point.split.per_group * point.split.d_head
            places = point.split.get(torch.arange(size))[site.index]
        else:
            places = torch.tensor([site.index])
        found.setdefault(path, []).append((site, places))
    if not found:
        raise bad_argument("units", "none", "at least one head (z.9.3) or neuron (mlp_act.9.100)")
    return found


def _names(found: Sequence[tuple[Site, Tensor]]) -> str:
    names = [str(site) for site, _ in found]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def give_bias(editor: WeightEditor, path: str) -> None:
    """Make sure that a linear module has a bias, 0 where it is new, in a way that the model's own class reads back.

    1. Turn each switch of the config whose name has "bias" in it and that is off; build that model without memory.
    2. Take the switch that gives this module a bias and adds nothing but biases. Raises SiteError where there is none.
    """
    hf: Any = editor.model.hf
    if isinstance(getattr(hf.get_submodule(path), "bias", None), Tensor):
        return
    known = set(hf.state_dict())
    for name in _switches(hf.config):
        config = copy.deepcopy(hf.config)
        setattr(config, name, True)
        with torch.device("meta"):
            built = type(hf)(config)
        added = [key for key in built.state_dict() if key not in known]
        if f"{path}.bias" in added and all(key.endswith(".bias") for key in added) and known <= set(built.state_dict()):
            for key in added:
                module = hf.get_submodule(key.removesuffix(".bias"))
                shape = built.get_submodule(key.removesuffix(".bias")).bias.shape
                module.bias = nn.Parameter(module.weight.new_zeros(shape), requires_grad=module.weight.requires_grad)
            setattr(hf.config, name, True)
            editor.note(f"config.{name} is turned on: {len(added)} biases are new, all 0 but those listed")
            return
    raise SiteError(f"{path} has no bias, and the config of {type(hf).__name__} no switch that gives it one, so a mean cannot"
                    " be put there. Zero ablation needs none: --method scale-heads (or scale-neurons) --factor 0.")  # fmt: skip


def _switches(config: Any) -> list[str]:
    """Settings of a config that turn biases on."""
    return [name for name, value in config.to_dict().items() if "bias" in name and value is False]
