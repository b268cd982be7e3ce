"""`Model`: an unmodified Hugging Face causal LM with names for what is inside it.

    model = load_model("smollm2-135m")
    acts = model.capture(["The cat sat"], ["resid_post.15", "z.9.3"])
    logits = model.logits("The cat sat", edits=[zero("z.9.3")])

Prompts are a text, a list of texts, or lists of token ids. Whether a BOS token is put before texts
is `prepend_bos`, fixed at load and recorded in the passport; token ids are used as they are.
"""

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from importlib import metadata
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.errors import LayoutError, ShapeError, SiteError, UsageError, bad_argument
from assay.model.activations import Activations, Collector
from assay.model.context import check_lengths, learned_positions
from assay.model.edits import Condition, Edit, Positions, check_value
from assay.model.fingerprint import tokenizer_digest, weights_state
from assay.model.generate import Generation, Sampling, generate
from assay.model.gradients import gradients
from assay.model.hooks import Sink
from assay.model.layout import Layout
from assay.model.points import Dims
from assay.model.prefix import Prefixes, continued
from assay.model.proofs import fresh_proof, proof_of
from assay.model.prove import Proof
from assay.model.readers import Readers
from assay.model.request import Prefix
from assay.model.run import BATCH_TOKENS, Checkpoint, Engine, LogitsAt, Metric, Progress, Request
from assay.sites import INDEXED, Site, parse_sites

Prompts = str | Sequence[str] | Sequence[Sequence[int]] | Tensor
Sites = str | Site | Sequence[str | Site]
SPACE = "▁"  # how SentencePiece writes a space


