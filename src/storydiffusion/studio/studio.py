"""What the studio does with projects: each function reads and writes a run folder, as the commands do."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from storydiffusion.config import InferConfig
from storydiffusion.errors import UserError
from storydiffusion.files.atomic import write_atomically
from storydiffusion.generation.changes import Changes, find_changes
from storydiffusion.generation.engine import Engine, Watch
from storydiffusion.generation.networks import KeptNetworks
from storydiffusion.generation.plan import apply_settings
from storydiffusion.output.folder_lock import own_folder
from storydiffusion.output.run_folder import describe_panels
from storydiffusion.story import Story, load_story
from storydiffusion.studio.entries import Entries, write_entries
from storydiffusion.studio.jobs import Jobs, JobState
from storydiffusion.studio.look import Look
from storydiffusion.studio.project import (
    STORY,
    Project,
    find_project,
    free_name,
    list_projects,
    parse_script,
    read_project,
)
from storydiffusion.studio.windows import Windows
from storydiffusion.writer.brief import Brief
from storydiffusion.writer.request import find_target
from storydiffusion.writer.sentences import split_sentences
from storydiffusion.writer.story_file import compose_story, format_story, save_story

KEPT_GIB = 1.0
"""that the features of a story's images may take in its folder"""
PRELOADING = ""
"""the job that loads the model; no project has this name"""


