"""The cards of panels and characters, redrawn when the story is rearranged or something was generated."""

from collections.abc import Callable
from typing import Any

from storydiffusion.errors import UserError
from storydiffusion.studio import edits, views
from storydiffusion.studio.handlers import Handlers, Updates, shown
from storydiffusion.studio.layout import in_order, private
from storydiffusion.studio.project import Project

TEXTS = (("prompt", "Prompt: [Name] is a character", 3), ("caption", "Caption", 2), ("says", "Speech balloon", 1))
"""key of a panel, its label and its lines"""
MOST_CANDIDATES = 8


def read_open_project(handlers: Handlers, revision: str) -> Project | None:
    """Return the project that a revision names, None while none is open."""
    name = revision.partition("|")[0]
    try:
        return handlers.studio.read(name) if name else None
    except UserError:
        return None


def draw_panels(handlers: Handlers, revision: str) -> None:
    """Draw a card for each panel."""
    import gradio

    project = read_open_project(handlers, revision)
    if project is None:
        gradio.HTML(views.render("image", url="", text="Write a story from an idea, or open a project.", note=""))
        return
    with gradio.Row(equal_height=False, elem_classes="sd-cards"):
        for number in range(1, len(project.story.panels) + 1):
            with gradio.Column(elem_classes="sd-card", elem_id=f"panel-{number}"):
                draw_panel(handlers, project, number)


def draw_panel(handlers: Handlers, project: Project, number: int) -> None:
    """Draw the card of panel `number`, from 1."""
    import gradio

    panel, record = project.story.panels[number - 1], project.records[number - 1]
    gradio.Markdown(f"**Panel {number}**")
    gradio.HTML(views.show_panel(project, number))
    for key, label, lines in TEXTS:
        value = getattr(panel, key)
        box = gradio.Textbox(
            value,
            label=label,
            lines=lines,
            max_lines=6,
            interactive=not (panel.lock and key == "prompt"),
            elem_id=f"{key}-{number}",
            key=f"{project.name}-{number}-{key}-{value}-{panel.lock}",
        )
        save(handlers, box, number, lambda text, key=key: {key: " ".join(text.split())})
    with gradio.Row():
        seed = gradio.Textbox(
            "" if panel.seed is None else str(panel.seed),
            label="Seed",
            placeholder=str(record.seed) if record else "",
            max_lines=1,
            min_width=150,
            interactive=True,
            elem_id=f"seed-{number}",
            key=f"{project.name}-{number}-seed-{panel.seed}",
        )
        save(handlers, seed, number, parse_seed)
        lock = gradio.Checkbox(panel.lock, label="Lock", min_width=80, interactive=True, elem_id=f"lock-{number}")
    connect(handlers, lock.input, lambda story, value: edits.change_panel(story, number, {"lock": value}), [lock])
    draw_arrangement(handlers, number, len(project.story.panels))
    if record is not None and project.manifest is not None and record in project.manifest.panels:
        draw_retakes(handlers, project, number)


def draw_arrangement(handlers: Handlers, number: int, panels: int) -> None:
    """Draw the buttons that move and delete a panel."""
    import gradio

    with gradio.Row():
        for text, by in (("← Earlier", -1), ("Later →", 1)):
            button = gradio.Button(text, size="sm", min_width=70, interactive=1 <= number + by <= panels)
            connect(handlers, button.click, lambda story, by=by: edits.move_panel(story, number, by))
        delete = gradio.Button("Delete", size="sm", min_width=70, variant="stop", interactive=panels > 1)
        connect(handlers, delete.click, lambda story: edits.delete_panel(story, number))


def draw_retakes(handlers: Handlers, project: Project, number: int) -> None:
    """Draw the takes of a panel, and what makes and chooses them."""
    import gradio

    layout, takes = handlers.layout, views.find_takes(project, number)

    def retake(candidates: float, name: str, window: str) -> str:
        handlers.studio.retake(name, window, number, int(candidates))
        return handlers.show_job(name)

    def choose(take: int, name: str, window: str) -> str:
        handlers.studio.choose(name, window, number, take)
        return handlers.show_job(name)

    with gradio.Accordion("Retakes", open=bool(takes), elem_id=f"retakes-{number}"):
        if takes:
            gradio.HTML(views.show_takes(project, number))
            record = project.records[number - 1]
            current = next((take.number for take in takes if record and take.sha256 == record.sha256), None)
            choices: Any = [(views.name_take(take), take.number) for take in takes]
            radio = gradio.Radio(choices, value=current, label="Show", interactive=True, elem_id=f"take-{number}")
            radio.input(shown(choose), [radio, layout.opened, layout.window], layout.progress, **in_order())
        count = gradio.Slider(
            1, MOST_CANDIDATES, value=4, step=1, label="Candidates", interactive=True, elem_id=f"candidates-{number}"
        )
        button = gradio.Button("Retake", size="sm", elem_id=f"retake-{number}")
        button.click(shown(retake), [count, layout.opened, layout.window], layout.progress, **in_order())


def draw_characters(handlers: Handlers, revision: str) -> None:
    """Draw portrait and description of each character."""
    import gradio

    project = read_open_project(handlers, revision)
    if project is None:
        return
    for number, character in enumerate(project.story.characters, 1):
        with gradio.Row(equal_height=False):
            gradio.HTML(views.show_portrait(project, character.name), elem_classes="sd-portrait")
            box = gradio.Textbox(
                character.description,
                label=character.name,
                interactive=True,
                elem_id=f"character-{number}",
                key=f"{project.name}-{character.name}-{character.description}",
            )

        def save_description(text: str, name: str, window: str, character: str = character.name) -> Updates:
            change = lambda story: edits.describe_character(story, character, text)  # noqa: E731
            return handlers.saved(handlers.edit(name, window, change))

        connect_saving(handlers, box, save_description)


def parse_seed(text: str) -> dict[str, Any]:
    """Return the seed of a panel, None for an empty text. Raises UserError."""
    if not text.strip():
        return {"seed": None}
    if not text.strip().isdecimal():
        raise UserError(f"seed={text} is not a whole number: write one from 0, or nothing for the story's")
    return {"seed": int(text)}


def save(handlers: Handlers, box: Any, number: int, parse: Callable[[str], dict[str, Any]]) -> None:
    """Save what is written in a box of a panel when it is left or confirmed."""

    def change(text: str, name: str, window: str) -> Updates:
        values = parse(text)
        return handlers.saved(handlers.edit(name, window, lambda story: edits.change_panel(story, number, values)))

    connect_saving(handlers, box, change)


def connect_saving(handlers: Handlers, box: Any, change: Callable[..., Updates]) -> None:
    """Call `change` when a box is left or confirmed; then say what is not generated yet."""
    layout = handlers.layout
    for event in (box.blur, box.submit):
        event(shown(change), [box, layout.opened, layout.window], [layout.script], **in_order()).success(
            shown(handlers.show_changes), layout.look_inputs, layout.changes, **private()
        )


def connect(handlers: Handlers, event: Any, change: Callable[..., Any], inputs: list[Any] | None = None) -> None:
    """Call `change(story, values…)` at an event, and redraw the cards; then say what is not generated yet."""
    layout = handlers.layout

    def run(*values: Any) -> Updates:
        *own, name, window = values
        return handlers.rearranged(handlers.edit(name, window, lambda story: change(story, *own)))

    event(
        shown(run),
        [*(inputs or []), layout.opened, layout.window],
        [layout.script, layout.results, layout.revision],
        **in_order(),
    ).success(shown(handlers.show_changes), layout.look_inputs, layout.changes, **private())
