"""Hydra with a checked configuration: what `hydra.main` does, with one check between composing and acting.

`CheckedLoader` is the only way to a configuration here, for a run, a sweep and each of its jobs, --cfg and --help.
"""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode, TaskFunction
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from storydiffusion.config.composition_errors import explain_composition
from storydiffusion.config.hydra_settings import check_composed, check_swept, is_hydras
from storydiffusion.config.overrides import parse_overrides
from storydiffusion.errors import UserError
from storydiffusion.files.bounded_yaml import parse_yaml, read_text


class FolderSource(FileConfigSource):
    """The configuration files of --config-dir, each of bounded size and nesting."""

    @staticmethod
    def scheme() -> str:
        return "folder"

    def load_config(self, config_path: str) -> ConfigResult:
        file = Path(self.path, self._normalize_file_name(config_path))
        if file.exists():
            parse_yaml(read_text(file, "configuration file"), str(file))
        return super().load_config(config_path)


class CheckedLoader(ConfigLoaderImpl):
    """Compose configurations, and check each before Hydra acts on it.

    Args:
        conf: this package's configuration files.
        folder: of further ones, of unknown origin; conf/ has priority.
        schema: of the verb, to suggest keys.
        allowed: overrides of hydra.* from the command line, checked.
    """

    def __init__(self, conf: Path, folder: Path | None, schema: type, allowed: Sequence[str]) -> None:
        SourcesRegistry.instance().register(FolderSource)
        super().__init__(_search_path(conf, folder))
        self._own = ConfigLoaderImpl(_search_path(conf, None))
        self._conf = conf
        self._schema = schema
        self._allowed = list(allowed)

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Return a checked configuration. Raises UserError."""
        further = [override for override in overrides if override not in self._allowed]
        check_swept(parse_overrides(further))  # before composing: a searchpath acts there
        try:
            own = self._own.load_configuration(config_name, self._allowed, run_mode)
            composed = super().load_configuration(
                config_name, overrides, run_mode, from_shell, validate_sweep_overrides
            )
            check_composed(composed, own, run_mode is RunMode.MULTIRUN)
        except (HydraException, OmegaConfBaseException, OSError, ValueError, YAMLError) as error:
            raise UserError(explain_composition(error, self._schema, overrides, self._conf)) from error
        return composed


@contextmanager
def hydra_application(
    conf: Path, schema: type, overrides: Sequence[str], name: str = "storydiffusion", folder: Path | None = None
) -> Iterator[Hydra]:
    """Provide Hydra for one command called `name`, whose `overrides` of hydra.* are checked."""
    version.setbase("1.3")
    allowed = [str(override.input_line) for override in parse_overrides(overrides) if is_hydras(override)]
    application = Hydra(name, CheckedLoader(conf, folder, schema, allowed))
    GlobalHydra.instance().clear()
    GlobalHydra.instance().initialize(application)
    try:
        yield application
    finally:
        GlobalHydra.instance().clear()


def answer(flags: Namespace, conf: Path, config_name: str, schema: type, task: TaskFunction) -> None:
    """Do what the flags ask: run `task` once or as a sweep, or print the configuration, help or information."""
    folder = None if flags.config_dir is None else Path(flags.config_dir).absolute()
    if folder and not folder.is_dir():
        raise UserError(f"--config-dir={flags.config_dir} is not a folder: give one that contains experiment/NAME.yaml")
    mode = RunMode.MULTIRUN if flags.multirun else RunMode.RUN
    overrides = [*flags.overrides, f"hydra.mode={mode.name}"]
    with hydra_application(conf, schema, overrides, config_name, folder) as application:
        if flags.help:
            application.app_help(config_name, get_args_parser(), flags)
        elif flags.hydra_help:
            application.hydra_help(config_name, get_args_parser(), flags)
        elif flags.cfg:
            application.show_cfg(config_name, overrides, flags.cfg, flags.package, flags.resolve)
        elif flags.info:
            application.show_info(flags.info, config_name, overrides)
        elif flags.shell_completion:
            application.shell_completion(config_name, flags.overrides)
        elif flags.multirun:
            application.multirun(config_name, task, overrides)
        else:
            application.run(config_name, task, overrides)


def _search_path(conf: Path, folder: Path | None) -> Any:
    path = create_config_search_path(str(conf))
    assert isinstance(path, ConfigSearchPathImpl)
    if folder is not None:
        path.prepend("command-line", f"{FolderSource.scheme()}://{folder}", SearchPathQuery(provider="schema"))
    return path