class Studio:
    """Projects in a folder, with a model that stays loaded.

    Args:
        root: the folder of the run folders.
        defaults: settings of new projects.
    """

    def __init__(self, root: Path, defaults: InferConfig):
        self.root = root
        self.defaults = defaults
        self.jobs = Jobs()
        self.windows = Windows()
        self.networks = KeptNetworks()
        self._edit = threading.Lock()

    def list_projects(self) -> list[str]:
        """Return the names of all projects, the latest first."""
        return list_projects(self.root)

    def read(self, name: str) -> Project:
        """Return a project as it is now. Raises UserError."""
        return read_project(find_project(self.root, name), self.defaults)

    def open(self, name: str, window: str) -> Project:
        """Return a project, which only `window` may change from now on. Raises UserError."""
        project = self.read(name)
        self.windows.claim(name, window)
        return project

    def preload(self) -> None:
        """Load the model of new projects in the background."""
        from storydiffusion.loaders.resolve import resolve_model

        def work(watch: Watch) -> str:
            self.networks.load_images(resolve_model(self.defaults.model))
            return ""

        self.jobs.start(PRELOADING, "loading the model", work)

    def write(
        self, words: str, *, is_text: bool = False, emotion: str | None = None, panels: int | None = None, seed: int = 0
    ) -> tuple[str, Sequence[str]]:
        """Write a story into a new project; return its name and the writer's remarks.

        Args:
            words: an idea, or with `is_text` prose to split into panels.

        Raises:
            UserError: nothing to write from, or what the writer refuses.
        """
        words, writer = words.strip(), self.defaults.writer
        entries = Entries(idea=words)
        count = writer.panels if panels is None else panels
        if is_text:
            count = min(count, max(1, len(split_sentences(words))))
        brief = Brief(
            "" if is_text else " ".join(words.split()),
            words if is_text else "",
            emotion,
            count,
            None,
            seed,
            find_target(self.defaults.model),
        )
        written = compose_story(brief, writer)  # outside the lock, since a server may take minutes
        with self._edit:
            name = free_name(self.root, words[:60] or str(emotion))
            with own_folder(self.root / name):
                save_story(self.root / name / STORY, written)
                write_entries(self.root / name, entries)
        return name, written.draft.notes

    def create(self, script: str) -> str:
        """Write a script in YAML into a new project, and return its name. Raises UserError."""
        return self._create(parse_script(script))

    def create_example(self) -> str:
        """Write the example story into a new project, and return its name."""
        return self._create(load_story(str(self.defaults.story)))

    def _create(self, story: Story) -> str:
        text = format_story(story)
        with self._edit:
            name = free_name(self.root, story.title)
            with own_folder(self.root / name):
                write_atomically(self.root / name / STORY, text.encode())
        return name

    def edit(self, name: str, window: str, change: Callable[[Story], Story]) -> Project:
        """Change the story of a project, and return the project.

        Raises:
            UserError: a story that is refused, a project of another window, or one that is busy; then nothing changes.
        """
        self.windows.claim(name, window)
        with self._edit:
            project = self.read(name)
            story = change(project.story)
            if story != project.story:
                self._check_idle(name)
                with own_folder(project.folder):
                    write_atomically(project.folder / STORY, format_story(story, project.folder).encode())
            return self.read(name)

    def enter(self, name: str, window: str, change: Callable[[Entries], Entries]) -> None:
        """Save what is entered in the page of a project, also while a job is running: no job reads it.

        Raises:
            UserError: a setting that is refused, or a project of another window; then nothing changes.
        """
        self.windows.claim(name, window)
        self._enter(name, change)

    def _enter(self, name: str, change: Callable[[Entries], Entries]) -> None:
        with self._edit:
            project = self.read(name)
            entries = change(project.entries)
            if entries.look is not None:
                entries.look.apply(project.config)
            if entries.look == Look.read(project.config):
                entries = replace(entries, look=None)
            if entries != project.entries:
                write_entries(project.folder, entries)

    def find_changes(self, name: str, look: Look) -> Changes:
        """Return what generating would change. Raises UserError."""
        project = self.read(name)
        config = look.apply(project.config)
        if project.manifest is None:
            count = len(project.story.panels)
            return Changes(("a new story",), tuple(range(1, count + 1)), count, False)
        return find_changes(config, apply_settings(config, project.story), project.folder, project.manifest)

    def generate(self, name: str, window: str, look: Look) -> JobState:
        """Start to generate what the project lacks; where only panels at the end are new, the others stay as they are.

        Raises:
            UserError: a project of another window, or one that is busy.
        """

        def work(watch: Watch) -> str:
            changes = self.find_changes(name, look)
            is_longer = changes.is_longer and self.read(name).config.baseline is None
            overwrite = bool(changes.made) and not is_longer
            self._generate(name, watch, {"extend": is_longer, "overwrite": overwrite}, look)
            self._enter(name, lambda entries: entries)  # a look that was generated is that of the manifest
            return f"generated {describe_panels(changes.made, changes.panels)}" if changes.made else "up to date"

        return self._start(name, window, "generating", work)

    def retake(self, name: str, window: str, panel: int, candidates: int) -> JobState:
        """Start to generate takes of a panel, from 1; all panels stay as they are. Raises UserError."""

        def work(watch: Watch) -> str:
            self._generate(name, watch, {"retake": panel, "candidates": candidates})
            return f"{candidates} new takes of panel {panel}: choose one below it"

        return self._start(name, window, f"retaking panel {panel}", work)

    def choose(self, name: str, window: str, panel: int, take: int) -> JobState:
        """Start to show another take of a panel, and to rebuild page, video and report. Raises UserError."""

        def work(watch: Watch) -> str:
            self._generate(name, watch, {"retake": panel, "take": take})
            return f"panel {panel} shows take {take}"

        return self._start(name, window, f"choosing take {take} of panel {panel}", work)

    def export(self, name: str, window: str, exports: Sequence[str], paper: str | None) -> JobState:
        """Start to write files to share. Raises UserError."""
        from storydiffusion.output.exports import check_exports

        if not exports:
            raise UserError("no format is chosen: choose pdf, cbz or another")
        check_exports(exports, paper)

        def work(watch: Watch) -> str:
            from storydiffusion.generation.export import export_run

            files = export_run(self.read(name).folder, exports, paper)
            return f"exported {', '.join(file.name for file in files)}"

        return self._start(name, window, "exporting", work)

    def close(self) -> None:
        """Cancel the running job, and wait until what it has made is saved."""
        self.jobs.close()

    def _start(self, name: str, window: str, what: str, work: Callable[[Watch], str]) -> JobState:
        self.windows.claim(name, window)
        with self._edit:  # after a change that is being saved
            find_project(self.root, name)
            return self.jobs.start(name, what, work)

    def _generate(self, name: str, watch: Watch, values: Mapping[str, Any], look: Look | None = None) -> None:
        from storydiffusion.generation.story import generate_story

        watch("loading", 0, 0)
        project = self.read(name)
        if not (project.folder / STORY).exists():  # made by infer from a file elsewhere
            with own_folder(project.folder):
                write_atomically(project.folder / STORY, project.script.encode())
        config = look.apply(project.config) if look is not None else project.config
        kept = max(config.keep_features, KEPT_GIB)
        generate_story(config.change(keep_features=kept, **values), Engine(self.networks, watch))

    def _check_idle(self, name: str) -> None:
        state = self.jobs.get(name)
        if state is not None and not state.is_over:
            raise UserError(f"{name} is busy ({state.what}): wait until it is done, or cancel it")
