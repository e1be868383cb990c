"""What Hydra finds wrong while composing a configuration, as one sentence in the user's words."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra.errors import MissingConfigException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, GrammarParseError, InterpolationResolutionError

from storydiffusion.config.loading import closest_key, explain_reference, keys
from storydiffusion.config.renamed import explain_renamed
from storydiffusion.config.value_types import show
from storydiffusion.errors import UserError

FORMER_GROUP = re.compile(r"(override |could not (load|find) )'(?P<key>[\w/]+?)(/(?P<value>\w+))?'", re.IGNORECASE)
"""Where Hydra's messages name a group, or a group and its choice, that do not exist."""

IN_FILE = re.compile(r"In '(?P<file>[^']+/[^']+)': ")
"""Where they name the file of a group whose defaults list or settings are at fault."""

NO_GROUP = re.compile(r"(Could not override|Could not delete|Could not delete from config\.) '(?P<key>[^'=]+)")
"""Where they name a key or group that is not there."""


def explain_composition(error: Exception, schema: type, overrides: Sequence[str], conf: Path) -> str:
    """Return one sentence on what is wrong, with the closest valid choice or key.

    Args:
        schema: of the command.
        conf: folder of the configuration files of all commands.
    """
    key = str(getattr(error.__cause__ or error, "full_key", None) or "")
    return (
        (str(error) if isinstance(error, UserError) else None)
        or _explain_choice(error)
        or _explain_former_group(error, schema)
        or _explain_reference(error, _at_fault(key, overrides))
        or _explain_file(error, conf)
        or _explain_key(error, key, schema)
        or _explain_override(_at_fault(key, overrides))
    )


def _explain_choice(error: Exception) -> str | None:
    if not (isinstance(error, MissingConfigException) and error.options):
        return None
    group, _, wrong = (error.missing_cfg_file or "").rpartition("/")
    closest = difflib.get_close_matches(wrong, error.options, 1)
    hint = f"did you mean {closest[0]!r}? Choose" if closest else "choose"
    refusal = f"{group} has no choice {wrong!r}: {hint} one of {', '.join(sorted(error.options))}"
    return explain_renamed(group, [group], wrong) or refusal


def _explain_former_group(error: Exception, schema: type) -> str | None:
    if not (former := FORMER_GROUP.search(str(error))):
        return None
    return explain_renamed(former["key"].replace("/", "."), {*keys(schema), "experiment"}, former["value"])


def _explain_reference(error: Exception, setting: str) -> str | None:
    is_reference = isinstance(error.__cause__ or error, GrammarParseError | InterpolationResolutionError)
    return explain_reference(setting) if is_reference else None


def _explain_file(error: Exception, conf: Path) -> str | None:
    if isinstance(error, yaml.YAMLError):
        return f"a configuration file is not valid YAML ({show(str(error))}): correct it"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot use {error.filename}: {error.strerror.lower()}; choose another folder"
    if not (found := IN_FILE.search(str(error))):
        return None
    if group := NO_GROUP.search(str(error)):
        commands = " or ".join(_find_commands(group["key"], conf))
        mend = f"it is for {commands}" if commands else "choose another file"
        return f"{found['file']}.yaml selects {group['key']}, which this command does not have: {mend}"
    return f"{found['file']}.yaml does not fit the other files: correct its defaults list and settings"


def _find_commands(group: str, conf: Path) -> list[str]:
    """Return the commands that have a group, by the defaults lists of their files."""
    files = sorted(conf.glob("*.yaml"))
    defaults = {file.stem: yaml.safe_load(file.read_bytes()).get("defaults", []) for file in files}
    return [
        name.replace("_", "-")
        for name, each in defaults.items()
        if any(isinstance(item, dict) and group in item for item in each)
    ]


def _explain_key(error: Exception, key: str, schema: type) -> str | None:
    group = NO_GROUP.search(str(error))
    if group is None and not isinstance(error.__cause__ or error, ConfigKeyError | ConfigAttributeError):
        return None
    key = key or (group["key"] if group else "")
    closest = closest_key(key, schema)
    hint = " in this choice of groups" if closest == key else f"; did you mean {closest!r}?"
    return f"there is no key {key!r}{hint}"


def _explain_override(given: str) -> str:
    if given.startswith("+"):
        return f"cannot add {given}, because it exists already: write {given.lstrip('+')}"
    return f"cannot compose the configuration from {given}: correct this; --cfg job shows all settings"


def _at_fault(key: str, overrides: Sequence[str]) -> str:
    """Return the override of this key; all that the user gave where Hydra names no key."""
    named = [each for each in overrides if key and each.lstrip("+~").partition("=")[0] == key]
    given = named or [each for each in overrides if not each.startswith(("hydra.mode=", "hydra.job.config."))]
    return ", ".join(map(show, given)) or "the configuration files"
