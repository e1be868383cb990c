"""What the page shows of a project, as HTML in which all text is escaped."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

from storydiffusion.generation.changes import Changes
from storydiffusion.output.exports import FOLDER, find_pattern
from storydiffusion.output.html_page import render_page
from storydiffusion.output.manifest import PAGE, REPORT, TakeRecord
from storydiffusion.output.run_folder import describe_panels
from storydiffusion.story import panel_prompts
from storydiffusion.studio.jobs import JobState
from storydiffusion.studio.project import MANIFEST, Project

STAGES = {"loading": "loading the model", "panels": "denoising the panels", "takes": "denoising the takes",
          "video": "rendering transitions"}  # fmt: skip
SHOWN_LINES = 6  # of differences


def render(template: str, **values: Any) -> str:
    """Return a template of this package with its values escaped."""
    return render_page("storydiffusion.studio", f"{template}.html.j2", **values)


def link(name: str, file: str, version: str = "") -> str:
    """Return the address of a project's file; another `version` is fetched again."""
    return f"/projects/{quote(name)}/{quote(file)}" + (f"?v={version[:16]}" if version else "")


def get_revision(folder: Path) -> str:
    """Return a text that changes when something was generated in a project."""
    file = folder / MANIFEST
    return f"{folder.name}|{file.stat().st_mtime_ns if file.exists() else 0}"


def show_panel(project: Project, number: int) -> str:
    """Return the image of panel `number`, from 1, or what there is instead."""
    panel, record = project.story.panels[number - 1], project.records[number - 1]
    if record is None or not (project.folder / record.file).is_file():
        return render("image", url="", text="not generated yet", note="")
    is_current = record.prompt == panel_prompts(project.story)[number - 1].prompt
    note = "" if is_current else "this image is of an earlier prompt"
    url = link(project.name, record.file, record.sha256)
    return render("image", url=url, text=panel.caption or panel.prompt, note=note)


def show_portrait(project: Project, name: str) -> str:
    """Return the first image that shows only this character."""
    for panel, record in zip(project.story.panels, project.records, strict=True):
        if panel.characters == (name,) and record is not None and (project.folder / record.file).is_file():
            return render("image", url=link(project.name, record.file, record.sha256), text=name, note="")
    return render("image", url="", text=name[:1], note="")


def find_takes(project: Project, number: int) -> list[TakeRecord]:
    """Return the takes of panel `number`, from 1, in the order they were made."""
    manifest, record = project.manifest, project.records[number - 1]
    if manifest is None or record is None or record not in manifest.panels:
        return []
    place = manifest.panels.index(record)
    return sorted((take for take in manifest.takes if take.panel == place), key=lambda take: take.number)


def show_takes(project: Project, number: int) -> str:
    """Return the takes of panel `number`, from 1, side by side."""
    record = project.records[number - 1]
    takes = [
        {
            "url": link(project.name, take.file, take.sha256),
            "label": name_take(take),
            "seed": take.seed,
            "is_shown": record is not None and take.sha256 == record.sha256,
        }
        for take in find_takes(project, number)
    ]
    return render("takes", takes=takes) if takes else ""


def name_take(take: TakeRecord) -> str:
    """Return the name of a take in the page."""
    return f"take {take.number}" if take.number else "first image"


def show_job(job: JobState | None, before: int = 0) -> str:
    """Return how a job stands; `before` jobs of other projects come first."""
    if job is None:
        return ""
    if job.state == "waiting":
        text = f"{job.what}: waiting for {before} other {'job' if before == 1 else 'jobs'}"
    elif job.state == "running":
        steps = f", step {job.step} of {job.steps}" if job.steps else ""
        text = f"{job.what}: {STAGES.get(job.stage, job.stage or 'starting')}{steps}"
    else:
        text = job.message or job.state
    return render("progress", job=job, text=text)


def show_notice(*lines: str, role: str = "status") -> str:
    """Return sentences to read before anything else."""
    return render("notice", lines=lines, role=role)


def show_changes(changes: Changes) -> str:
    """Return what is not generated yet, and what generating would make."""
    if not changes.made and not changes.differences:
        return ""
    shown = list(changes.differences[:SHOWN_LINES])
    if more := len(changes.differences) - len(shown):
        shown.append(f"and {more} more")
    made = describe_panels(changes.made, changes.panels)
    what = "only the new panels" if changes.is_longer else made
    text = f"Not generated yet: {'; '.join(shown)}. Generate makes {what}, and rebuilds page, video and report."
    return show_notice(text)


def show_results(project: Project) -> str:
    """Return page, video, report and exports."""
    manifest = project.manifest
    if manifest is None or PAGE not in manifest.stated_results or not (project.folder / PAGE).is_file():
        return render("results", page="", video="", report="", exports=[])
    video = manifest.video if manifest.complete else None
    exports = sorted(each for each in (project.folder / FOLDER).glob("*") if find_pattern(each.name))
    return render(
        "results",
        page=link(project.name, PAGE, manifest.stated_results[PAGE]),
        video=link(project.name, video.file, video.sha256) if video else "",
        report=link(project.name, REPORT, manifest.results.get(REPORT, "")) if manifest.complete else "",
        exports=[
            (each.name, link(project.name, f"{FOLDER}/{each.name}", str(each.stat().st_mtime_ns))) for each in exports
        ],
    )