class Model:
    """A causal language model whose layout is proved. Made by `load_model`.

    `modified`: how its weights were changed before it was loaded, "" where nothing says that they were.
    """

    def __init__(
        self,
        hf: nn.Module,
        tokenizer: Any,
        name: str,
        source: str,
        prepend_bos: bool,
        bos_id: int | None,
        modified: str = "",
    ) -> None:
        self.hf, self.tokenizer, self.name, self.source = hf, tokenizer, name, source
        self.prepend_bos, self.bos_id, self.modified = prepend_bos, bos_id, modified
        self.memory_budget = 1 << 30
        self._stamp: list[tuple[int, int]] = []
        self._readers: tuple[Any, Readers] | None = None  # what they were measured from, and they

    # what it is ------------------------------------------------------------------------------

    @cached_property
    def proof(self) -> Proof:
        """The layout and what was measured to prove it; kept on disk for this very model."""
        self.__dict__.pop("_weights", None)  # of this moment, whatever was read before
        return proof_of(self.hf, self.pad_id, self._weights.hexdigest())

    @property
    def layout(self) -> Layout:
        return self.proof.layout

    @property
    def dims(self) -> Dims:
        """n_layers, n_heads, n_kv_heads, d_model, d_head, d_mlp, d_vocab."""
        return self.layout.dims

    @property
    def n_layers(self) -> int:
        return self.layout.dims.n_layers

    @property
    def n_heads(self) -> int:
        return self.layout.dims.n_heads

    @property
    def device(self) -> torch.device:
        return self.engine.device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.hf.parameters()).dtype

    @cached_property
    def engine(self) -> Engine:
        return Engine(self.hf, self.layout, self.pad_id, self.memory_budget)

    @property
    def pad_id(self) -> int:
        """The token that fills short rows: the tokenizer's padding, else its end, else 0."""
        pad = getattr(self.tokenizer, "pad_token_id", None)
        pad = pad if pad is not None else getattr(self.tokenizer, "eos_token_id", None)
        return 0 if pad is None else pad

    @cached_property
    def _weights(self) -> Any:
        self._stamp = self._writes()
        return weights_state(self.hf)

    def _writes(self) -> list[tuple[int, int]]:
        """Where every weight is and how often it was written in place, as torch counts it."""
        return [(x.data_ptr(), x._version) for x in self.hf.state_dict(keep_vars=True).values()]

    @property
    def digest(self) -> str:
        """SHA-256 over names, shapes and bytes of all weights, config and vocabulary.

        Read again when torch has counted a write since; a write through `.data` is not counted:
        `fresh_digest` reads always.
        """
        if "_weights" in self.__dict__ and self._stamp != self._writes():
            del self.__dict__["_weights"]
        state = self._weights.copy()
        config = getattr(self.hf, "config", None)
        state.update(type(self.hf).__qualname__.encode())
        settings = {} if config is None else config.to_dict()
        for name in ("_name_or_path", "transformers_version"):  # where it lies and what reads it is not what it is
            settings.pop(name, None)
        state.update(json.dumps(settings, sort_keys=True, default=str).encode())
        vocabulary = self.tokenizer.get_vocab() if self.tokenizer is not None else {}
        state.update(repr(sorted(vocabulary.items())).encode())
        return state.hexdigest()

    def fresh_digest(self) -> str:
        """The digest of the weights as they are now, whatever was read before."""
        self.__dict__.pop("_weights", None)
        return self.digest

    @property
    def tokenizer_digest(self) -> str | None:
        """SHA-256 of how texts become tokens: vocabulary, merges, normaliser and BOS setting. None without one."""
        return tokenizer_digest(self.tokenizer, self.prepend_bos, self.bos_id)

    def passport(self) -> dict[str, Any]:
        """What a result must say about the model that produced it."""
        versions = {name: metadata.version(name) for name in ("torch", "transformers")}
        config = getattr(self.hf, "config", None)
        return {
            "model": self.name, "source": self.source, "digest": self.digest,
            "dtype": str(self.dtype).removeprefix("torch."), "device": str(self.device),
            "attention": getattr(config, "_attn_implementation", None),
            "prepend_bos": self.prepend_bos, "bos_id": self.bos_id,
            "python": platform.python_version(), **versions,
        }  # fmt: skip

    # prompts ---------------------------------------------------------------------------------

    def tokens(self, prompts: Prompts) -> list[list[int]]:
        """Token ids of every prompt. Texts get BOS if `prepend_bos`; ids are taken as they are."""
        if isinstance(prompts, Tensor):
            prompts = prompts.tolist() if prompts.dim() == 2 else [prompts.tolist()]
        items: list[Any] = [prompts] if isinstance(prompts, str) else list(prompts)
        if items and isinstance(items[0], int):
            items = [items]
        found = [self._text(item) if isinstance(item, str) else [int(i) for i in item] for item in items]
        vocab = self.layout.dims.d_vocab
        for number, ids in enumerate(found):
            if not ids:
                raise bad_argument("prompts", f"an empty prompt (number {number})", "at least one token")
            if not 0 <= min(ids) <= max(ids) < vocab:
                raise bad_argument("prompts", f"token id outside the vocabulary in prompt {number}",
                                   f"0 to {vocab - 1}")  # fmt: skip
        if not found:
            raise bad_argument("prompts", "no prompts", "a text, texts, or lists of token ids")
        return found

    def _text(self, text: str) -> list[int]:
        if self.tokenizer is None:
            raise UsageError(f"model {self.name} has no tokenizer: give token ids instead of text.")
        try:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        except (TypeError, UnicodeEncodeError) as error:
            raise bad_argument("prompts", ascii(text)[:60], "text of valid Unicode") from error
        return [self.bos_id, *ids] if self.prepend_bos and self.bos_id is not None else list(ids)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of some tokens."""
        return self.tokenizer.decode(list(tokens))

    def piece(self, token: int) -> str:
        """The text of one token as it stands within a text: decoders of SentencePiece drop a space of the first token."""
        text, raw = self.text([token]), self.tokenizer.convert_ids_to_tokens(token)
        spaces = len(raw) - len(raw.lstrip(SPACE)) if isinstance(raw, str) else 0
        return " " * spaces + text.lstrip(" ") if spaces else text

    # the verbs -------------------------------------------------------------------------------

    def capture(
        self,
        prompts: Prompts,
        sites: Sites,
        *,
        positions: Positions = "all",
        edits: Sequence[Edit] = (),
        device: str = "cpu",
        resume: Checkpoint | None = None,
        progress: Progress | None = None,
    ) -> Activations:
        """Activations at sites. Stops after the last site; owned copies on `device`.

        `resume` skips the blocks before the first site and edit; it must come from the same prompts.
        Raises SiteError for an address this model does not have, and why.
        """
        wanted = self.sites(sites)
        logits: LogitsAt = None
        if Site("logits") in wanted:
            logits = "last" if isinstance(positions, str) and positions == "last" else "all"
            if logits == "last" and len(wanted) > 1:
                logits = "all"
        request = self._request(prompts, wanted, edits, positions, logits, resume)
        if logits == "last":
            request = replace(request, positions=[0])
        return self.engine.capture(request, device, progress)

    def logits(
        self,
        prompts: Prompts,
        *,
        positions: Positions = "last",
        edits: Sequence[Edit] = (),
    ) -> Tensor:
        """Next-token logits: (n, vocab) at the last position, else (n, positions, vocab)."""
        acts = self.capture(prompts, "logits", positions=positions, edits=edits)
        is_last = isinstance(positions, str) and positions == "last"
        return acts["logits"][:, 0] if is_last else acts["logits"]

    def score(
        self,
        prompts: Prompts,
        metric: Metric,
        *,
        edits: Sequence[Edit] = (),
        resume: Checkpoint | None = None,
        progress: Progress | None = None,
    ) -> Float[Tensor, " prompt"]:
        """metric(logits (batch, vocab) at the last position, prompt numbers), one number per prompt.

        `resume` skips the blocks before the first edit; it must come from the same prompts.
        """
        request = self._request(prompts, [], edits, "all", "last", resume)
        return self.engine.score(request, metric, progress)

    def capture_and_score(
        self,
        prompts: Prompts,
        sites: Sites,
        metric: Metric,
        *,
        edits: Sequence[Edit] = (),
        progress: Progress | None = None,
    ) -> tuple[Activations, Float[Tensor, " prompt"]]:
        """Activations at all positions and the metric, from one pass; metric as in `score`."""
        request = self._request(prompts, self.sites(sites), edits, "all", "last")
        lengths = [len(tokens) for tokens in request.tokens]
        collector = Collector(lengths, max(lengths), "cpu")
        scores = self.engine.score(request, metric, progress, collector)
        return collector.done(request.captures), scores

    def gradients(
        self,
        prompts: Prompts,
        sites: Sites,
        metric: Metric,
        *,
        edits: Sequence[Edit] = (),
        progress: Progress | None = None,
    ) -> tuple[Activations, Activations, Tensor]:
        """(d metric / d site, values at the sites, metric (n,)); metric as in `score`."""
        request = self._request(prompts, self.sites(sites), edits, "all", "last")
        request = Request(request.tokens, request.captures, request.edits, "all", "last", None, True)
        for site in request.captures:
            if site.name == "logits" or (site.name == "attn_out" and site.index is not None):
                raise SiteError(f"site {site}: gradients are taken at {site.whole if site.index else 'final_norm'}"
                                " (the sum's gradient is each term's gradient).")  # fmt: skip
        return gradients(self.engine, request, metric, progress)

    def walk(
        self,
        prompts: Prompts,
        sites: Sites,
        visit: Sink,
        *,
        edits: Sequence[Edit] = (),
        logits: bool = False,
        gradients: bool = False,
        begun: tuple[Prefix, Sequence[int]] | None = None,
        resume: Checkpoint | None = None,
        made: Sites = (),
    ) -> Tensor | None:
        """One pass of these prompts as one batch, padded on the right; `visit(site, value)` sees every site as it runs.

        `value` is (batch, pos, *feature), the model's own tensor: copy what you keep, and return a tensor of the same
        shape to replace it from there on. The last position's logits (batch, vocab) are returned where asked for, with
        their graph if `gradients`. `batches` says which prompts to take together.
        `begun`: the first tokens of the prompts were run by `begin`, unchanged and unseen; which of its rows each prompt
        begins like. Values start after them.
        `resume` skips the blocks before the first site and edit; it must come from the same prompts.
        `made`: sites of which `visit` replaces every value without looking at it (it may be 0). Linear layers that compute
        nothing else are not run.
        """
        request = self._request(prompts, self.sites(sites), edits, "all", "last" if logits else None, resume)
        request = replace(request, made=tuple(self.sites(made)) if made else ())
        with self.engine.exclusive(), torch.set_grad_enabled(gradients):
            batch = self.engine.batch(request.tokens, list(range(len(request.tokens))))
            if begun is not None:
                batch = continued(batch, begun[0].length, *begun)
            found = self.engine.run(batch, request, visit)
        return None if found is None else found[:, 0].float()

    def unembed(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """Logits of what `final_norm` gives, by the model's own last map; a soft cap after it is not applied."""
        return self.hf.get_submodule(self.layout.unembed)(hidden)

    def begin(self, prompts: Prompts, length: int) -> Prefix:
        """The first `length` tokens of every prompt, run once for any number of passes that leave them as they are."""
        request = self._request(prompts, [], (), "all", "last")
        with self.engine.exclusive(), torch.no_grad():
            like = self.engine.batch(request.tokens[:1], [0]).ids
            return Prefixes(self.hf, self.layout, request).begin(request.tokens, length, like)

    def beginnable(self, length: int) -> bool:
        """Whether prompts of this many tokens may be continued from their first ones: proved at load."""
        return length <= self.layout.prefix_width

    def batches(self, prompts: Prompts, *, gradients: bool = False, tokens: int | None = None) -> list[list[int]]:
        """Numbers of the prompts that fit into one pass each: within the memory budget, and at most `tokens`."""
        request = self._request(prompts, [], (), "all", "last")
        request = replace(request, gradients=gradients)
        return [batch.rows.tolist() for batch in self.engine.batches(request, tokens)]

    def generate(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int = 32,
        edits: Sequence[Edit] = (),
        sites: Sites = (),
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Generation:
        """Continue every prompt under edits, with the KV cache; captures cover all positions.

        Raises LengthError where a prompt and so many tokens need more positions than the model has learned.
        """
        if max_new_tokens < 1:
            raise bad_argument("max_new_tokens", max_new_tokens, "1 or more")
        wanted = self.sites(sites) if not isinstance(sites, tuple) or sites else []
        for site in (*wanted, *(edit.site for edit in edits)):
            if site.name in ("pattern", "logits"):
                raise SiteError(f"site {site} cannot be used while generating; use capture() on the text.")
        request = self._request(prompts, wanted, edits)
        check_lengths(request.tokens, learned_positions(self.hf), max_new_tokens)
        stop = self.hf.generation_config.eos_token_id  # type: ignore[union-attr]
        stop = getattr(self.tokenizer, "eos_token_id", None) if stop is None else stop
        stops = tuple(stop) if isinstance(stop, list) else () if stop is None else (int(stop),)  # type: ignore[arg-type]
        sampling = Sampling(max_new_tokens, temperature, seed, stops)
        tokens, activations = generate(self.engine, request, sampling)
        texts = [self.text(new) if self.tokenizer is not None else "" for new in tokens]
        return Generation(texts, tokens, request.tokens, activations)

    def readers(self) -> Readers:
        """How parts read the residual stream now. Raises SiteError where they do not in a known way.

        Measured again when torch has counted a write since, or a vector (the gain of a norm) is another one.
        """
        vectors = [x for x in self.hf.parameters() if x.dim() == 1]
        if any(x.is_meta for x in vectors):
            return Readers(self.hf, self.layout)
        seen = hashlib.sha256(b"".join(x.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() for x in vectors))
        stamp = self._writes(), seen.digest()
        if self._readers is None or self._readers[0] != stamp:
            self._readers = stamp, Readers(self.hf, self.layout)
        return self._readers[1]

    def checkpoint(self, prompts: Prompts, layers: Sequence[int] | None = None) -> Checkpoint:
        """The residual stream entering each layer, to resume later passes: n x pos x d_model each. Nothing for one layer."""
        chosen = tuple(range(1, self.n_layers)) if layers is None else tuple(sorted(layers))
        tokens = self.tokens(prompts)
        sites = [Site("resid_pre", layer) for layer in chosen]
        acts = self.capture(tokens, sites) if sites else Activations([len(row) for row in tokens], {})
        return Checkpoint(chosen, acts, tuple(range(len(tokens))), tokens)

    def check(self) -> Proof:
        """The proof of this model's layout, measured again now and used from here on."""
        self.__dict__.pop("_weights", None)
        proof = fresh_proof(self.hf, self.pad_id, self._weights.hexdigest())
        self.__dict__["proof"] = proof
        self.__dict__.pop("engine", None)
        return proof

    def sites(self, sites: Sites) -> list[Site]:
        """Sites of this model, sets expanded. Raises SiteError with the reason for a missing one."""
        d = self.dims
        widths = {"q": d.n_heads, "z": d.n_heads, "pattern": d.n_heads, "attn_out": d.n_heads,
                  "k": d.n_kv_heads, "v": d.n_kv_heads, "mlp_act": d.d_mlp}  # fmt: skip
        found = parse_sites(sites, d.n_layers, widths)
        for site in found:
            self._offered(site, widths)
        if not found:
            raise bad_argument("sites", "none", "at least one site, e.g. 'resid_post.3'")
        return found

    # internal --------------------------------------------------------------------------------

    def _offered(self, site: Site, widths: dict[str, int]) -> None:
        if site.name == "path":
            path = (site.path or "").rsplit(":", 1)[0]
            if path not in self.layout.orders:
                raise SiteError(f"site {site}: no module {path!r} runs in {self.name}.")
            return
        whole = site.whole
        if whole in self.layout.refused:
            raise SiteError(f"site {site} is not offered by {self.name}: {self.layout.refused[whole]}.")
        if whole not in self.layout.points:
            why = self.layout.absent.get(whole, "this model has no such site")
            raise SiteError(f"site {site} is not offered by {self.name}: {why}.")
        if site.index is not None and not 0 <= site.index < widths[site.name]:
            raise SiteError(f"site {site}: {INDEXED[site.name]} {site.index} does not exist;"
                            f" allowed: 0 to {widths[site.name] - 1}.")  # fmt: skip

    def feature_shape(self, site: Site) -> tuple[int, ...] | None:
        """Shape of one position's activation; None where it depends on the prompt or module."""
        d = self.dims
        heads = d.n_kv_heads if site.name in ("k", "v") else d.n_heads
        if site.name in ("q", "k", "v", "z"):
            return (d.d_head,) if site.index is not None else (heads, d.d_head)
        if site.name == "mlp_act":
            return () if site.index is not None else (d.d_mlp,)
        return None if site.name in ("pattern", "path", "logits") else (d.d_model,)

    def _request(
        self,
        prompts: Prompts,
        captures: Sequence[Site],
        edits: Sequence[Edit] = (),
        positions: Positions = "all",
        logits: LogitsAt = None,
        resume: Checkpoint | None = None,
    ) -> Request:
        tokens = self.tokens(prompts)
        check_lengths(tokens, self._positions)
        resolved = tuple(self._resolved(edit, len(tokens)) for edit in edits)
        if resume is not None and len(resume.index) != len(tokens):
            raise ShapeError(f"resume: the checkpoint has {len(resume.index)} prompts; allowed:"
                             f" {len(tokens)}. Use checkpoint.select(rows).")  # fmt: skip
        self.engine.memory_budget = self.memory_budget
        return Request(tokens, tuple(captures), resolved, positions, logits, resume)

    @cached_property
    def _positions(self) -> int | None:
        return learned_positions(self.hf)

    def _resolved(self, edit: Edit, n_prompts: int) -> Edit:
        sites = self.sites(edit.site)
        if sites[0].name == "logits":
            raise SiteError("site logits: an edit here changes nothing inside; edit final_norm instead.")
        feature = self.feature_shape(sites[0])
        if feature is not None:
            check_value(edit, feature, n_prompts)
        condition = None if edit.condition is None else self._resolved_condition(edit.condition, sites[0])
        return replace(edit, site=sites[0], condition=condition)

    def _resolved_condition(self, condition: Condition, edited: Site) -> Condition:
        """Raises SiteError where nothing can be read for it, ShapeError for a direction that does not fit."""
        (site,) = self.sites(condition.site)
        feature = self.feature_shape(site)
        if feature is None or "pattern" in (site.name, edited.name):
            raise SiteError(f"condition at {site}: allowed are sites with one activation per position, not pattern or logits.")
        if site != edited and (site.name == "attn_out" and site.index is not None):
            raise SiteError(f"condition at {site}: one head's share is read for edits of itself only;"
                            f" use z.{site.layer}.{site.index}.")  # fmt: skip
        if (shape := tuple(condition.direction.shape)) != feature:
            raise ShapeError(f"condition at {site}: direction has shape {shape}; allowed: {feature}.")
        return Condition(site, condition.direction, condition.threshold)


__all__ = ["BATCH_TOKENS", "LayoutError", "Model"]
