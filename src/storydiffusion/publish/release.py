"""Releases what a run has trained: a folder that others can load, check and publish.

  python -m storydiffusion.release run=runs/transition out=releases/predictor
  python -m storydiffusion.release run=… out=… dtype=float16                     half the bytes
  python -m storydiffusion.release run=… out=… measured=runs/measure_video       with the table measured there
  python -m storydiffusion.release run=… out=… upload=NAME/REPOSITORY            and puts it on the hub

OUT gets predictor/ and motion_adapter/, those that were trained, of averaged weights as safetensors; config.json, the
run's whole configuration; README.md, the model card; SHA256SUMS. The newest checkpoint is read, also of a run that goes
on, and DeepSpeed's folders as well as files. `storydiffusion.release.from_pretrained(OUT)` loads the parts, and
`python infer.py model.video.predictor=OUT/predictor` tells with them.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.config.module_command import run
from storydiffusion.errors import UserError, first_line
from storydiffusion.output.files import check_checksums, write_checksums

if TYPE_CHECKING:
    import torch
    from diffusers.models.unets.unet_motion_model import MotionAdapter
    from torch import Tensor

    from storydiffusion.models.semantic_motion_predictor import SemanticMotionPredictor

DTYPES = ("float32", "float16")
CONFIG = "config.json"
DEEPSPEED_STATES = "checkpoint/mp_rank_00_model_states.pt"
"""where DeepSpeed keeps, in its folder, what Lightning keeps in a file: ZeRO-2 splits optimizer states alone"""

PREFIXES = {"predictor": "predictor.", "motion_adapter": "video_unet.unet."}
"""of the names of each part's weights in the training module"""

TITLES = {"predictor": "Semantic motion predictor", "motion_adapter": "Motion modules"}

FRONT = """---
license: {license}
library_name: diffusers
tags: [storydiffusion, text-to-video]
---

# {title}

Trained with StoryDiffusion's open training code (an independent implementation of arXiv 2405.01434) around the model
{model}, whose own weights are not in this folder.
"""

LOADING = """
## Loading

```python
from storydiffusion.release import from_pretrained

released = from_pretrained("{folder}")  # checks SHA256SUMS; {attributes}
```

```sh
{command}
```
"""

DRAWN_RIGHTS = """
The clips were drawn by a program; no picture and no text of anybody's went into them. These weights are licensed under
Apache-2.0. They know StoryWorld, a drawn world, and nothing else: what is measured on it says how methods compare
there, not how well real videos come out.
"""

FILMED_RIGHTS = """
- Stable Diffusion 1.5, around which these weights were trained and without which they are of no use, is under the
  CreativeML Open RAIL-M licence; its restrictions of use hold for what is made with it.
- The rights of the training videos decide on those of these weights, and nobody has cleared them here. WebVid-10M in
  particular consists of a stock agency's previews and is no longer given out by its makers: take weights trained on it
  for research only, and ask before anything else.
"""


@dataclass
class ReleaseConfig:
    """The command's settings."""

    run: str
    out: str
    dtype: str = "float32"
    measured: str | None = None  # folder of `storydiffusion.measure_video`
    upload: str | None = None  # NAME/REPOSITORY on the hub

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"dtype={self.dtype}: choose one of {', '.join(DTYPES)}")


@dataclass(frozen=True)
class Release:
    """The parts in a released folder, on the CPU in eval mode, and its config.json; None: it was not trained."""

    predictor: "SemanticMotionPredictor | None"
    motion_adapter: "MotionAdapter | None"
    config: dict[str, Any]


def from_pretrained(folder: str | Path, dtype: "torch.dtype | None" = None) -> Release:
    """Loads a released folder, once all its files are found to be as they were released.

    Args:
        dtype: of the weights; None: as they are stored.

    Raises:
        UserError: no release there, or a file that is missing, has changed or was added.
    """
    import torch

    from storydiffusion.models.motion_adapters import load_motion_adapter
    from storydiffusion.models.predictor_files import load_predictor

    folder = Path(folder)
    check_checksums(folder)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    kept: torch.dtype = dtype or getattr(torch, config["dtype"])
    predictor, adapter = (folder / part if (folder / part).is_dir() else None for part in PREFIXES)
    return Release(
        load_predictor(predictor, kept) if predictor else None,
        load_motion_adapter(adapter, dtype=kept) if adapter else None,
        config,
    )


