"""One frame for every verb: Hydra composes conf/VERB.yaml, `load` checks it, and bad input ends in one sentence.

A bug keeps its traceback; an error of the user never shows one.
"""

import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig

from storydiffusion.config.loading import closest_key, dictionary_keys, keys, load
from storydiffusion.config.prose import PROSE, quote_prose
from storydiffusion.config.renamed import explain_renamed
from storydiffusion.config.sweep import experiment_sweeps, job_name
from storydiffusion.errors import UserError

Config = TypeVar("Config")

CONF = Path(__file__).resolve().parents[1] / "conf"
"""The YAML files: conf/ of a checkout, by a link, or their copy in an installed package."""

CLASSES = ("_target_", "()", "hydra.callbacks", "hydra/callbacks")
"""Parts of an override that name a class or function to call."""

FORMER_GROUP = re.compile(r"(override |could not (load|find) )'(?P<key>[\w/]+?)(/(?P<value>\w+))?'", re.IGNORECASE)
"""Where Hydra's messages name a group, or a group and its choice, that do not exist."""

INTERRUPTED = 130  # the shell's convention: 128 + SIGINT


@dataclass(frozen=True)
class Command(Generic[Config]):
    """A verb: `function(config)`, where `config` is the composed configuration loaded strictly as `schema`.

    With `choose`, the composed configuration decides its schema; `schema` then serves "did you mean" alone.
    """

    function: Callable[[Config], None]
    schema: type[Config]
    choose: Callable[[DictConfig], type[Config]] | None = None

    def __call__(self, config: Config) -> None:
        self.function(config)

    def load(self, composed: DictConfig) -> Config:
        return load(self.choose(composed) if self.choose else self.schema, composed)


def command(
    schema: type[Config], choose: Callable[[DictConfig], type[Config]] | None = None
) -> Callable[[Callable[[Config], None]], Command[Config]]:
    """Turn `function(config)` into a `Command` of this schema."""
    return lambda function: Command(function, schema, choose)


def run(verb: Command, config_name: str, arguments: Sequence[str], program: str, conf: Path = CONF) -> None:
    """Compose conf/{config_name}.yaml with the command line's `arguments` and run `verb`.

    Ends the process with exit code 1 for bad input (one sentence on stderr, after `program`), 75 when a signal stopped
    it and its state is saved, 130 when interrupted.
    """
    given, is_composed = list(sys.argv), False

    def task(composed: DictConfig) -> None:
        nonlocal is_composed
        is_composed, sys.argv = True, given  # launchers of further processes repeat the whole command line
        is_sweep = HydraConfig.get().mode is RunMode.MULTIRUN
        if not is_sweep and (swept := experiment_sweeps(HydraConfig.get())):
            fail(program, f"this experiment is a sweep over {', '.join(swept)}: add -m")
        try:
            if is_sweep:
                _give_own_folder(composed, verb)
            verb(verb.load(composed))
        except UserError as error:
            if is_sweep:  # the other jobs still run
                raise
            fail(program, str(error))

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
    for library in ("DIFFUSERS", "TRANSFORMERS"):  # effective only before they are imported
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    try:
        sys.argv = [given[0], *_checked(_in_hydras_grammar(arguments, verb.schema), verb.schema, program)]
        hydra.main(config_path=str(conf), config_name=config_name, version_base="1.3")(task)()
    except UserError as error:
        fail(program, str(error))
    except Exception as error:
        if is_composed:  # a bug
            raise
        fail(program, _one_sentence(error, verb.schema))
    except KeyboardInterrupt as interrupt:
        fail(program, str(interrupt) or "interrupted", INTERRUPTED)
    finally:
        sys.argv = given


