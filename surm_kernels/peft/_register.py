"""Making a tuning method known to PEFT, whose list of methods is an enumeration that has no place for others."""

from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType, register_peft_method


def peft_type(name: str) -> Any:
    """The member of PEFT's enumeration with a name, which is added to it where it is not there."""
    known = PeftType.__members__.get(name)
    if known is not None:
        return known
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType.__members__)
    type.__setattr__(PeftType, name, member)  # an Enum class refuses new attributes once it has the member in its maps
    PeftType._member_map_[name] = member
    PeftType._member_names_.append(name)
    PeftType._value2member_map_[name] = member
    return member


def register(name: str, config: type, tuner: type) -> None:
    """Makes a method known under a name, with the prefix `name.lower() + "_"`; a second time it replaces the first."""
    member = peft_type(name)
    for mapping in (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING):
        mapping.pop(member, None)
    prefix = name.lower() + "_"
    for other, taken in PEFT_TYPE_TO_PREFIX_MAPPING.items():
        if taken == prefix:
            raise RuntimeError(f"PEFT has a method {other} with the prefix {prefix} already")
    register_peft_method(name=name.lower(), config_cls=config, model_cls=tuner)
