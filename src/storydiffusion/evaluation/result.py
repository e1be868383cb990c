"""result.json: the metrics of several items (stories, clips, images), all generated with the same settings.

Two results are compared item by item, so result.json keeps the value of every item, not only the mean.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from storydiffusion.errors import UserError
from storydiffusion.evaluation.metrics.registry import METRICS
from storydiffusion.files.atomic import write_atomically
from storydiffusion.files.json_file import build, json_bytes, read_object

FILE = "result.json"


@dataclass(frozen=True)
class MetricValues:
    """The values of one metric.

    Attributes:
        values: one per item, in their order; None where an item has none.
        network: the name of the network that the values depend on, where there is one.
    """

    values: list[float | None]
    network: str | None = None


@dataclass(frozen=True)
class Result:
    """All metrics of one run.

    Attributes:
        items: unique names; items of the same name are paired between results.
        metrics: by name, see `evaluation.metrics.registry`.
        settings: plain data, everything that the values depend on.
        remarks: sentences that a reader of the values must know.
        groups: one per item, such as the motion of a clip; empty where items are not grouped.
    """

    items: list[str]
    metrics: dict[str, MetricValues]
    settings: dict[str, Any]
    remarks: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(set(self.items)) < len(self.items):
            raise UserError("two items of a result have the same name. Give each item a unique name")
        if self.groups and len(self.groups) != len(self.items):
            raise UserError(f"a result has {len(self.groups)} groups for {len(self.items)} items. Give one per item")
        for name, metric in self.metrics.items():
            if name not in METRICS:
                raise UserError(f"metric {name!r} is unknown. Register it in evaluation/metrics/registry.py")
            if len(metric.values) != len(self.items):
                raise UserError(f"{name} has {len(metric.values)} values for {len(self.items)} items")

    def values(self, name: str) -> dict[str, float]:
        """Return item → value of the metric `name`, without items that have none; empty where it was not measured."""
        if name not in self.metrics:
            return {}
        pairs = zip(self.items, self.metrics[name].values, strict=True)
        return {item: value for item, value in pairs if value is not None}


def save_result(result: Result, folder: Path) -> None:
    """Write `folder`/result.json atomically."""
    write_atomically(folder / FILE, json_bytes(asdict(result)))


def load_result(file: Path) -> Result:
    """Read a result.json.

    Raises:
        UserError: the file is missing or is not a result.
    """
    try:
        return build(Result, read_object(file))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not a result. Run the benchmark or evaluation again") from error
