"""How a YAML file and the command line become a config: layers, merging, and errors that name the nearest key.

Order of precedence: the dataclasses' defaults < the file named by `base:` < the YAML < `key=value` arguments.
A YAML holds deltas only. Its `schema:` says which dataclass it fills (a name in SCHEMAS; `train` is the default).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, ConfigTypeError, OmegaConfBaseException
from yaml import YAMLError

from la4vla.config.construct import ConstructConfig, validate_construct
from la4vla.config.gpla import GplaConfig, validate_gpla
from la4vla.config.hierarchical import HierarchicalConfig, validate_hierarchical
from la4vla.config.text_policy import TextPolicyConfig, validate_text_policy
from la4vla.config.train import TrainConfig, validate
from la4vla.types import UserError

SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "construct": ConstructConfig,
    "text_policy": TextPolicyConfig,
    "gpla": GplaConfig,
    "hierarchical": HierarchicalConfig,
}


def load(
    path: str | Path, overrides: Sequence[str] = (), schema: type | None = None, shipped: Path | None = None
) -> Any:
    """The config a YAML file describes, as an instance of its schema's dataclass, validated.

    schema: the dataclass to fill; None: the one of SCHEMAS that the file names.
    shipped: folder of files that a `base:` may name without `.yaml`, by their place in it; None: a base is a path.
    Raises UserError for an unknown key, a value of the wrong type, a missing value or settings that contradict.
    """
    layers = _layers(Path(path), shipped)
    name = next((layer.schema for layer in reversed(layers) if "schema" in layer), "train")
    if schema is None and str(name) not in SCHEMAS:
        raise UserError(f"{path}: schema `{name}` does not exist; use one of {', '.join(SCHEMAS)}.")
    merged: Any = OmegaConf.structured(schema or SCHEMAS[name])
    try:
        for layer in layers:
            merged = OmegaConf.merge(merged, {key: layer[key] for key in layer if key not in ("schema", "base")})
        # A `???` over a default is lost in the merge with the defaults: what the files say is asked by itself.
        asked = OmegaConf.merge(*layers)
        for override in overrides:
            merged, asked = _overridden(merged, override), _overridden(asked, override)
        missing = sorted(OmegaConf.missing_keys(merged) | OmegaConf.missing_keys(asked))
        if missing:
            raise UserError(f"{path}: `{missing[0]}` has no value; set it in the file or as key=value.")
        config = OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        raise UserError(f"{path}: {_unknown_key(error)}") from error
    except (ConfigTypeError, TypeError) as error:  # which of them OmegaConf raises depends on its version
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: a list stands where keys and values belong, or the reverse ({reason}).") from error
    except OmegaConfBaseException as error:
        where = f"`{error.full_key}`: " if error.full_key else ""
        raise UserError(f"{path}: {where}{str(error).splitlines()[0]}") from error
    if isinstance(config, TrainConfig):
        validate(config)
        for stage in config.stages.values():
            stage.mixture = {source: share for source, share in stage.mixture.items() if share}
    if isinstance(config, ConstructConfig):
        validate_construct(config)
    if isinstance(config, TextPolicyConfig):
        validate_text_policy(config)
    if isinstance(config, GplaConfig):
        validate_gpla(config)
    if isinstance(config, HierarchicalConfig):
        validate_hierarchical(config)
    return config


def overrides(path: str | Path) -> dict[str, Any]:
    """What a YAML file and the files its `base:` leads to say, merged, and nothing of the defaults: what tells two
    recipes apart, whatever keys later versions add."""
    merged = OmegaConf.to_container(OmegaConf.merge(*_layers(Path(path))))
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items() if key not in ("schema", "base")}


def to_yaml(config: Any) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def _layers(path: Path, shipped: Path | None = None, above: tuple[Path, ...] = ()) -> list[DictConfig]:
    """The YAML and the files its `base:` leads to, farthest first. above: the files that led here."""
    if not path.is_file():
        led = f"; the `base:` of {above[-1]} leads there, from its own folder" if above else "; look into configs/"
        raise UserError(f"{path}: no such config file{led}.")
    if path.resolve() in above:
        raise UserError(f"{path}: its `base:` leads back to itself; name another file there.")
    try:
        layer = OmegaConf.load(path)
    except (YAMLError, UnicodeDecodeError, OSError) as error:  # OSError: OmegaConf's word for a lone number
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(layer, DictConfig):
        raise UserError(f"{path}: a config is a mapping of keys to values.")
    if "base" not in layer:
        return [layer]
    return [*_layers(_base(path, str(layer.base), shipped), shipped, (*above, path.resolve())), layer]


def _base(path: Path, base: str, shipped: Path | None) -> Path:
    """The file that the `base:` of `path` leads to."""
    if shipped is None or base.endswith(".yaml"):
        return path.parent / base
    names = sorted(str(file.relative_to(shipped).with_suffix("")) for file in shipped.rglob("*.yaml"))
    if base not in names:
        raise UserError(
            f"{path}: its `base: {base}` is none that ships; use one of {', '.join(names)}, or a path to a .yaml file."
        )
    return shipped / f"{base}.yaml"


def _overridden(config: Any, override: str) -> Any:
    """`config` with a key=value of the command line merged into it; `key=` is the empty string."""
    if "=" not in override:
        raise UserError(f"`{override}` is not of the form key=value.")
    try:
        return OmegaConf.merge(config, OmegaConf.from_dotlist([override + '""' * override.endswith("=")]))
    except YAMLError as error:
        raise UserError(f"`{override}`: not valid YAML ({' '.join(str(error).split())}); close or quote it.") from error


def _unknown_key(error: ConfigKeyError) -> str:
    known = [item.name for item in fields(error.object_type)] if is_dataclass(error.object_type) else []
    nearest = difflib.get_close_matches(str(error.key), known, n=1, cutoff=0.0)
    hint = f"; the nearest key is `{nearest[0]}`" if nearest else ""
    return f"unknown key `{error.full_key}`{hint}."
