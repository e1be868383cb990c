"""`storydiffusion index-shards`: index or verify shards for training."""

from dataclasses import dataclass
from typing import Any

from storydiffusion.config.command_line import command
from storydiffusion.config.value_types import show
from storydiffusion.errors import UserError

MOST_WORKERS = 1024


@dataclass
class IndexShardsConfig:
    """conf/index_shards.yaml."""

    shards: Any  # folder, file or brace pattern; or a list of such
    workers: int
    verify: bool

    def __post_init__(self) -> None:
        patterns = self.shards if isinstance(self.shards, list) else [self.shards]
        if not all(isinstance(pattern, str) for pattern in patterns):
            raise UserError(f"shards={show(self.shards)}: give a folder, a file or a brace pattern, or a list of such")
        if not 0 <= self.workers <= MOST_WORKERS:
            raise UserError(f"workers={self.workers} is outside 0…{MOST_WORKERS}")


@command(IndexShardsConfig)
def main(config: IndexShardsConfig) -> None:
    from storydiffusion.data.shard_index import ShardIndex, index_shards, verify_shards
    from storydiffusion.data.shards import find_shards

    shards = find_shards(config.shards)
    if config.verify:
        verify_shards(shards, config.workers)
    else:
        index_shards(shards, config.workers)
    index = ShardIndex(shards)
    print(f"{'verified' if config.verify else 'indexed'} {len(shards)} shards of {index.counts.sum():,} samples")
