"""A tiny language model with a dictionary whose latents are known: each of the first reads one word, the others nothing.

1. A Llama of three layers with random weights and a vocabulary of whole words `w0`, `w1`, ...
2. The embeddings of the first twelve words are `LOUD` times as long as all others: a trained model could have that, one whose
   weights are drawn again does not.
3. The dictionary reads the embedding. Latent i is the direction of word `order[i]`, with a threshold that only that word
   passes; latents beyond them have thresholds that nothing passes.
4. Documents are random words, those that have a latent four times as often as the others.

What a map of it must come to is known: a rule of one word per latent, true on any text. Real latents are seldom so clear.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from assay.data.corpora import Corpus, Document
from assay.features.dictionary import Dictionary, Spec, make_dictionary
from assay.model.model import Model
from assay.testing.compiler import tokenizer_of

READERS, WIDTH, D = 12, 16, 32
WORDS = ("?", *(f"w{number}" for number in range(150)))
LOUD, THRESHOLD, NEVER = 8.0, 0.8, 1e3


class Given(Corpus):
    """Documents that are written down."""

    def __init__(self, texts: Sequence[str], name: str) -> None:
        self.name, self.given = name, list(texts)

    @property
    def digest(self) -> str:
        from assay.records import digest

        return digest([self.name, self.given])

    def read(self) -> Iterator[Document]:
        return iter(Document(f"{self.name}-{number}", text) for number, text in enumerate(self.given))


def word_corpus(seed: int = 0, n: int = 420, length: int = 30, name: str = "words") -> Given:
    """Documents of random words."""
    rng = np.random.default_rng(seed)
    weights = np.r_[np.full(READERS, 2.0), np.full(len(WORDS) - 1 - READERS, 0.5)]
    return Given([" ".join(rng.choice(WORDS[1:], size=length, p=weights / weights.sum())) for _ in range(n)], name)


def word_model(seed: int = 0) -> Model:
    """The model."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(seed)
    config = LlamaConfig(hidden_size=D, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
                         vocab_size=199,
                         max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0)  # fmt: skip
    hf = AutoModelForCausalLM.from_config(config).eval()
    made = Model(hf=hf, tokenizer=None, name="word-latents", source="planted", prepend_bos=False, bos_id=None)
    made.tokenizer = tokenizer_of(WORDS)
    with torch.no_grad():
        hf.get_input_embeddings().weight[[_id(made, word) for word in range(READERS)]] *= LOUD
    return made


def word_dictionary(model: Model, name: str = "words", order: Sequence[int] = range(READERS)) -> Dictionary:
    """The dictionary; `order`: the word that each of its first latents reads."""
    table = model.hf.get_input_embeddings().weight.detach()  # type: ignore[operator]
    ids, n = [_id(model, word) for word in order], len(order)
    spec = Spec("relu", WIDTH, D, D, inputs=("embed",), outputs=("embed",), skip_first=1, centred=False)
    made = make_dictionary(spec, name)
    rows = torch.cat([table[ids], torch.randn(WIDTH - n, D, generator=torch.Generator().manual_seed(1))])
    unit = rows / rows.norm(dim=1, keepdim=True)
    with torch.no_grad():
        made.W_enc.copy_(unit)
        made.W_dec.copy_(unit)
        made.b_enc.copy_(-torch.cat([THRESHOLD * table[ids].norm(dim=1), torch.full((WIDTH - n,), NEVER)]))
    made.requires_grad_(False)
    return made


def _id(model: Model, word: int) -> int:
    return model.tokens([f"w{word}"])[0][-1]
