"""Which room may import which: the arrows of the house, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "storydiffusion"
MODULES = sorted(PACKAGE.rglob("*.py"))

LEAVES = ("story", "data", "storyworld", "evaluation", "output")
ABOVE_LEAVES = (
    "images", "video", "models", "video_models", "reference_models", "assembly", "command_line", "module_command",
    "measure", "measure_video", "evaluate", "evaluation_models", "card", "release", "export_vistorybench",
    "user_study", "user_study_results", "sweep", "collect", "claims", "results",
)  # fmt: skip
IDEAS = (
    "images/consistent_self_attention.py",
    "video/semantic_motion_predictor.py",
    "video/diffusion_loss.py",
)  # torch only
ADAPTER_LIBRARIES = {"diffusers", "transformers", "open_clip", "lightning", "accelerate"}
HEAVY = ADAPTER_LIBRARIES | {"torch", "torchvision", "skia", "matplotlib", "scipy"}
QUICK = (
    "__init__.py", "errors.py", "config/*.py", "command_line.py", "assembly/*.py", "models.py", "video_models.py",
    "reference_models.py", "release.py", "module_command.py", "measure.py", "measure_video.py", "evaluate.py",
    "evaluation_models.py", "card.py", "export_vistorybench.py", "user_study.py", "user_study_results.py", "sweep.py",
    "collect.py", "claims.py", "results.py", "images/__init__.py", "video/__init__.py", "output/__init__.py",
    "story/*.py",
)  # fmt: skip


def imports(file: Path, at_import_only: bool = False) -> set[str]:
    """Dotted names of the modules that a file imports; `at_import_only` leaves out functions and TYPE_CHECKING."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if at_import_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if at_import_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text(encoding="utf-8")))
    return found


def rooms(file: Path) -> set[str]:
    """The rooms of this package that a file imports, or single modules of it."""
    return {name.split(".")[1] for name in imports(file) if name.startswith("storydiffusion.")}


def libraries(file: Path, at_import_only: bool = False) -> set[str]:
    return {name.split(".")[0] for name in imports(file, at_import_only)}


def relative(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("file", [f for f in MODULES if relative(f).split("/")[0] in LEAVES], ids=relative)
def test_leaves_import_nothing_from_above(file):
    assert not rooms(file) & set(ABOVE_LEAVES)


@pytest.mark.parametrize("file", [PACKAGE / idea for idea in IDEAS if (PACKAGE / idea).exists()], ids=relative)
def test_ideas_know_torch_only(file):
    assert not libraries(file) & ADAPTER_LIBRARIES
    assert rooms(file) <= {"errors"}


@pytest.mark.parametrize("file", sorted((PACKAGE / "images").glob("*.py")), ids=relative)
def test_images_know_neither_video_nor_what_is_built_of_them(file):
    assert rooms(file) <= {"errors", "images", "story"}


@pytest.mark.parametrize("file", [f for f in MODULES if not relative(f).startswith("assembly/")], ids=relative)
def test_only_commands_import_build(file):
    assert "assembly" not in rooms(file)


@pytest.mark.parametrize("name", ["infer", "train"])
def test_commands_see_config_and_build(name):
    file = ROOT / f"{name}.py"
    if not file.exists():
        pytest.skip(f"{name}.py is not there")
    assert rooms(file) <= {"assembly", "command_line", "config"}


@pytest.mark.parametrize("pattern", QUICK)
def test_what_answers_quickly_imports_nothing_heavy(pattern):
    for file in PACKAGE.glob(pattern):
        assert not libraries(file, at_import_only=True) & HEAVY, file


def test_the_reader_of_imports_sees_what_it_should(tmp_path):
    file = tmp_path / "x.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nimport torch.nn\nif TYPE_CHECKING:\n    import skia\n"
        "def f():\n    from storydiffusion.images import panels\nclass A:\n    import diffusers\n"
    )
    assert {"torch.nn", "skia", "storydiffusion.images.panels", "diffusers"} <= imports(file)
    assert imports(file, at_import_only=True) == {"typing.TYPE_CHECKING", "torch.nn", "diffusers"}
    assert rooms(file) == {"images"}
