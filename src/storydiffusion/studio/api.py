"""The studio's API: functions that Gradio offers to programs, each for a project by its name."""

import functools
import html
from dataclasses import asdict
from typing import Any

from storydiffusion.errors import UserError
from storydiffusion.studio import edits
from storydiffusion.studio.look import Look
from storydiffusion.studio.project import parse_script
from storydiffusion.studio.studio import Studio

WINDOW = "API"
"""what programs count as, among the windows that may change a project"""


class Api:
    """The functions, which take and return plain data."""

    def __init__(self, studio: Studio):
        self.studio = studio

    def list_projects(self) -> list[str]:
        """Return the names of all projects, the latest first."""
        return self.studio.list_projects()

    def write(self, idea: str, emotion: str = "", panels: int = 6, seed: int = 0) -> str:
        """Write a story from an idea into a new project; return its name."""
        return self.studio.write(idea, emotion=emotion or None, panels=panels, seed=seed)[0]

    def create(self, script: str) -> str:
        """Write a script in YAML into a new project; return its name."""
        return self.studio.create(script)

    def read_script(self, name: str) -> str:
        """Return a project's script in YAML."""
        return self.studio.read(name).script

    def save_script(self, name: str, script: str) -> str:
        """Replace a project's story; return it as it is saved."""
        return self.studio.edit(name, WINDOW, lambda story: parse_script(script, self.studio.root / name)).script

    def change_panel(self, name: str, panel: int, values: dict[str, Any]) -> str:
        """Change prompt, caption, says, negative, place, cut, seed or lock of a panel, from 1; return the script."""
        if unknown := sorted(set(values) - set(edits.CHANGED)):
            raise UserError(f"{unknown[0]!r} is not a value of a panel: choose one of {', '.join(edits.CHANGED)}")
        project = self.studio.edit(name, WINDOW, lambda story: edits.change_panel(story, panel, values))
        return project.script

    def generate(self, name: str, seed: int = -1, layout: str = "", video: bool = True) -> dict[str, Any]:
        """Start to generate what a project lacks; -1 and "" keep its own settings. Ask `status` how it stands."""
        own = self.studio.read(name).look
        look = Look.parse(own.seed if seed < 0 else seed, layout or own.layout, video)
        return asdict(self.studio.generate(name, WINDOW, look))

    def retake(self, name: str, panel: int, candidates: int = 4) -> dict[str, Any]:
        """Start to generate takes of a panel, from 1."""
        return asdict(self.studio.retake(name, WINDOW, panel, candidates))

    def choose_take(self, name: str, panel: int, take: int) -> dict[str, Any]:
        """Start to show another take of a panel; 0 is its first image."""
        return asdict(self.studio.choose(name, WINDOW, panel, take))

    def export(self, name: str, formats: list[str], paper: str = "") -> dict[str, Any]:
        """Start to write files to share; they are at /projects/NAME/exports/."""
        return asdict(self.studio.export(name, WINDOW, formats, paper or None))

    def status(self, name: str) -> dict[str, Any]:
        """Return how the latest job of a project stands; {} where there was none."""
        state = self.studio.jobs.get(name)
        return asdict(state) if state is not None else {}

    def cancel(self, name: str) -> dict[str, Any]:
        """Stop the job of a project; what it has made is kept."""
        self.studio.jobs.cancel(name)
        return self.status(name)


FUNCTIONS = (
    "list_projects", "write", "create", "read_script", "save_script", "change_panel", "generate", "retake",
    "choose_take", "export", "status", "cancel",
)  # fmt: skip


def add_api(studio: Studio) -> None:
    """Add the functions to the current page, by their names."""
    import gradio

    api = Api(studio)
    for name in FUNCTIONS:
        function = getattr(api, name)

        @functools.wraps(function)
        def run(*arguments: Any, function: Any = function, **named: Any) -> Any:
            try:
                return function(*arguments, **named)
            except UserError as error:
                raise gradio.Error(html.escape(str(error)), print_exception=False) from error

        gradio.api(run, api_name=name)  # pyright: ignore[reportPrivateImportUsage]
