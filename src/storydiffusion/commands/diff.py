"""`storydiffusion diff`: name what infer would change in a run folder, and which panels it would generate."""

from pathlib import Path

from storydiffusion.config import InferConfig
from storydiffusion.config.command_line import command
from storydiffusion.errors import UserError
from storydiffusion.output.manifest import Manifest, read_manifest


@command(InferConfig)
def main(config: InferConfig) -> None:
    """Run the verb."""
    if config.benchmark is not None:
        raise UserError("diff compares stories, not benchmarks: leave out benchmark")
    if config.is_to_write:
        raise UserError(f"idea, text and emotion write a new story: give story={config.run_dir}/story.yaml instead")
    folder = Path(str(config.run_dir))
    found = read_manifest(folder / "manifest.json")
    print("\n".join(describe_changes(config, folder, found)))


def describe_changes(config: InferConfig, folder: Path, found: Manifest) -> list[str]:
    """Return lines: the differences, and what infer would make of them."""
    from storydiffusion.generation.changes import find_changes
    from storydiffusion.generation.plan import read_story
    from storydiffusion.output.run_folder import describe_panels

    changes = find_changes(config, read_story(config), folder, found)
    if not changes.differences:
        return [f"{folder} contains this story with these settings" + ("" if found.complete else ", unfinished")]
    made = describe_panels(changes.made, changes.panels)
    return [*changes.differences, f"infer would generate {made} and rebuild page, video and report"]
