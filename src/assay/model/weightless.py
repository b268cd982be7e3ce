"""A model without its weights, for what its shapes alone tell: built from a config on the meta device, in no memory."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from assay.errors import bad_argument


def without_weights(config: Mapping[str, Any], name: str) -> tuple[Any, nn.Module]:
    """(the text part of a `config.json`, its language model). Raises UsageError for a config that makes none."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = dict(config)
    kind = settings.pop("model_type", None)
    try:
        own = AutoConfig.for_model(str(kind), **settings).get_text_config()
        with torch.device("meta"):
            return own, AutoModelForCausalLM.from_config(own)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, StrictDataclassError) as error:
        raise bad_argument("MODEL", f"{name}, model_type {kind}", "the config.json of a decoder that the installed transformers"
                           " knows", str(error).splitlines()[0]) from error  # fmt: skip
