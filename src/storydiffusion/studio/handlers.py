"""What the events of the page do: each handler takes values of components and returns values of components."""

import functools
import html
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from storydiffusion.errors import UserError
from storydiffusion.story import Story
from storydiffusion.studio import edits, views
from storydiffusion.studio.look import Look
from storydiffusion.studio.project import Project, parse_script
from storydiffusion.studio.studio import PRELOADING, Studio

if TYPE_CHECKING:
    from storydiffusion.studio.layout import Layout

P = ParamSpec("P")
R = TypeVar("R")

Updates = dict[Any, Any]
"""component → its new value"""


def shown(handler: Callable[P, R]) -> Callable[P, R]:
    """Return the handler, whose UserError the page shows as text until it is closed."""

    @functools.wraps(handler)
    def run(*arguments: P.args, **named: P.kwargs) -> R:
        import gradio

        try:
            return handler(*arguments, **named)
        except UserError as error:
            raise gradio.Error(html.escape(str(error)), duration=None, print_exception=False) from error

    return run


class Handlers:
    """The handlers of a page.

    Args:
        layout: the components that they change.
    """

    def __init__(self, studio: Studio, layout: "Layout"):
        self.studio = studio
        self.layout = layout

    def start(self, window: str, wanted: str, idea: str) -> Updates:
        """Show the project in the page's address, or none, and the idea there."""
        import gradio

        layout, names = self.layout, self.studio.list_projects()
        chosen = wanted if wanted in names else None
        updates: Updates = {layout.window: window, layout.project: gradio.update(choices=names, value=chosen)}
        updates[layout.idea] = idea or gradio.skip()  # what was typed since stays
        updates |= {button: gradio.update(interactive=True) for button in (layout.write, layout.example, layout.create)}
        if chosen is not None:
            updates |= self.open(chosen, window)
        return updates

    def open(self, name: str, window: str) -> Updates:
        """Show a project, or why it is not."""
        layout = self.layout
        if not name:
            return {layout.notice: ""}
        try:
            project = self.studio.open(name, window)
        except UserError as error:
            return self.close(str(error))
        return self.show(project)

    def close(self, reason: str) -> Updates:
        """Show no project, and why."""
        import gradio

        layout = self.layout
        hidden = {part: gradio.update(visible=False) for part in (layout.story, layout.work)}
        return {
            layout.notice: views.show_notice(reason, role="alert"),
            layout.revision: "",
            layout.opened: "",
            **hidden,
        }

    def show(self, project: Project, *notes: str) -> Updates:
        """Fill the page from a project; `notes` are what to say first."""
        import gradio

        layout, look = self.layout, project.look
        return {
            layout.project: gradio.update(choices=self.studio.list_projects(), value=project.name),
            layout.opened: project.name,
            layout.story: gradio.update(visible=True),
            layout.work: gradio.update(visible=True),
            layout.notice: views.show_notice(*notes) if notes else "",
            layout.title: project.story.title,
            layout.style: project.story.style,
            layout.seed: look.seed,
            layout.page_layout: look.layout,
            layout.with_video: look.with_video,
            layout.idea: project.entries.idea or gradio.skip(),
            **self._refresh(project),
        }

    def _refresh(self, project: Project) -> Updates:
        """Return what depends on the story and on what was generated."""
        layout = self.layout
        return {
            layout.script: project.script,
            layout.results: views.show_results(project),
            layout.revision: f"{views.get_revision(project.folder)}|{hash(project.story)}",
        }

    def write(self, words: str, source: str, emotion: str, panels: float, seed: float | None, window: str) -> Updates:
        """Write a story from an idea or a text into a new project, and show it."""
        name, notes = self.studio.write(
            words,
            is_text=source == "a text",
            emotion=emotion or None,
            panels=int(panels),
            seed=int(seed or 0),
        )
        return self.show(self.studio.open(name, window), *notes)

    def start_example(self, window: str) -> Updates:
        """Show the example story as a new project."""
        return self.show(self.studio.open(self.studio.create_example(), window))

    def create(self, script: str, window: str) -> Updates:
        """Write a script into a new project, and show it."""
        return self.show(self.studio.open(self.studio.create(script), window))

    def save_script(self, script: str, name: str, window: str) -> Updates:
        """Replace the story of the project by the script."""
        return self.show(self.edit(name, window, lambda story: parse_script(script, self.studio.root / name)))

    def read_upload(self, data: bytes) -> str:
        """Return the text of an uploaded script."""
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"the file is not text in UTF-8 ({error.reason}): save it as UTF-8") from error

    def edit(self, name: str, window: str, change: Callable[[Story], Story]) -> Project:
        """Change the story of the open project."""
        if not name:
            raise UserError("no project is open: write a story first, or choose a project")
        return self.studio.edit(name, window, change)

    def change_title(self, title: str, name: str, window: str) -> Updates:
        """Save the title."""
        return self.saved(self.edit(name, window, lambda story: edits.change_title(story, title)))

    def change_style(self, style: str, name: str, window: str) -> Updates:
        """Save the style."""
        return self.saved(self.edit(name, window, lambda story: edits.change_style(story, style)))

    def saved(self, project: Project) -> Updates:
        """Return the script of a story whose cards stay as they are, so that what is typed in another stays."""
        return {self.layout.script: project.script}

    def rearranged(self, project: Project) -> Updates:
        """Return the story with new cards."""
        return self._refresh(project)

    def add_panel(self, name: str, window: str) -> Updates:
        """Add a panel at the end."""
        return self.rearranged(self.edit(name, window, edits.add_panel))

    def show_changes(self, name: str, seed: float | None, page_layout: str, with_video: bool) -> str:
        """Return what is not generated yet."""
        state = self.studio.jobs.get(name)
        if not name or (state is not None and not state.is_over):
            return ""
        return views.show_changes(self.studio.find_changes(name, Look.parse(seed, page_layout, with_video)))

    def save_look(self, name: str, window: str, seed: float | None, page_layout: str, with_video: bool) -> str:
        """Save the settings of the look, and return what is not generated yet."""
        self.check_open(name)
        look = Look.parse(seed, page_layout, with_video)
        self.studio.enter(name, window, lambda entries: replace(entries, look=look))
        return self.show_changes(name, seed, page_layout, with_video)

    def save_idea(self, idea: str, name: str, window: str) -> None:
        """Save the idea or text in the open project; without one it stays in the page's address."""
        if name:
            self.studio.enter(name, window, lambda entries: replace(entries, idea=idea))

    def generate(self, name: str, window: str, seed: float | None, page_layout: str, with_video: bool) -> str:
        """Start to generate."""
        self.check_open(name)
        self.studio.generate(name, window, Look.parse(seed, page_layout, with_video))
        return self.show_job(name)

    def cancel(self, name: str) -> str:
        """Cancel the project's job."""
        self.studio.jobs.cancel(name)
        return self.show_job(name)

    def export(self, name: str, window: str, exports: list[str], paper: str) -> str:
        """Start to write exports."""
        self.check_open(name)
        self.studio.export(name, window, exports, paper or None)
        return self.show_job(name)

    def check_open(self, name: str) -> None:
        """Check that a project is open. Raises UserError."""
        if not name:
            raise UserError("no project is open: write a story first, or choose a project")

    def show_job(self, name: str) -> str:
        """Return how the job of a project stands, or the loading of the model."""
        state = self.studio.jobs.get(name)
        if state is None and (loading := self.studio.jobs.get(PRELOADING)) is not None and loading.state != "done":
            state = loading
        return views.show_job(state, self.studio.jobs.count_before(state.number) if state else 0)

    def poll(self, name: str, window: str, chosen: str | None, seen: str, revision: str) -> Updates:
        """Renew the window's claim, and return what has changed since the last call.

        A chosen project that another window had is opened as soon as that window is closed.
        """
        import gradio

        layout, progress = self.layout, self.show_job(name)
        updates: Updates = {layout.progress: progress if progress != seen else gradio.skip(), layout.seen: progress}
        if not (name or chosen):
            return updates
        try:
            project = self.studio.open(name or str(chosen), window)
        except UserError as error:
            return updates | (self.close(str(error)) if name else {})
        if not name:
            return updates | self.show(project)
        if not revision.startswith(views.get_revision(project.folder) + "|"):
            updates |= self._refresh(project)
        elif progress != seen:  # exports are not part of the manifest
            updates[layout.results] = views.show_results(project)
        return updates
