"""The documentation: Python blocks run, commands compose, and links, files and make targets exist.

An HTML comment on the line before a fence changes how its block is tested:

    <!-- test: skip (reason) -->          compile the block and resolve its imports only
    <!-- test: replace "X" miniature -->  run it with "X" replaced by the miniature's folder
    <!-- test: slow, replace … -->        the same, among the slow tests
    <!-- file: NAME.py -->                write it to the working directory for the document's other blocks
"""

import ast
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tests.test_architecture import MAY_IMPORT

ROOT = Path(__file__).resolve().parents[1]
MINIATURE = ROOT / "src" / "storydiffusion" / "miniature"
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = [*GUIDES, *(ROOT / name for name in ("RESULTS.md", "CHANGELOG.md")), *sorted(ROOT.glob("*/README.md"))]
OTHER_COMMANDS = {("source", ".venv/bin/activate"), ("pip", "install")}


@dataclass(frozen=True)
class Block:
    """A fenced block: its document, first line, language, text and the comment before it."""

    document: Path
    line: int
    language: str
    text: str
    directive: str

    @property
    def name(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def read_blocks(document: Path) -> Iterator[Block]:
    lines = document.read_text(encoding="utf-8").splitlines()
    start: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        comment = re.fullmatch(r"<!-- (.*) -->", lines[start - 1]) if start else None
        text = "\n".join(lines[start + 1 : number]) + "\n"
        yield Block(document, start + 2, lines[start][3:], text, comment[1] if comment else "")
        start = None
    assert start is None, f"{document}: the block of line {start} does not end"


BLOCKS = [block for document in DOCUMENTS for block in read_blocks(document)]
PYTHON = [block for block in BLOCKS if block.language == "python"]


def python_tests() -> list:
    marks = {True: [pytest.mark.slow], False: []}
    run = [block for block in PYTHON if not block.directive.startswith(("test: skip", "file:"))]
    return [pytest.param(block, marks=marks[block.directive.startswith("test: slow")], id=block.name) for block in run]


@dataclass(frozen=True)
class Line:
    """One command of a ```bash block, with the block's assignments expanded."""

    block: Block
    words: tuple[str, ...]


def read_commands(block: Block) -> Iterator[Line]:
    variables: dict[str, str] = {}
    for line in block.text.replace("\\\n", " ").splitlines():
        if assigned := re.fullmatch(r"([A-Z]+)=(\S+)", line):
            variables[assigned[1]] = assigned[2]
            continue
        for name, value in variables.items():
            line = re.sub(rf"\${name}\b", value, line)
        if words := shlex.split(line, comments=True):
            yield Line(block, tuple(words))


COMMANDS = [line for block in BLOCKS if block.language == "bash" for line in read_commands(block)]


def in_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enter a directory with the repository's examples and two images."""
    monkeypatch.chdir(tmp_path)
    Path("examples").symlink_to(ROOT / "examples")
    for name in ("a.png", "b.png"):
        Image.new("RGB", (128, 128), "white").save(name)


REGISTRIES = {
    "attention.variants": "VARIANTS",
    "attention.token_samplers": "TOKEN_SAMPLERS",
    "loaders.schedulers": "SCHEDULERS",
    "models.image_encoders": "IMAGE_ENCODERS",
    "training.clip_sources": "SOURCES",
    "writer.brief": "WRITERS",
    "training.diffusion_loss": "ERROR_SPACES",
    "evaluation.metrics.registry": "METRICS",
}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory for a document's code; registrations and imports of its files are undone afterwards."""
    in_workspace(tmp_path, monkeypatch)
    monkeypatch.syspath_prepend(str(tmp_path))
    registries = [getattr(importlib.import_module(f"storydiffusion.{at}"), name) for at, name in REGISTRIES.items()]
    saved = [(registry, dict(registry)) for registry in registries]
    yield tmp_path
    for registry, entries in saved:
        registry.clear()
        registry.update(entries)
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.mark.parametrize("block", python_tests())
def test_python_blocks_run(block: Block, workspace: Path):
    for file in BLOCKS:
        if file.document == block.document and file.directive.startswith("file: "):
            path = workspace / file.directive.removeprefix("file: ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file.text, encoding="utf-8")
    text = block.text
    if replaced := re.search(r'replace ("\S+") miniature', block.directive):
        assert replaced[1] in text
        text = text.replace(replaced[1], repr(str(MINIATURE)))
    exec(compile(text, block.name, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.name)
def test_python_blocks_import_existing_names(block: Block):
    tree = ast.parse(block.text, block.name)
    local = {Path(other.directive.removeprefix("file: ")).stem for other in BLOCKS if other.directive[:5] == "file:"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module not in local:
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def first_of_sweep(word: str) -> str:
    """Return an override with the first of its swept values."""
    key, sign, value = word.partition("=")
    is_sweep = sign and "," in value and not set(value) & set("[{'\"")
    return f"{key}={value.partition(',')[0]}" if is_sweep else word


def compose(verb: str, words: tuple[str, ...]) -> None:
    """Compose and check the configuration of a command, as the command itself does before its work."""
    from storydiffusion.commands import VERBS, load_verb
    from storydiffusion.config.command_line import compose_config

    assert verb in VERBS
    flags = {"-m", "--help", "--version", "--cfg", "job"}
    overrides = [first_of_sweep(word) if "-m" in words else word for word in words if word not in flags]
    if not {"--help", "--version"} & set(words):
        compose_config(load_verb(verb), verb.replace("-", "_"), overrides)


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: f"{line.block.name}: {shlex.join(line.words)}")
def test_commands_are_valid(line: Line, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    match line.words:
        case ("storydiffusion", verb, *overrides):
            compose(verb, tuple(overrides))
        case ("python", "infer.py" | "train.py" as script, *overrides):
            compose(script.removesuffix(".py"), tuple(overrides))
        case ("python", "-m", "pytest", *arguments):
            assert all(Path(word).exists() for word in arguments if word.startswith("tests/"))
        case ("python", script, *_):
            assert Path(script).is_file()
        case ("sbatch", *arguments):
            script = arguments.index("slurm/train.sbatch")
            assert Path(arguments[script]).is_file()
            compose("train", tuple(arguments[script + 1 :]))
        case ("make", *arguments):
            target = arguments[-1]
            assert re.search(rf"^{target}:.*##", Path("Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        case _:
            assert line.words[:2] in OTHER_COMMANDS, f"no rule tests {shlex.join(line.words)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_links_and_paths_exist(document: Path):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = document.parent / path if path else document
        assert linked.exists(), f"{document.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", [*GUIDES, *ROOT.glob("*/README.md")], ids=lambda file: str(file.relative_to(ROOT)))
def test_paths_exist(document: Path):
    """Paths are relative to the repository, the package or the tests."""
    roots = (ROOT, ROOT / "src" / "storydiffusion", ROOT / "tests")
    for path in re.findall(r"`([\w.-]+/[\w./-]*)`", document.read_text(encoding="utf-8")):
        first = Path(path).parts[0]
        if any((root / first).is_dir() for root in roots) and first not in (".venv", "runs"):
            assert any((root / path).exists() for root in roots), f"{document.name} names {path}"


def test_the_design_names_every_folder():
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    folders = [folder for folder in MAY_IMPORT if folder not in ("errors", "__main__")]
    assert [folder for folder in folders if f"`{folder}/`" not in text] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_the_ci_workflow_runs_the_script_for_all_supported_versions():
    import tomllib

    import yaml

    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert {"run": "bash .ci/run"} in job["steps"]
    supported = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    low, high = map(int, re.findall(r"3\.(\d+)", supported))
    assert job["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in range(low, high)]


def test_the_citation_file_names_the_paper_and_the_version():
    import tomllib

    import yaml

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["preferred-citation"]["url"] == "https://arxiv.org/abs/2405.01434"
    assert len(citation["preferred-citation"]["authors"]) == 5
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {version}" in changelog


def test_directives_are_understood():
    known = r'test: (skip \(.+\)|(slow, )?replace "\S+" miniature)|file: \S+'
    assert [block.name for block in PYTHON if block.directive and not re.fullmatch(known, block.directive)] == []
