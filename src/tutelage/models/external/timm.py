"""``timm/NAME``: architectures of timm."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tutelage.errors import TutelageError
from tutelage.models.external.common import BuiltModel, ModelSpec, build_errors, import_extra, mean_std_of, suggestion


def from_timm(spec: str, name: str, requirements: ModelSpec) -> BuiltModel:
    """An architecture of timm, with its published weights if ``requirements.pretrained``.

    Raises:
        TutelageError: timm is missing or has no such model, or building it failed.
    """
    timm = import_extra(spec, "timm", extra="timm", advice=_keeping_torch())
    names = timm.list_models()
    # A tag after a dot names the weights. A name with a colon is an address (hf-hub:, local-dir:).
    if ":" not in name and name.partition(".")[0] not in names:
        raise TutelageError(
            f"timm has no model {name!r}{suggestion(name, names)}: timm.list_models() lists all {len(names)}"
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
        cfg = _pretrained_cfg(module)
        size = cfg.get("input_size")
        fixed = cfg.get("fixed_input_size") and not (requirements.own_size and requirements.pretrained)
        if fixed and size is not None and tuple(size[1:]) != shape[1:]:
            # A transformer with position embeddings: it must be built for the image size.
            module = create(img_size=shape[1:])
    if not requirements.pretrained:
        return BuiltModel(module)
    return BuiltModel(module, mean_std_of(cfg.get("mean"), cfg.get("std"), shape[0]), size and tuple(size))


def _keeping_torch() -> str:
    """How to install timm without replacing a build of torch that is not on PyPI."""
    version, _, build = torch.__version__.partition("+")
    if not build:
        return ""
    return (
        f"; as that may replace your torch {torch.__version__} by another build, instead run: pip install --no-deps "
        f"timm, and pip install --no-deps torchvision --index-url https://download.pytorch.org/whl/{build} (the "
        f"release for torch {version})"
    )


def _pretrained_cfg(module: nn.Module) -> Mapping[str, Any]:
    cfg = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None) or {}
    return cfg if isinstance(cfg, Mapping) else vars(cfg)
