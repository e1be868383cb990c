"""What `python -m storydiffusion.measure` and `.card` share: overrides are written key=value, as for infer.py.

They are commands of a checkout: the model's settings come from its conf/model/miniature.yaml.
"""

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

MODEL = Path(__file__).resolve().parents[2] / "conf" / "model" / "miniature.yaml"


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
        function(load(schema, _compose(arguments)))
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(130)


def _compose(arguments: list[str]) -> DictConfig:
    if not MODEL.exists():
        raise UserError(f"{MODEL} is missing: run this command in a checkout of the repository")
    for argument in arguments:
        if "=" not in argument:
            raise UserError(f"cannot read {argument!r}: overrides are written key=value")
    try:
        composed = OmegaConf.merge({"model": OmegaConf.load(MODEL)}, OmegaConf.from_cli(arguments))
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"cannot read {' '.join(arguments)}: {str(error).splitlines()[0]}") from error
    assert not isinstance(composed, ListConfig)
    return composed
