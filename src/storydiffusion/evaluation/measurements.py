"""The metrics of an evaluation, collected item by item."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from storydiffusion.evaluation.metrics.registry import METRICS, Item, compute_metrics
from storydiffusion.evaluation.result import MetricValues, Result


@dataclass
class Measurements:
    """Values by metric and item.

    Attributes:
        networks: the kind of network, as the registry names it → the name of the network used.
        values: metric → item → value, in the order of measurement.
    """

    networks: Mapping[str, str]
    values: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, kind: Item, names: Sequence[str], evidence: Mapping[str, Any]) -> None:
        """Compute every metric that `evidence` allows: of `images`, one value per name; of others, of the one name."""
        for metric, found in compute_metrics(kind, evidence).items():
            for name, value in zip(names, found if kind == "image" else [found], strict=True):
                if value is not None:
                    self.values.setdefault(metric, {})[name] = float(value)

    def get_values(self, metric: str) -> dict[str, float]:
        """Return item → value; empty where the metric was not measured."""
        return self.values.get(metric, {})

    def get_network(self, metric: str) -> str | None:
        """Return the name of the network that the metric depends on."""
        return self.networks.get(str(METRICS[metric].network))

    def in_order(self) -> dict[str, dict[str, float]]:
        """Return metric → item → value, in the order of the registry."""
        return {metric: self.values[metric] for metric in METRICS if metric in self.values}

    def to_result(self, settings: Mapping[str, Any], remarks: Sequence[str]) -> Result:
        """Return everything as the content of result.json."""
        measured = self.in_order()
        items = list(dict.fromkeys(item for values in measured.values() for item in values))
        metrics = {
            metric: MetricValues([values.get(item) for item in items], self.get_network(metric))
            for metric, values in measured.items()
        }
        return Result(items, metrics, dict(settings), list(remarks))