def release(config: ReleaseConfig) -> None:
    """Writes the folder beside its place and moves it there whole; see the head of this file."""
    out = Path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out} is not empty: a release is never written over another, choose a new folder")
    checkpoint = read_checkpoint(Path(config.run))
    draft = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        draft.mkdir(parents=True)
        parts = write_parts(checkpoint, draft, config.dtype)
        text = card(checkpoint, parts, config, out.name)
        settings = {"parts": parts, "dtype": config.dtype, "steps": checkpoint["global_step"]}
        written = {**settings, "training": dict(checkpoint["config"])}
        (draft / CONFIG).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
        (draft / "README.md").write_text(text, encoding="utf-8")
        for file in draft.rglob("*.safetensors"):
            file.chmod(0o644)  # safetensors keeps them to their owner; these are to be given away
        write_checksums(draft)
        from_pretrained(draft)
        if out.exists():
            out.rmdir()
        draft.rename(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}; make room or choose another out") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    print(f"released: {out}, {', '.join(f'{part} ({count:,} parameters)' for part, count in parts.items())}")
    if config.upload:
        print(f"uploaded: {upload(out, config.upload)}")


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The newest checkpoint of a run; tensors and plain data only, so nothing in it is executed.

    Raises:
        UserError: no run there, or a checkpoint that cannot be read or is of another kind of training.
    """
    from storydiffusion.training.checkpoint_io import load_plain, newest_checkpoint

    found = newest_checkpoint(folder / "checkpoints")
    if found is None:
        raise UserError(f"run={folder} has no checkpoints: name the run_dir of a training")
    file = found.path / DEEPSPEED_STATES if found.path.is_dir() else found.path
    checkpoint = load_plain(file, mmap=True)
    if "parts" not in checkpoint:
        raise UserError(f"{file} is no checkpoint of predictor or motion modules: name a run that trains these")
    return checkpoint


def write_parts(checkpoint: Mapping[str, Any], folder: Path, dtype: str) -> dict[str, int]:
    """Writes the averaged weights of every trained part; returns their numbers of parameters."""
    import torch
    from diffusers.models.unets.unet_motion_model import MotionAdapter

    from storydiffusion.models.predictor_files import save_predictor
    from storydiffusion.models.semantic_motion_predictor import SemanticMotionPredictor

    average: dict[str, Tensor] = checkpoint["callbacks"]["EMA"]["average"]
    counts = {}
    for part, arguments in checkpoint["parts"].items():
        network = SemanticMotionPredictor(**arguments) if part == "predictor" else MotionAdapter(**arguments)
        prefix = PREFIXES[part]
        own = {name.removeprefix(prefix): weight for name, weight in average.items() if name.startswith(prefix)}
        buffers = {name: tensor for name, tensor in network.state_dict().items() if name not in own}
        if lacking := buffers.keys() & dict(network.named_parameters()).keys():
            raise UserError(f"the checkpoint's average lacks {min(lacking)} of the {part}: name another run")
        network.load_state_dict(own | buffers)
        network.to(getattr(torch, dtype))
        if isinstance(network, SemanticMotionPredictor):
            save_predictor(network, arguments, folder / part)
        else:
            network.save_pretrained(folder / part)
        counts[part] = sum(weight.numel() for weight in network.parameters())
    return counts


def card(checkpoint: Mapping[str, Any], parts: Mapping[str, int], config: ReleaseConfig, name: str) -> str:
    """The model card in Markdown."""
    from storydiffusion.evaluation.tables import markdown_table
    from storydiffusion.training.csv_log import logged_losses

    settings, recipe = checkpoint["config"], checkpoint["config"]["recipe"]
    drawn = settings["data"]["storyworld"] is not None
    title = " and ".join(TITLES[part] for part in parts)
    rows = [
        *([part, f"{count:,} parameters, {config.dtype}"] for part, count in parts.items()),
        ["model around them", f"{settings['model']['name']} ({settings['model']['path']})"],
        ["clips", clips_of(settings["data"])],
        ["steps", f"{checkpoint['global_step']:,} of {recipe['steps']:,}, each of {recipe['batch_size']} clips"],
        ["wall time", f"{checkpoint['callbacks']['Stopwatch']['seconds'] / 60:.0f} min"],
        ["machine", checkpoint["machine"]],
        ["precision and strategy", f"{settings['trainer']['precision']}, {settings['trainer']['strategy']}"],
        *([name, f"{loss:.4f}"] for name, loss in logged_losses(Path(config.run)).items()),
    ]
    if settings["model"]["video"]["boundary_attention"]:
        rows.append(["beside the paper", "each frame's self-attention reads the end frames too"])
    if recipe["boundary_frame_prob"]:
        rows.append(["beside the paper", f"clean end frames in {100 * recipe['boundary_frame_prob']:g} % of the clips"])
    if recipe["teacher_forcing"]:
        forced = f"told by the true frames' tokens in {100 * recipe['teacher_forcing']:g} % of the clips"
        rows.append(["beside the paper", forced])
    commands = [f"model.video.{part}={name}/{part}" for part in parts]
    loading = LOADING.format(
        folder=name,
        attributes=", ".join(f"released.{part}" for part in parts),
        command=" ".join(["python infer.py", f"model={settings['model']['name']}", *commands]),
    )
    return (
        FRONT.format(license="apache-2.0" if drawn else "other", title=title, model=settings["model"]["name"])
        + f"\n## Training\n\n{markdown_table(['', 'value'], rows)}"
        + f"\n## Measured\n\n{measured_table(config.measured)}{loading}\n## Licence and limits\n"
        + (DRAWN_RIGHTS if drawn else FILMED_RIGHTS)
    )


def clips_of(data: Mapping[str, Any]) -> str:
    """What was learnt from, in words."""
    shape = f"{data['frames']} frames of {data['width']} × {data['height']}, stride {data['stride']}"
    if data["storyworld"] is None:
        return f"shards of videos of its user's, {shape}"
    return f"{data['storyworld']['clips']:,} drawn clips of StoryWorld (seed {data['storyworld']['seed']}), {shape}"


def measured_table(folder: str | None) -> str:
    """Raises UserError where the folder that is named holds no table."""
    if folder is None:
        return "Nothing was measured for this release.\n"
    try:
        return (Path(folder) / "table.md").read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"measured={folder} has no table.md: name a folder of storydiffusion.measure_video") from error


def upload(folder: Path, repository: str) -> str:
    """Puts the folder on the hub, into a repository that is made where missing; returns its address."""
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder))
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, httpx.HTTPError, OSError) as error:
        raise UserError(
            f"cannot upload to {repository} ({first_line(error)}): log in with `hf auth login`, then upload {folder} "
            "with `hf upload`"
        ) from error


if __name__ == "__main__":
    run(ReleaseConfig, release, __doc__)