def compose_config(verb: Command[Config], config_name: str, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration that `verb` runs with. Raises UserError, or Hydra's errors of composing."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return verb.load(hydra.compose(config_name, _in_hydras_grammar(overrides, verb.schema)))


def fail(program: str, sentence: str, code: int = 1) -> NoReturn:
    """End the process with one sentence on stderr."""
    print(f"{program}: {sentence}", file=sys.stderr)
    sys.exit(code)


def _checked(arguments: list[str], schema: type, program: str) -> list[str]:
    """Return the arguments as Hydra should see them, once flags and overrides are known to be allowed."""
    parsed, known = _parse(arguments, program), {*keys(schema), "experiment"}
    for override in parsed.overrides:
        if not override.startswith(tuple(f"{key}=" for key in PROSE)) and any(
            sign in override for sign in CLASSES
        ):  # hydra.callbacks and the factories of logging call what they name
            fail(program, f"{override!r} names a class or function to call, which no setting here does: leave it out")
        key, _, value = override.lstrip("+~").partition("=")
        if renamed := explain_renamed(key.replace("/", "."), known, value):
            fail(program, renamed)
    if parsed.multirun and parsed.overrides:
        arguments.insert(arguments.index(parsed.overrides[0]), _exclude_shared(parsed.overrides))
    return arguments


def _in_hydras_grammar(arguments: Sequence[str], schema: type) -> list[str]:
    """Write for Hydra what it would refuse although it has one meaning.

    A value with an equals sign, as in `baseline_job=csa.rate=1`, is quoted; so are such values in a list.
    Prose, such as an idea, is quoted whatever it contains.
    `methods.NAME=…` gets ++ where `methods` is a dictionary, whose keys the user chooses.
    """
    adapted = []
    for argument in map(quote_prose, arguments):
        key, _, value = argument.partition("=")
        inner = value[1:-1] if value.startswith("[") and value.endswith("]") else value
        if "=" in inner and not set(inner) & set("'\"[{("):
            quoted = [f"'{item}'" for item in inner.split(",")]
            argument = f"{key}='{value}'" if inner is value else f"{key}=[{','.join(quoted)}]"
        is_new = key.partition(".")[0] in dictionary_keys(schema)
        adapted.append(f"++{argument}" if is_new else argument)
    return adapted


def _parse(arguments: list[str], program: str) -> Namespace:
    """Parse Hydra's own flags; a wrong one ends in one sentence."""
    parser = get_args_parser()

    def error(message: str) -> NoReturn:
        fail(program, f"{message}: write settings as key=value, and see --help and --hydra-help")

    parser.error = error
    parsed = parser.parse_args(arguments)
    if parsed.experimental_rerun is not None:  # unpickles a file
        error("--experimental-rerun is not available")
    return parsed


def _exclude_shared(overrides: Sequence[str]) -> str:
    """Return the override that drops what all jobs of a sweep share from Hydra's name of each job."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    shared = [f"'{override.key_or_group}'" for override in parsed if not override.is_sweep_override()]
    return f"hydra.job.config.override_dirname.exclude_keys=[{','.join(shared)}]"


def _give_own_folder(composed: DictConfig, verb: Command) -> None:
    """Give a job of a sweep its own folder, below that of the run and named after what is swept.

    The name depends on the overrides alone, so a requeued job finds its folder again. A run_dir written in terms of
    other settings stays as it is.
    """
    if "run_dir" not in composed:
        return
    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    if any(override.lstrip("+").startswith("run_dir=") and "$" in override for override in overrides):
        return
    folder = verb.load(composed).run_dir if composed.run_dir is None else composed.run_dir
    composed.run_dir = str(Path(folder) / job_name(overrides, hydra_config))


def _one_sentence(error: Exception, schema: type) -> str:
    """Say what Hydra found wrong while composing, with the closest valid choice or key."""
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: write overrides as key=value, and quote values with special characters"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, wrong = (error.missing_cfg_file or "").rpartition("/")
        return (
            explain_renamed(group, [group], wrong)
            or f"{group} has no choice {wrong!r}: choose one of {', '.join(sorted(error.options))}"
        )
    if former := FORMER_GROUP.search(str(error)):  # in the defaults list of an experiment
        key, value = former["key"].replace("/", "."), former["value"]
        if renamed := explain_renamed(key, {*keys(schema), "experiment"}, value):
            return renamed
    cause = error.__cause__
    key = getattr(cause, "full_key", None)
    if isinstance(error, ConfigCompositionException) and key:
        closest = closest_key(key, schema)
        return f"there is no key {key!r}" + (
            " in this choice of groups" if closest == key else f"; did you mean {closest!r}?"
        )
    return f"cannot compose the configuration: {' '.join(str(cause or error).split())}"
