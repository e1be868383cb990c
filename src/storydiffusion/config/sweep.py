"""The jobs of a sweep: what is swept, and the folder of each job.

Hydra writes multirun.yaml into `hydra.sweep.dir` when a sweep begins, so it also lists jobs that never began.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf
from yaml import YAMLError

from storydiffusion.errors import UserError, first_line
from storydiffusion.files.bounded_yaml import parse_yaml, read_text

FILE = "multirun.yaml"


@dataclass(frozen=True)
class PlannedSweep:
    """The plan of a sweep.

    Attributes:
        keys: the swept ones, the last varying fastest.
        jobs: names of their folders, in order.
        trains: whether the jobs are trainings.
    """

    keys: tuple[str, ...]
    jobs: tuple[str, ...]
    trains: bool


def experiment_sweeps(hydra: Any) -> dict[str, str]:
    """Return what the experiment sweeps over, key → choices; `hydra` is that section of a configuration."""
    return {str(key): str(choices) for key, choices in (hydra["sweeper"].get("params") or {}).items()}


def job_name(overrides: Sequence[str], hydra: Any) -> str:
    """Return the folder of a job below that of its sweep: its sorted overrides without those that all jobs share.

    Args:
        overrides: of one job, `key=value` each.
        hydra: that section of the job's configuration.
    """
    shared = {*hydra["job"]["config"]["override_dirname"]["exclude_keys"], "run_dir"} - set(experiment_sweeps(hydra))
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return ",".join(sorted(str(override.input_line) for override in parsed if override.key_or_group not in shared))


def planned_sweep(folder: Path) -> PlannedSweep:
    """Read the plan in `folder`'s multirun.yaml. Raises UserError for a missing or unreadable file."""
    file = folder / FILE
    if not file.exists():
        raise UserError(f"{folder} contains no {FILE}: give the folder of a sweep, such as runs/ablation_sampling_rate")
    try:
        parse_yaml(read_text(file, FILE), FILE)  # refuses what OmegaConf would expand without bound
        content: Any = OmegaConf.to_container(OmegaConf.load(file))
        hydra = content["hydra"]
        swept, jobs = expand(experiment_sweeps(hydra), hydra["overrides"]["task"])
        names = dict.fromkeys(job_name(overrides, hydra) for overrides in jobs)
    except (OSError, ValueError, KeyError, TypeError, YAMLError, OverrideParseException) as error:
        raise UserError(f"{file} describes no sweep ({first_line(error)}): run the sweep again") from error
    return PlannedSweep(tuple(key for key in swept if key != "run_dir"), tuple(names), "recipe" in content)


def expand(experiment: Mapping[str, str], given: Sequence[str]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the swept keys and the overrides of every job, as Hydra's own sweeper does.

    Args:
        experiment: its sweep, key → choices.
        given: the command line's overrides, which replace the experiment's.
    """
    lines = [*(f"{key}={choices}" for key, choices in experiment.items()), *given]
    parsed = {override.get_key_element(): override for override in OverridesParser.create().parse_overrides(lines)}
    choices = [[f"{key}={value}" for value in _values(override)] for key, override in parsed.items()]
    swept = [each.key_or_group for key, each in parsed.items() if each.is_sweep_override() or key in experiment]
    return swept, list(product(*choices))


def _values(override: Override) -> list[str]:
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [override.get_value_element_as_str()]
