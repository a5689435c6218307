"""The model card: what the run knows of itself, as the README of an export."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a run tells of the model it made."""

    name: str
    length: int
    """Tokens of a training sequence."""
    step: int
    tokens: int
    """Tokens trained on, repetitions included."""
    data: tuple[str, ...] = ()
    """The corpora, in words."""
    held_out_loss: float | None = None
    """Mean over held-out tokens, in nats; None: not measured."""
    bits_per_byte: float | None = None
    """Held-out loss in bits a UTF-8 byte of text."""
    commit: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    licence: str | None = None
    """An identifier as the Hugging Face hub knows them, such as ``apache-2.0``."""


def write_card(facts: Facts, *, architecture: str, parameters: int, dtype: str) -> str:
    """The card's text."""
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": facts.licence or "unknown",
        "tags": ["pretrained", "jax"],
    }
    # JSON values are YAML values, whatever a name holds.
    head = "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items())
    rows = "\n".join(f"| {what} | {value} |" for what, value in _rows(facts))
    return f"""---
{head}
---

# {facts.name}

A {architecture} of {parameters:,} parameters, pretrained with lm and stored in {dtype}.

| | |
|---|---|
| parameters | {parameters:,} |
{rows}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH_OF_THIS_FOLDER")
model = AutoModelForCausalLM.from_pretrained("PATH_OF_THIS_FOLDER")
ids = tokenizer("Once", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=50, do_sample=True)[0]))
```

It is a pretrained model: it continues text, follows no instructions, and repeats what its data
says, right or wrong.
"""


def _rows(facts: Facts) -> Iterator[tuple[str, str]]:
    yield "steps", f"{facts.step:,}"
    yield "tokens seen", f"{facts.tokens:,}"
    yield "length of a sequence", f"{facts.length:,} tokens"
    yield "data", "; ".join(facts.data).replace("|", "\\|") or "not recorded"
    if facts.held_out_loss is None:
        yield "held out", "not measured"
    else:
        yield "held-out loss", f"{facts.held_out_loss:.4f} nats a token"
        yield "held-out perplexity", f"{math.exp(facts.held_out_loss):.2f}"
    if facts.bits_per_byte is not None:
        yield "held-out bits per byte", f"{facts.bits_per_byte:.4f}"
    yield "commit", facts.commit or "not recorded"
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    yield "versions", versions or "not recorded"
    yield "licence", facts.licence or "not stated"
