"""The components of the page and where they stand; what they do is in handlers.py."""

from dataclasses import dataclass
from typing import Any

from storydiffusion.output.exports import EXPORTS, PAPERS
from storydiffusion.output.page_settings import LAYOUTS
from storydiffusion.story import STYLES
from storydiffusion.story.emotions import EMOTIONS

SOURCES = ("an idea", "a text")
SECONDS_BETWEEN_POLLS = 1.5
FEWEST_PANELS, MOST_PANELS = 3, 16


@dataclass
class Layout:
    """Components of the page, most by what they hold."""

    window: Any
    wanted: Any
    opened: Any
    revision: Any
    seen: Any
    timer: Any
    project: Any
    notice: Any
    idea: Any
    source: Any
    emotion: Any
    panels: Any
    write: Any
    example: Any
    script: Any
    save_script: Any
    create: Any
    upload: Any
    title: Any
    style: Any
    seed: Any
    page_layout: Any
    with_video: Any
    generate: Any
    cancel: Any
    progress: Any
    changes: Any
    story: Any
    work: Any
    characters: Any
    cards: Any
    add_panel: Any
    results: Any
    exports: Any
    paper: Any
    export: Any

    @property
    def look_inputs(self) -> list[Any]:
        """The project and the settings of its look."""
        return [self.opened, self.seed, self.page_layout, self.with_video]

    @property
    def shown(self) -> list[Any]:
        """What is filled when a project is shown."""
        return [
            self.window, self.project, self.opened, self.notice, self.title, self.style, self.seed, self.page_layout,
            self.with_video, self.script, self.results, self.revision, self.story, self.work, self.write, self.example,
            self.create, self.idea,
        ]  # fmt: skip


def build_layout(panels: int) -> Layout:
    """Return the components, created in the current Blocks; `panels` is the number of panels of a new story."""
    import gradio as gr

    parts: dict[str, Any] = {
        "window": gr.Textbox(visible="hidden"),
        "wanted": gr.Textbox(visible="hidden"),
        "opened": gr.Textbox(visible="hidden"),
        "revision": gr.State(""),
        "seen": gr.State(""),
        "timer": gr.Timer(SECONDS_BETWEEN_POLLS),
    }
    gr.Markdown("# StoryDiffusion studio")
    parts["notice"] = gr.HTML()
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=320):
            parts["project"] = gr.Dropdown([], label="Project", elem_id="project")
            parts |= _build_sources(panels)
            with gr.Column(visible=False) as parts["story"]:
                parts |= _build_look()
                parts["characters"] = gr.Column()
                with gr.Row():
                    parts["generate"] = gr.Button("Generate", variant="primary", elem_id="generate")
                    parts["cancel"] = gr.Button("Cancel", min_width=80, elem_id="cancel")
                parts["changes"] = gr.HTML(elem_id="changes")
            parts["progress"] = gr.HTML(elem_id="progress")
        with gr.Column(scale=5, min_width=320):
            parts["cards"] = gr.Column()
            with gr.Column(visible=False) as parts["work"]:
                parts["add_panel"] = gr.Button("Add a panel", size="sm", elem_id="add-panel")
                parts |= _build_results()
    return Layout(**parts)


def _build_sources(panels: int) -> dict[str, Any]:
    """Create where a story comes from: an idea, a text or a script."""
    import gradio as gr

    parts: dict[str, Any] = {}
    with gr.Tabs():
        with gr.Tab("Idea"):
            parts["source"] = gr.Radio(list(SOURCES), value=SOURCES[0], label="Write a story from")
            parts["idea"] = gr.Textbox(
                label="Idea or text", lines=3, placeholder="a lonely robot finds a friend", elem_id="idea"
            )
            with gr.Row():
                emotions: Any = [("none", ""), *((each, each) for each in EMOTIONS)]
                parts["emotion"] = gr.Dropdown(emotions, value="", label="Emotion", min_width=120)
                parts["panels"] = gr.Number(
                    panels, label="Panels", precision=0, minimum=FEWEST_PANELS, maximum=MOST_PANELS, min_width=90
                )
            with gr.Row():
                parts["write"] = gr.Button("Write a new story", variant="primary", interactive=False, elem_id="write")
                parts["example"] = gr.Button("Open the example", interactive=False, elem_id="example")
        with gr.Tab("Script"):
            parts["script"] = gr.Textbox(label="Script in YAML", lines=14, max_lines=30, elem_id="script")
            with gr.Row():
                parts["save_script"] = gr.Button("Save", elem_id="save-script", min_width=80)
                parts["create"] = gr.Button("Save as a new project", interactive=False, elem_id="create")
                parts["upload"] = gr.UploadButton(
                    "Read a file", type="binary", file_types=[".yaml", ".yml", ".txt"], min_width=100
                )
    return parts


def _build_look() -> dict[str, Any]:
    """Create what holds for all panels."""
    import gradio as gr

    parts: dict[str, Any] = {}
    parts["title"] = gr.Textbox(label="Title", elem_id="title")
    parts["style"] = gr.Dropdown([style.name for style in STYLES], label="Style, for full-scale models")
    with gr.Row():
        parts["seed"] = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=90, elem_id="seed")
        parts["page_layout"] = gr.Dropdown(
            list(LAYOUTS), value="auto", label="Page", min_width=90, elem_id="page-layout"
        )
        parts["with_video"] = gr.Checkbox(True, label="Video", min_width=90, elem_id="video")
    return parts


def _build_results() -> dict[str, Any]:
    """Create what is made of the panels, and the exports."""
    import gradio as gr

    parts: dict[str, Any] = {}
    gr.Markdown("## Page and video")
    parts["results"] = gr.HTML(elem_id="results")
    with gr.Row():
        parts["exports"] = gr.CheckboxGroup(list(EXPORTS), value=["pdf"], label="Export", elem_id="exports")
        papers: Any = [("one page", ""), *((paper, paper) for paper in PAPERS)]
        parts["paper"] = gr.Dropdown(papers, value="", label="Paper", min_width=110)
        parts["export"] = gr.Button("Export", elem_id="export", min_width=110)
    return parts


def private(progress: str = "hidden") -> dict[str, Any]:
    """Return arguments of an event that is not part of the API."""
    return {"api_visibility": "private", "show_progress": progress}


def in_order(progress: str = "hidden") -> dict[str, Any]:
    """Return arguments of an event that changes a project: a text is saved before the button pressed next acts."""
    return {**private(progress), "concurrency_id": "changes", "concurrency_limit": 1}
