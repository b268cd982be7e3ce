"""Activations from a vLLM server that writes out hidden states, behind the same engine call.

    vllm serve MODEL --no-enable-chunked-prefill
        --speculative_config '{"method": "extract_hidden_states", "num_speculative_tokens": 1,
                               "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": [16]}}}'
        --kv_transfer_config '{"kv_connector": "ExampleHiddenStatesConnector", "kv_role": "kv_producer",
                               "kv_connector_extra_config": {"shared_storage_path": "/dev/shm/states"}}'

1. One request per row: POST /v1/completions with its token ids. The answer names a safetensors file in a folder that both
   see, with `hidden_states` (token, layer, d) and `token_ids`; a lock beside it is held until it is written. It is deleted
   when it was read. (docs.vllm.ai, "Hidden State Extraction".) Layer id k there is resid_post.(k - 1) here.
2. Which layers these are is not taken on trust. Rows of random tokens are read by the same model here too: a column of the
   server is the residual stream that it is within `TOLERANCE` of (relative, median over tokens), and `APART` times nearer
   than to any other. What no column is, is refused; and so are tokens that are not those that were sent.
3. A server reads, and nothing else: edits, logits, gradients, resumed runs, generation are refused.

Run against a server of our own that speaks this protocol; vLLM itself was not run.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from assay.errors import ModelError, SiteError, UsageError
from assay.model.hooks import Sink
from assay.model.model import Model
from assay.model.request import Batch
from assay.model.request import Request as Asked
from assay.model.run import Engine
from assay.sites import Site, parse_site

TOLERANCE, APART = 0.05, 3.0  # bf16 over a hundred layers stays below; neighbouring layers are further apart
ROWS, LENGTH, AT_ONCE, SECONDS, TRIES = 4, 24, 32, 600.0, 3
DIRECT = build_opener(ProxyHandler({}))


@dataclass(frozen=True)
class StateServer:
    """A server's address. `name`: the model's, as the server calls it."""

    url: str
    name: str

    def states(self, tokens: list[int]) -> Float[Tensor, "token layer d"]:
        """Hidden states of a row. Raises ModelError where the server does not give them."""
        asked = {"model": self.name, "prompt": tokens, "max_tokens": 1, "temperature": 0}
        answer = _get(f"{self.url}/v1/completions", asked)
        told = (answer.get("kv_transfer_params") or {}).get("hidden_states_path")
        if not isinstance(told, str) or not told.endswith(".safetensors"):
            raise ModelError(f"--served: {self.url} names no file of hidden states; start it with extract_hidden_states and"
                             " ExampleHiddenStatesConnector (docs/scale.md).")  # fmt: skip
        found = _read(Path(told))
        states, read = found["hidden_states"], found["token_ids"].flatten().tolist()
        if read[: len(tokens)] != tokens or states.ndim != 3 or len(states) < len(tokens):
            raise ModelError(f"--served: {self.url} read {len(read)} tokens into states {tuple(states.shape)}; allowed: the"
                             f" {len(tokens)} tokens that were sent, as they were sent.")  # fmt: skip
        return states[: len(tokens)]


class ServedModel(Model):
    """A model whose residual streams are read by a server; all else of it is what was loaded here. Made by `open_served`."""

    def __init__(self, local: Model, server: StateServer, columns: dict[Site, int], dtype: torch.dtype) -> None:
        super().__init__(local.hf, local.tokenizer, local.name, local.source, local.prepend_bos, local.bos_id, local.modified)
        self.__dict__["proof"] = replace(local.proof, layout=replace(local.layout, prefix_width=0))
        self.__dict__["engine"] = ServedEngine(self, server, columns)
        self.served_dtype = dtype

    def passport(self) -> dict[str, Any]:
        """As of the model here, with the dtype of the server's states, and who reads."""
        return {**super().passport(), "dtype": str(self.served_dtype).removeprefix("torch."), "attention": "served by vllm"}

    def generate(self, *_: Any, **__: Any) -> Any:
        """Refused."""
        raise UsageError(f"{self.name} is served: it reads residual streams and does not generate. Use load_model.")


