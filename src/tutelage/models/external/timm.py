"""``timm/NAME``."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tutelage.errors import TutelageError
from tutelage.models.external.common import BuiltModel, ModelSpec, build_errors, import_extra, mean_std_of, suggestion


def from_timm(spec: str, name: str, requirements: ModelSpec) -> BuiltModel:
    """One of timm's architectures, with its published weights if they are wanted."""
    timm = import_extra(spec, "timm", extra="timm", advice=_keeping_torch())
    known = timm.list_models()
    # A tag after a dot names the weights; with a colon it is one of timm's addresses (hf-hub:, local-dir:).
    if ":" not in name and name.partition(".")[0] not in known:
        raise TutelageError(
            f"timm has no model {name!r}{suggestion(name, known)}: timm.list_models() lists all {len(known)}"
        )
    shape = requirements.image_shape(spec)
    create = functools.partial(
        timm.create_model,
        name,
        pretrained=requirements.pretrained,
        in_chans=shape[0],
        **({"num_classes": requirements.num_classes} if requirements.num_classes else {}),
    )
    with build_errors(spec):
        module: nn.Module = create()
        facts = _timm_facts(module)
        size = facts.get("input_size")
        if facts.get("fixed_input_size") and size is not None and tuple(size[1:]) != shape[1:]:
            # A transformer with a table of positions: it must know the size of its images from the start.
            module = create(img_size=shape[1:])
    if not requirements.pretrained:
        return BuiltModel(module)
    return BuiltModel(module, mean_std_of(facts.get("mean"), facts.get("std"), shape[0]), size and tuple(size))


def _keeping_torch() -> str:
    """How to install timm beside a build of torch that PyPI does not have, which its dependencies would replace."""
    version, _, build = torch.__version__.partition("+")
    if not build:
        return ""
    return (
        f"; as that may replace your torch {torch.__version__} by another build, rather: pip install --no-deps timm, "
        f"and pip install --no-deps torchvision --index-url https://download.pytorch.org/whl/{build} (the release "
        f"for torch {version})"
    )


def _timm_facts(module: nn.Module) -> Mapping[str, Any]:
    facts = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None) or {}
    return facts if isinstance(facts, Mapping) else vars(facts)
