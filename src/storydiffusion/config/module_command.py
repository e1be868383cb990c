"""What `python -m storydiffusion.measure`, `.card` and others share: overrides are written key=value, as for infer.py.

Those that have a `model` are commands of a checkout: its settings come from conf/model/miniature.yaml there.
"""

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from storydiffusion.config import load
from storydiffusion.errors import UserError

Config = TypeVar("Config")

MODEL = Path(__file__).resolve().parents[3] / "conf" / "model" / "miniature.yaml"


def run(schema: type[Config], function: Callable[[Config], None], description: str | None) -> None:
    """Calls `function` with the command line as `schema`; `description` answers --help.

    Exit codes: 0 done, 1 bad input (one sentence on stderr), 130 interrupted.
    """
    name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(description)
        return
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    try:
        function(load(schema, _compose(schema, arguments)))
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(130)


def _compose(schema: type, arguments: list[str]) -> DictConfig:
    has_model = "model" in {field.name for field in dataclasses.fields(schema)}
    if has_model and not MODEL.exists():
        raise UserError(f"{MODEL} is missing: run this command in a checkout of the repository")
    for argument in arguments:
        if "=" not in argument:
            raise UserError(f"cannot read {argument!r}: overrides are written key=value")
    try:
        settings = {"model": OmegaConf.load(MODEL)} if has_model else {}
        composed = OmegaConf.merge(settings, OmegaConf.from_cli(arguments))
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"cannot read {' '.join(arguments)}: {str(error).splitlines()[0]}") from error
    assert not isinstance(composed, ListConfig)
    return composed