class ServedEngine(Engine):
    """Asks a server for what a pass would see."""

    def __init__(self, model: Model, server: StateServer, columns: dict[Site, int]) -> None:
        super().__init__(model.hf, model.layout, model.pad_id, model.memory_budget)
        self.server, self.columns = server, columns

    def run(self, batch: Batch, request: Asked, sink: Sink) -> None:
        """One pass: `sink(site, value (batch, pos, d))` per site, in fp32. Raises UsageError, SiteError, ModelError."""
        if request.edits or request.logits or request.gradients or request.resume is not None:
            raise UsageError("a served model reads residual streams; allowed: captures, without edits, logits, gradients or a"
                             " resumed run. Use load_model.")  # fmt: skip
        if other := [site for site in request.captures if site not in self.columns]:
            raise SiteError(f"site {other[0]}: the server gives {', '.join(map(str, self.columns))}. Name its layer when you"
                            " start the server, or load the model here.")  # fmt: skip
        lengths = batch.lengths.tolist()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            rows = list(pool.map(self.server.states, [row[:n] for row, n in zip(batch.ids.tolist(), lengths, strict=True)]))
        for site in request.captures:
            value = torch.zeros(*batch.ids.shape, rows[0].shape[-1])
            for place, states in enumerate(rows):
                value[place, : len(states)] = states[:, self.columns[site]].float()
            if sink(site, value) is not None:
                raise UsageError(f"site {site}: a served model cannot be changed on the way. Use load_model.")


def open_served(local: Model, url: str) -> ServedModel:
    """The same model, read by a server. Raises ModelError for one that cannot be asked or gives no layers of this model."""
    url = url.rstrip("/")
    names = [str(each.get("id")) for each in _get(f"{url}/v1/models").get("data") or []]
    if len(names) != 1:
        raise ModelError(f"--served: {url} serves {', '.join(names) or 'no model'}; allowed: a server of one model.")
    server = StateServer(url, names[0])
    tokens = torch.randint(local.dims.d_vocab, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
    states = torch.stack([server.states(row) for row in tokens])
    sites = [Site("resid_pre", 0), *(Site("resid_post", layer) for layer in range(local.n_layers))]
    here = local.capture(tokens, sites)
    streams = torch.stack([torch.stack(here.rows(site)) for site in sites]).float()
    if states.shape[-1] != streams.shape[-1]:
        raise ModelError(f"--served: states of {url} have {states.shape[-1]} numbers, {local.name} has {streams.shape[-1]}.")
    columns = {}
    for column in range(states.shape[2]):
        gaps = [_gap(states[:, :, column].float(), stream) for stream in streams]
        best, second = sorted(range(len(gaps)), key=gaps.__getitem__)[:2]
        if not gaps[best] < min(TOLERANCE, gaps[second] / APART):
            raise ModelError(f"--served: layer {column + 1} of {states.shape[2]} that {url} gives is none of {local.name}'s"
                             f" residual streams; nearest is {sites[best]}, apart by {gaps[best]:.1%}."
                             " Serve the same weights.")  # fmt: skip
        columns[parse_site(str(sites[best]))] = column
    return ServedModel(local, server, columns, states.dtype)


def _gap(a: Float[Tensor, "row token d"], b: Float[Tensor, "row token d"]) -> float:
    """Relative distance, median over tokens: the first ones may be massive."""
    return float(((a - b).norm(dim=-1) / b.norm(dim=-1).clamp_min(1e-12)).median())


def _get(url: str, body: dict[str, Any] | None = None, tries: int = TRIES) -> dict[str, Any]:
    """The JSON object that is answered; a connection that breaks is tried again. Raises ModelError."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with DIRECT.open(Request(url, data, {"Content-Type": "application/json"}), timeout=SECONDS) as answer:
            return dict(json.loads(answer.read()))
    except HTTPError as error:
        said = error.read(300).decode(errors="replace").strip()
        raise ModelError(f"--served: {url} answers {error.code} ({said}).") from error
    except (OSError, HTTPException, ValueError, TypeError) as error:
        if isinstance(error, ConnectionResetError) and tries > 1:
            return _get(url, body, tries - 1)
        raise ModelError(f"--served: {url} does not answer as a server of completions ({error}).") from error


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file as soon as it is written; then it is gone. Raises ModelError."""
    import fcntl

    lock = path.with_name(f"{path.name}.lock")
    try:
        if lock.exists():
            held = os.open(lock, os.O_RDONLY)
            try:
                fcntl.flock(held, fcntl.LOCK_SH)  # waits for the writer
            finally:
                os.close(held)
        found = load_file(path)
        if missing := {"hidden_states", "token_ids"} - set(found):
            raise ModelError(f"--served: {path} has no {', '.join(sorted(missing))}.")
        path.unlink()
        lock.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"--served: {path} cannot be read ({error}). Server and client must see the same folder.") from error
    return found
