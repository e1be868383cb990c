"""The arguments `key=value` of a command line, as Hydra reads them; what it would misread is explained or adapted."""

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import OverrideParseException

from storydiffusion.config.loading import dictionary_keys, keys
from storydiffusion.config.prose import quote_prose
from storydiffusion.config.renamed import explain_renamed
from storydiffusion.config.value_types import in_shell, quote, show
from storydiffusion.errors import UserError

RESERVED = set("'\"[]{}(),\\")
"""Characters with a meaning in values: quotes, lists, dictionaries, functions, sweeps and escapes."""


def adapt(arguments: Sequence[str], schema: type, conf: Path) -> list[str]:
    """Write for Hydra what it would refuse although it has one meaning.

    Values with an equals sign or with letters beyond ASCII, as in `baseline_job=csa.rate=1` and `story=故事.txt`, are
    quoted, also in a list; so is prose, such as an idea, whatever it contains. `methods.NAME=…` gets ++ where `methods`
    is a dictionary, whose keys the user chooses. A group with the choice `off` also takes false.
    """
    adapted, groups = [], _find_groups(conf)
    for argument in map(quote_prose, arguments):
        key, sign, value = argument.partition("=")
        if value.lower() == "false" and "off" in groups.get(key, ()):
            argument = f"{key}=off"
        else:
            argument = f"{key}{sign}{_quote_values(value)}"
        adapted.append(f"++{argument}" if key.partition(".")[0] in dictionary_keys(schema) else argument)
    return adapted


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Return the overrides as Hydra reads them.

    Raises:
        UserError: one is not `key=value`, or its value needs quotes; the message shows the form that works.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise UserError(_explain_unreadable(str(error.override))) from error
    for override in parsed:
        if not override.key_or_group:
            raise UserError(_explain_unreadable(str(override.input_line)))
    return parsed


def check_overrides(overrides: Sequence[Override], schema: type, conf: Path, is_sweep: bool) -> None:
    """Refuse former names, and what Hydra refuses in words of its own. Raises UserError."""
    known, groups = {*keys(schema), "experiment"}, _find_groups(conf)
    for override in overrides:
        key, _, value = str(override.input_line).lstrip("+~").partition("=")
        if renamed := explain_renamed(key.replace("/", "."), known, value):
            raise UserError(renamed)
        if override.package is not None:
            plain = f"{override.key_or_group}={value}"
            raise UserError(f"{key}={value} moves a group to another place, which is not supported: write {plain}")
        if override.is_sweep_override() and not is_sweep:
            raise UserError(_explain_several_values(override, value, key in groups))
        if key in groups:
            _check_group(override, value, groups[key])
        elif override.is_delete():
            raise UserError(f"~{key} removes a setting, but each needs a value: write {key}=VALUE")


def exclude_shared(overrides: Sequence[Override]) -> str:
    """Return the override that drops what all jobs of a sweep share from Hydra's name of each job."""
    shared = [f"'{override.key_or_group}'" for override in overrides if not override.is_sweep_override()]
    return f"hydra.job.config.override_dirname.exclude_keys=[{','.join(shared)}]"


def _quote_values(value: str) -> str:
    is_list = value.startswith("[") and value.endswith("]")
    inner = value[1:-1] if is_list else value
    if ("=" not in inner and inner.isascii()) or set(inner) & (RESERVED - {","}):
        return value
    if not is_list and "=" in inner:
        return f"'{inner}'"
    quoted = ",".join(f"'{item}'" for item in inner.split(","))
    return f"[{quoted}]" if is_list else quoted


def _explain_unreadable(text: str) -> str:
    key, sign, value = text.partition("=")
    if not sign or not _is_readable(f"{key}=1"):
        return f"cannot read {show(text)!r}: write settings as key=value; --cfg job shows all keys"
    if value.startswith("[") and value.endswith("]"):
        written = f"[{','.join(_quote_literally(item.strip()) for item in value[1:-1].split(','))}]"
    else:
        written = _quote_literally(value)
    return f"cannot read {show(text)!r} as key=value: its text needs quotes, write {in_shell(key, written)}"


def _quote_literally(text: str) -> str:
    """Quote text, without the quotes around it, so that `${` is not a reference."""
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return quote((text[1:-1] if is_quoted else text).replace("${", "\\${"))


def _is_readable(text: str) -> bool:
    try:
        return bool(OverridesParser.create().parse_overrides([text])[0].key_or_group)
    except OverrideParseException:
        return False


def _explain_several_values(override: Override, value: str, is_group: bool) -> str:
    key = override.key_or_group
    if is_group or override.value_type is not ValueType.SIMPLE_CHOICE_SWEEP:
        return f"{key}={value} gives several values: add -m for a sweep, or give one"
    items, text = in_shell(key, f"[{value}]"), in_shell(key, quote(value))
    return f"{key}={value} gives several values: add -m for a sweep, or write {items} for a list, or {text} for text"


def _find_groups(conf: Path) -> dict[str, list[str]]:
    """Return the choices of every group, such as `csa` and `hydra/launcher`."""
    folders = {folder for folder in conf.rglob("*") if folder.is_dir()}
    return {
        folder.relative_to(conf).as_posix(): sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders
    }


def _check_group(override: Override, value: str, choices: Sequence[str]) -> None:
    if override.is_delete() or override.is_sweep_override():
        return
    found = override.value()
    names = found if isinstance(found, list) else [found]
    if not (isinstance(found, dict) or all(isinstance(name, str) for name in names)):
        key = override.key_or_group
        raise UserError(f"{key} has no choice {value!r}: leave it out, or choose one of {', '.join(choices)}")
