"""The page of the studio: components, what their events do, and the functions of the API."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from storydiffusion.studio.api import add_api
from storydiffusion.studio.cards import draw_characters, draw_panels
from storydiffusion.studio.handlers import Handlers, shown
from storydiffusion.studio.layout import build_layout, in_order, private
from storydiffusion.studio.studio import Studio

if TYPE_CHECKING:
    from gradio import Blocks
    from gradio.themes import Base

TITLE = "StoryDiffusion studio"
HEAD = '<meta name="viewport" content="width=device-width, initial-scale=1">'
START = """(window_, wanted, idea) => {
  const [entry] = performance.getEntriesByType("navigation");
  let id = entry && entry.type === "reload" ? sessionStorage.getItem("window") : null;
  if (!id) {
    id = crypto.randomUUID();
    sessionStorage.setItem("window", id);
  }
  addEventListener("pagehide", () => navigator.sendBeacon(`/windows/${id}/release`));
  const [project, kept] = [location.search, location.hash.slice(1)].map((part) => new URLSearchParams(part));
  return [id, project.get("project") || "", kept.get("idea") || ""];
}"""
"""names the window, for which a reload changes nothing, and reads the project or the idea from the address"""
ADDRESS = """(name) => {
  history.replaceState(null, "", name ? `?project=${encodeURIComponent(name)}` : location.pathname);
  return [];
}"""
"""writes the open project into the address, so that a reload opens it again"""
IDEA = """(idea, name) => {
  if (!name) history.replaceState(null, "", location.pathname + (idea ? `#idea=${encodeURIComponent(idea)}` : ""));
  return [];
}"""
"""writes the idea into the address while no project is open that could keep it; this part is sent nowhere"""


def build_page(studio: Studio) -> "Blocks":
    """Return the page of a studio."""
    import gradio

    with gradio.Blocks(title=TITLE, analytics_enabled=False) as page:
        add_api(studio)  # first, because later functions of the same name get another
        layout = build_layout(studio.defaults.writer.panels)
        handlers = Handlers(studio, layout)
        with layout.characters:
            _draw(page, handlers, draw_characters)
        with layout.cards:
            _draw(page, handlers, draw_panels)
        first = [layout.window, layout.wanted, layout.idea]
        page.load(shown(handlers.start), first, layout.shown, js=START, **private())
        _connect_projects(handlers)
        _connect_story(handlers)
        _connect_jobs(handlers)
    page.queue(default_concurrency_limit=8)
    return page


def build_theme() -> "Base":
    """Return a theme with the fonts of the system: the page fetches nothing from elsewhere."""
    import gradio

    return gradio.themes.Default(  # pyright: ignore[reportPrivateImportUsage]
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )


def read_css() -> str:
    """Return the style sheet of what the package's templates show."""
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def _draw(page: "Blocks", handlers: Handlers, draw: Callable[[Handlers, str], None]) -> None:
    """Draw a part of the page at first and whenever the revision changes."""
    import gradio

    @gradio.render(
        inputs=[handlers.layout.revision],
        triggers=[page.load, handlers.layout.revision.change],
        show_progress="hidden",
        concurrency_id="draw",  # one after the other: Gradio's session is not safe for threads
        concurrency_limit=1,
    )
    def draw_again(revision: str) -> None:
        draw(handlers, revision)


def _connect_projects(handlers: Handlers) -> None:
    """Connect what opens a project or makes a new one."""
    layout = handlers.layout
    layout.project.input(shown(handlers.open), [layout.project, layout.window], layout.shown, **private())
    words = [layout.idea, layout.source, layout.emotion, layout.panels, layout.seed]
    layout.write.click(shown(handlers.write), [*words, layout.window], layout.shown, **private("minimal"))
    layout.idea.blur(None, [layout.idea, layout.opened], None, js=IDEA)
    layout.idea.blur(shown(handlers.save_idea), [layout.idea, layout.opened, layout.window], None, **in_order())
    layout.example.click(shown(handlers.start_example), [layout.window], layout.shown, **private("minimal"))
    layout.create.click(shown(handlers.create), [layout.script, layout.window], layout.shown, **private("minimal"))
    layout.upload.upload(shown(handlers.read_upload), [layout.upload], [layout.script], **private())
    layout.opened.change(None, [layout.opened], None, js=ADDRESS)
    layout.opened.change(shown(handlers.show_changes), layout.look_inputs, layout.changes, **private())


def _connect_story(handlers: Handlers) -> None:
    """Connect what changes the story of the open project."""
    layout = handlers.layout
    own = [layout.opened, layout.window]
    events = [
        layout.save_script.click(
            shown(handlers.save_script), [layout.script, *own], layout.shown, **in_order("minimal")
        ),
        layout.title.blur(shown(handlers.change_title), [layout.title, *own], [layout.script], **in_order()),
        layout.title.submit(shown(handlers.change_title), [layout.title, *own], [layout.script], **in_order()),
        layout.style.input(shown(handlers.change_style), [layout.style, *own], [layout.script], **in_order()),
        layout.add_panel.click(
            shown(handlers.add_panel), own, [layout.script, layout.results, layout.revision], **in_order()
        ),
    ]
    for event in events:
        event.success(shown(handlers.show_changes), layout.look_inputs, layout.changes, **private())
    look = [layout.seed, layout.page_layout, layout.with_video]
    for event in (layout.seed.blur, layout.seed.submit, layout.page_layout.input, layout.with_video.input):
        event(shown(handlers.save_look), [*own, *look], layout.changes, **in_order())


def _connect_jobs(handlers: Handlers) -> None:
    """Connect what takes long, and what shows how it stands."""
    layout = handlers.layout
    look = [layout.seed, layout.page_layout, layout.with_video]
    own = [layout.opened, layout.window]
    layout.generate.click(shown(handlers.generate), [*own, *look], layout.progress, **in_order())
    layout.cancel.click(shown(handlers.cancel), [layout.opened], layout.progress, **private())
    layout.export.click(shown(handlers.export), [*own, layout.exports, layout.paper], layout.progress, **in_order())
    layout.timer.tick(
        handlers.poll,
        [*own, layout.project, layout.seen, layout.revision],
        [*layout.shown, layout.progress, layout.seen],  # queued: only so do changed states redraw the cards
        **private(),
    )
    layout.revision.change(shown(handlers.show_changes), layout.look_inputs, layout.changes, **private())
