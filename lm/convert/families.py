"""The architectures that are known, and which of them a decoder is."""

from lm.convert.family import Family
from lm.convert.gpt2 import GPT2
from lm.convert.llama import LLAMA
from lm.errors import ConversionError
from lm.models.decoder import Decoder

FAMILIES = (GPT2, LLAMA)


def family_of(decoder: Decoder) -> Family:
    """The architecture that expresses every part of the decoder.

    Raises:
        ConversionError: none does; the message names for each what it lacks.
    """
    reasons = {family.name: family.refusals(decoder) for family in FAMILIES}
    for family in FAMILIES:
        if not reasons[family.name]:
            return family
    lacking = "; ".join(
        f"{name} has no {', no '.join(dict.fromkeys(found))}" for name, found in reasons.items()
    )
    raise ConversionError(
        f"this model has parts that no architecture known here can express: {lacking}. "
        "Train with one family's parts to export, or keep the checkpoint."
    )
