"""What train.py and infer.py share: Hydra composes, `config.load` checks, bad input ends in one sentence.

A bug of ours keeps its traceback; an error of the user never shows one.
"""

import functools
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig

from storydiffusion.config import closest_key, load
from storydiffusion.config.sweep import experiment_sweeps, job_name
from storydiffusion.errors import UserError

Config = TypeVar("Config")

CLASSES = ("_target_", "()", "hydra.callbacks", "hydra/callbacks")
"""signs of an override that names what is to be called"""

INTERRUPTED = 130  # the shell's convention: 128 + SIGINT


def command(
    schema: type[Config], config_name: str, choose: Callable[[DictConfig], type[Config]] | None = None
) -> Callable[[Callable[[Config], None]], Callable[[], None]]:
    """Turns `function(config)` into a command: `conf/{config_name}.yaml` beside its file, loaded strictly as `schema`.

    With `choose`, the composed configuration decides its schema, and `schema` is the usual one, for hints.

    Exit codes: 0 done, 1 bad input (one sentence on stderr), 75 told to stop and saved, 130 interrupted.
    """

    def decorate(function: Callable[[Config], None]) -> Callable[[], None]:
        is_composed = False

        @functools.wraps(function)
        def task(composed: DictConfig) -> None:
            nonlocal is_composed
            is_composed = True
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                _separate(composed)
            elif swept := experiment_sweeps(HydraConfig.get()):
                _fail(f"this experiment is a sweep over {', '.join(swept)}: add -m")
            try:
                function(load(choose(composed) if choose else schema, composed))
            except UserError as error:
                if HydraConfig.get().mode is RunMode.MULTIRUN:  # the other jobs of a sweep go on
                    raise
                _fail(str(error))

        conf = Path(inspect.getfile(function)).resolve().parent / "conf"
        compose_and_run = hydra.main(config_path=str(conf), config_name=config_name, version_base="1.3")(task)

        @functools.wraps(function)
        def main() -> None:
            _refuse_classes(sys.argv[1:])
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors to us instead of printing them
            for library in ("DIFFUSERS", "TRANSFORMERS"):  # set before they are imported, hours of chatter saved
                os.environ.setdefault(f"{library}_VERBOSITY", "error")
            try:
                if {"-m", "--multirun"} & set(sys.argv):
                    _name_by_what_is_swept(sys.argv)
                compose_and_run()
            except UserError as error:
                _fail(str(error))
            except Exception as error:
                if is_composed:  # a bug of ours
                    raise
                _fail(_one_sentence(error, schema))
            except KeyboardInterrupt as interrupt:
                _fail(str(interrupt) or "interrupted", INTERRUPTED)

        return main

    return decorate


def _name_by_what_is_swept(arguments: list[str]) -> None:
    """Adds the override that leaves out what all jobs of a sweep share where Hydra names a job after its overrides."""
    told = [argument for argument in arguments[1:] if not argument.startswith("-")]
    overrides = OverridesParser.create().parse_overrides(told)
    shared = [f"'{override.key_or_group}'" for override in overrides if not override.is_sweep_override()]
    if told:  # beside the others: argparse takes them from one place only
        own = f"hydra.job.config.override_dirname.exclude_keys=[{','.join(shared)}]"
        arguments.insert(arguments.index(told[0]), own)


def _separate(composed: DictConfig) -> None:
    """Gives a job of a sweep a folder of its own, below that of the run and named after what is swept.

    A job that is queued again finds it again. A run_dir that was told in terms of other settings stays as it is.
    """
    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    is_named = any(override.lstrip("+").startswith("run_dir=") and "$" in override for override in overrides)
    if composed.get("run_dir") is not None and not is_named:
        composed.run_dir = str(Path(composed.run_dir) / job_name(overrides, hydra_config))


def _refuse_classes(arguments: list[str]) -> None:
    """Hydra calls what hydra.callbacks and the factories of its logging name; nobody has to choose these here."""
    for argument in arguments:
        if any(sign in argument for sign in CLASSES):
            _fail(f"{argument!r} names a class or function to call, which no setting here does: leave it out")


def _fail(sentence: str, code: int = 1) -> NoReturn:
    print(f"{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr)
    sys.exit(code)


def _one_sentence(error: Exception, schema: type) -> str:
    """What Hydra found wrong while composing, in one sentence with the closest thing that would be right."""
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: overrides are written key=value, and a value with odd signs is quoted"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, wrong = (error.missing_cfg_file or "").rpartition("/")
        return f"{group} has no choice {wrong!r}: choose one of {', '.join(sorted(error.options))}"
    cause = error.__cause__
    key = getattr(cause, "full_key", None)
    if isinstance(error, ConfigCompositionException) and key:
        closest = closest_key(key, schema)
        return f"there is no key {key!r}" + (
            " in this choice of groups" if closest == key else f"; did you mean {closest!r}?"
        )
    return f"cannot compose the configuration: {' '.join(str(cause or error).split())}"
