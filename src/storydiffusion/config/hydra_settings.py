"""Which of Hydra's own settings a configuration file and the command line may set: those that call nothing.

Hydra imports and calls what its callbacks, launcher, sweeper and logging handlers name. `check_composed` therefore
compares the part hydra.* of a composed configuration with the same part composed only from this package's files, and
refuses every difference but those listed here. It runs before Hydra acts on the configuration.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from storydiffusion.errors import UserError

FILES_MAY_SET = (
    "run.dir", "sweep.dir", "sweep.subdir", "sweeper.params", "sweeper.max_batch_size", "output_subdir", "verbose",
    "help", "hydra_help",
)  # fmt: skip
"""Keys of hydra.* that an experiment, or any other configuration file, may set."""

GROUPS = ("hydra/launcher", "hydra/job_logging", "hydra/hydra_logging")
"""Groups whose choices, of this package's conf/ and of Hydra, the command line may select."""

COMMAND_LINE_MAY_SET = (*(f"hydra.{key}" for key in FILES_MAY_SET), *GROUPS, "hydra.launcher.KEY", "hydra.job.name")

WRITTEN_BY_HYDRA = ("overrides", "runtime", "job.override_dirname", "job.config_name", "mode")

INSTANTIATED = ("launcher", "sweeper")
CALLS = {"_target_", "()", "class"}
"""Keys whose values Hydra or logging calls."""

KeyPath = tuple[str, ...]


def is_hydras(override: Override) -> bool:
    """Return whether an override changes Hydra's own settings rather than those of a verb."""
    return override.key_or_group.startswith(("hydra.", "hydra/")) or override.key_or_group == "hydra"


def check_command_line(overrides: Sequence[Override]) -> None:
    """Refuse what the command line may not set of hydra.*. Raises UserError."""
    for override in filter(is_hydras, overrides):
        key = override.key_or_group
        path = tuple(key.split("."))
        is_launchers = path[:2] == ("hydra", "launcher") and len(path) > 2 and not CALLS & set(path)
        is_group = key in GROUPS and override.package is None
        if not (is_group or is_launchers or key == "hydra.job.name" or _is_listed(path[1:])):
            allowed = ", ".join(COMMAND_LINE_MAY_SET)
            raise UserError(f"{key} may not be set: leave it out; of Hydra's settings the command line sets {allowed}")


def check_swept(overrides: Sequence[Override]) -> None:
    """Refuse what an experiment's hydra.sweeper.params may not set of hydra.*. Raises UserError."""
    for override in filter(is_hydras, overrides):
        if not _is_listed(tuple(override.key_or_group.split("."))[1:]):
            raise _refusal(override.key_or_group)


def check_composed(composed: DictConfig, own: DictConfig, is_sweep: bool) -> None:
    """Refuse a composed configuration that makes Hydra call what a file names.

    Args:
        composed: with its part hydra.*, before Hydra acts on it.
        own: the same, only of this package's files and the allowed settings of the command line.
        is_sweep: a launcher and a sweeper are created from it.

    Raises:
        UserError: names the key.
    """
    task, found = _split(composed)
    _, expected = _split(own)
    for path, _ in _leaves(task):
        if calls := {"_target_", "()"} & set(path):
            raise UserError(f"{'.'.join(path)} names code to call, which no setting does: leave out {min(calls)}")
    before, after = dict(_leaves(expected)), dict(_leaves(found))
    for path in sorted(before.keys() | after.keys()):
        is_equal = path in before and path in after and before[path] == after[path]
        is_allowed = _is_listed(path) and not CALLS & set(path)
        if not (is_equal or is_allowed or _is_below(path, WRITTEN_BY_HYDRA)):
            raise _refusal(".".join(("hydra", *path)))
    for key in ("hydra.run.dir", "hydra.sweep.dir"):
        if not isinstance(folder := OmegaConf.select(composed, key), str):
            raise UserError(f"{key}={folder} is not a folder: write {key}=DIR")
    if is_sweep:
        _check_instantiated(composed.hydra)


def _check_instantiated(hydra: DictConfig) -> None:
    """Check the launcher and the sweeper with their interpolations resolved, as Hydra creates them.

    Their own class is known to be this package's choice; nothing inside them may name another.
    """
    for part in INSTANTIATED:
        for path, value in _leaves(OmegaConf.to_container(hydra[part], resolve=True), (part,)):
            is_call = CALLS & set(path) or str(value).startswith(("ext://", "cfg://"))
            if is_call and path != (part, "_target_"):
                raise UserError(f"hydra.{'.'.join(path)}={value} names code to call: leave it out")


def _split(config: DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of the verb, and those of Hydra; interpolations are kept as written."""
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    hydra = plain.pop("hydra")
    return {str(key): value for key, value in plain.items()}, hydra


def _leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield every value with its path, list items by their number; an empty container is a value."""
    if isinstance(value, dict | list) and value:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, (*path, str(key)))
    else:
        yield path, value


def _is_below(path: KeyPath, keys: Sequence[str]) -> bool:
    return any(path[: len(parts)] == parts for parts in (tuple(key.split(".")) for key in keys))


def _is_listed(path: KeyPath) -> bool:
    return _is_below(path, FILES_MAY_SET)


def _refusal(key: str) -> UserError:
    allowed = ", ".join(f"hydra.{each}" for each in FILES_MAY_SET)
    return UserError(f"{key} may not be set in a configuration file: remove it; of Hydra's settings one sets {allowed}")
