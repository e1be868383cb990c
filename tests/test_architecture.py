"""Which folder may import which: the table below, checked against the source."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "storydiffusion"
MODULES = sorted(PACKAGE.rglob("*.py"))

LEAVES = "errors files story config output attention data storyworld"
MAY_IMPORT = {
    "errors": "",
    "files": "errors",
    "story": "errors files",
    "config": "errors files attention output",
    "output": "errors files",
    "attention": "errors",
    "data": "errors files",
    "storyworld": "errors files data output",
    "models": "errors files story config attention",
    "writer": "errors files story config storyworld loaders",
    "loaders": "errors files config models",
    "pipelines": f"{LEAVES} models loaders",
    "baselines": f"{LEAVES} models loaders pipelines",
    "generation": "errors files story config output storyworld models loaders writer pipelines baselines",
    "studio": "errors files story config output loaders writer generation",
    "training": f"{LEAVES} models loaders pipelines",
    "evaluation": f"{LEAVES} models loaders writer pipelines baselines training",
    "experiments": f"{LEAVES} evaluation",
    "publish": f"{LEAVES} models loaders pipelines training evaluation",
    "user_study": f"{LEAVES} evaluation",
    "__main__": "commands",
    "commands": (
        f"{LEAVES} models loaders writer pipelines baselines generation studio training evaluation experiments publish"
        " user_study"
    ),
}
"""Folder → what its modules may import beside itself."""

TORCH_ONLY = (
    "attention/consistent_self_attention.py",
    "models/semantic_motion_predictor.py",
    "models/resampler.py",
    "training/diffusion_loss.py",
)
"""One idea of the paper each: at import these know torch, the errors and each other, and no other module."""

HEAVY = {
    "torch", "torchvision", "diffusers", "transformers", "open_clip", "lightning", "accelerate", "skia", "matplotlib",
    "scipy", "gradio", "fastapi", "starlette", "uvicorn",
}  # fmt: skip
LIGHT = (
    "", "errors", "files", "story", "config", "output", "loaders", "experiments", "publish", "user_study",
    "writer", "generation", "studio", "commands",
)  # fmt: skip
"""Folders whose modules import nothing heavy before there is work for it."""
HEAVY_MODULE = "output/skia_import.py"
"""It is the import of a heavy library, and is itself imported as one."""


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


def folders(file: Path) -> set[str]:
    """The folders of this package that a file imports from."""
    return {name.split(".")[1] for name in imports(file) if name.startswith("storydiffusion.")}


def libraries(file: Path, at_import_only: bool = False) -> set[str]:
    return {name.split(".")[0] for name in imports(file, at_import_only)}


def relative(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def folder_of(file: Path) -> str:
    """The first folder of a module below the package; `errors` for errors.py, "" for the package's own __init__."""
    first = relative(file).split("/")[0].removesuffix(".py")
    return "" if first == "__init__" else first


@pytest.mark.parametrize("file", [file for file in MODULES if folder_of(file)], ids=relative)
def test_a_folder_imports_what_the_table_allows(file):
    assert folder_of(file) in MAY_IMPORT, f"{relative(file)} lies in no folder of the table"
    assert folders(file) - {folder_of(file)} <= set(MAY_IMPORT[folder_of(file)].split())


def test_the_arrows_form_no_circle():
    TopologicalSorter({folder: allowed.split() for folder, allowed in MAY_IMPORT.items()}).prepare()


def test_modules_form_no_circle():
    """Of all imports, those inside functions included."""
    names = {".".join(("storydiffusion", *file.relative_to(PACKAGE).with_suffix("").parts)): file for file in MODULES}
    names = {name.removesuffix(".__init__"): file for name, file in names.items()}
    arrows = {}
    for name, file in names.items():
        found = {each if each in names else each.rpartition(".")[0] for each in imports(file, at_import_only=True)}
        arrows[name] = found & set(names) - {name}
    TopologicalSorter(arrows).prepare()


@pytest.mark.parametrize("file", [PACKAGE / idea for idea in TORCH_ONLY], ids=relative)
def test_ideas_know_torch_only(file):
    assert not libraries(file) & HEAVY - {"torch"}
    modules = {f"storydiffusion.{idea.removesuffix('.py').replace('/', '.')}" for idea in TORCH_ONLY}
    imported = {n.rpartition(".")[0] for n in imports(file, at_import_only=True) if n.startswith("storydiffusion.")}
    assert imported <= modules | {"storydiffusion.errors"}


@pytest.mark.parametrize("file", [file for file in MODULES if folder_of(file) in LIGHT], ids=relative)
def test_what_answers_quickly_imports_nothing_heavy(file):
    if relative(file) == HEAVY_MODULE:
        return
    assert not libraries(file, at_import_only=True) & HEAVY
    module = f"storydiffusion.{HEAVY_MODULE.removesuffix('.py').replace('/', '.')}"
    assert not any(name.startswith(module) for name in imports(file, at_import_only=True))


def test_the_reader_of_imports_sees_what_it_should(tmp_path):
    file = tmp_path / "x.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nimport torch.nn\nif TYPE_CHECKING:\n    import skia\n"
        "def f():\n    from storydiffusion.attention import plugin\nclass A:\n    import diffusers\n"
    )
    assert {"torch.nn", "skia", "storydiffusion.attention.plugin", "diffusers"} <= imports(file)
    assert imports(file, at_import_only=True) == {"typing.TYPE_CHECKING", "torch.nn", "diffusers"}
    assert folders(file) == {"attention"}
