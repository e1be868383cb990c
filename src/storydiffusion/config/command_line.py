"""One frame for every verb: Hydra composes conf/VERB.yaml, `load` checks it, and bad input ends in one sentence.

A bug keeps its traceback; an error of the user never shows one.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from storydiffusion.config.composition_errors import explain_composition
from storydiffusion.config.hydra_application import answer, hydra_application
from storydiffusion.config.hydra_settings import check_command_line
from storydiffusion.config.loading import load
from storydiffusion.config.overrides import adapt, check_overrides, exclude_shared, parse_overrides
from storydiffusion.config.sweep import experiment_sweeps, job_name
from storydiffusion.errors import UserError
from storydiffusion.files.closed_output import ending_with_output

Config = TypeVar("Config")

CONF = Path(__file__).resolve().parents[1] / "conf"
"""The YAML files: conf/ of a checkout, by a link, or their copy in an installed package."""

INTERRUPTED = 130  # the shell's convention: 128 + SIGINT


@dataclass(frozen=True)
class Command(Generic[Config]):
    """A verb: `function(config)`, where `config` is the composed configuration loaded strictly as `schema`.

    With `choose`, the composed configuration decides its schema; `schema` then serves only "did you mean".
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
    is_composed, overrides = False, list(arguments)

    def task(composed: DictConfig) -> None:
        nonlocal is_composed
        is_composed = True
        is_sweep = HydraConfig.get().mode is RunMode.MULTIRUN
        if not is_sweep and (swept := experiment_sweeps(HydraConfig.get())):
            fail(program, f"this experiment is a sweep over {', '.join(swept)}: add -m")
        try:
            if is_sweep:
                _give_own_folder(composed, verb)
            with ending_with_output():  # inside of Hydra, which announces errors
                verb(verb.load(composed))
        except UserError as error:
            if is_sweep:  # the other jobs still run
                raise
            fail(program, str(error))

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
    for library in ("DIFFUSERS", "TRANSFORMERS"):  # effective only before they are imported
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    try:
        flags = _parse_flags(adapt(arguments, verb.schema, conf), program)
        flags.overrides = overrides = _check(flags.overrides, verb.schema, conf, flags.multirun)
        answer(flags, conf, config_name, verb.schema, task)
    except UserError as error:
        fail(program, str(error))
    except Exception as error:
        if is_composed or isinstance(error, BrokenPipeError):  # a bug, or a closed output pipe
            raise
        fail(program, explain_composition(error, verb.schema, overrides, conf))
    except KeyboardInterrupt as interrupt:
        fail(program, str(interrupt) or "interrupted", INTERRUPTED)


def compose_config(verb: Command[Config], config_name: str, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration that `verb` runs with.

    Raises:
        UserError: as the command line does.
    """
    checked = _check(adapt(overrides, verb.schema, CONF), verb.schema, CONF, is_sweep=False)
    with hydra_application(CONF, verb.schema, checked) as application:
        composed = application.compose_config(config_name, checked, RunMode.RUN)
    OmegaConf.set_struct(composed, False)
    del composed["hydra"]
    return verb.load(composed)


def fail(program: str, sentence: str, code: int = 1) -> NoReturn:
    """End the process with one sentence, on one line of stderr."""
    print(f"{program}: {' '.join(sentence.split())}", file=sys.stderr)
    sys.exit(code)


def _parse_flags(arguments: list[str], program: str) -> Namespace:
    """Parse Hydra's own flags; a wrong one ends in one sentence."""
    parser = get_args_parser()

    def error(message: str) -> NoReturn:
        fail(program, f"{message}: write settings as key=value, and see --help and --hydra-help")

    parser.error = error
    parsed = parser.parse_intermixed_args(arguments)  # flags may stand between settings
    for flag in ("experimental_rerun", "config_path", "config_name"):  # the first unpickles a file
        if getattr(parsed, flag) is not None:
            name = f"--{flag.replace('_', '-')}"
            error(f"{name}={getattr(parsed, flag)} is not available; --config-dir=DIR adds a folder of experiments")
    return parsed


def _check(overrides: Sequence[str], schema: type, conf: Path, is_sweep: bool) -> list[str]:
    """Return the overrides that Hydra should see, once all are known to be allowed. Raises UserError."""
    parsed = parse_overrides(overrides)
    check_overrides(parsed, schema, conf, is_sweep)
    check_command_line(parsed)
    return [exclude_shared(parsed), *overrides] if is_sweep and overrides else list(overrides)


def _give_own_folder(composed: DictConfig, verb: Command) -> None:
    """Give a job of a sweep its own folder, below that of the run and named after what is swept.

    The name depends only on the overrides, so a requeued job finds its folder again. A run_dir written in terms of
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
