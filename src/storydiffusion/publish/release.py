"""Release the trained parts of a run as a folder that can be loaded, verified and published.

The folder gets predictor/ and motion_adapter/ (the trained parts) with EMA weights as safetensors; config.json, the
run's configuration; README.md, the model card; and SHA256SUMS. The newest checkpoint is used, a file or a DeepSpeed
folder; the run may still be training. `from_pretrained(FOLDER)` verifies and loads the parts.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.errors import UserError, first_line
from storydiffusion.files.atomic import draft_path, write_atomically
from storydiffusion.files.checksums import check_checksums, write_checksums
from storydiffusion.files.json_file import json_bytes, read_object

if TYPE_CHECKING:
    import torch
    from diffusers.models.unets.unet_motion_model import MotionAdapter
    from torch import Tensor

    from storydiffusion.models.semantic_motion_predictor import SemanticMotionPredictor

DTYPES = ("float32", "float16")
CONFIG = "config.json"
DEEPSPEED_STATES = "checkpoint/mp_rank_00_model_states.pt"
"""The file of a DeepSpeed checkpoint that holds what Lightning saves; ZeRO-2 shards optimizer states only."""

PREFIXES = {"predictor": "predictor.", "motion_adapter": "video_unet.unet."}
"""Part → prefix of its weights' names in the training module."""

TITLES = {"predictor": "Semantic motion predictor", "motion_adapter": "Motion modules"}

FRONT = """---
license: {license}
library_name: diffusers
tags: [storydiffusion, text-to-video]
---

# {title}

Trained with StoryDiffusion's open training code (an independent implementation of arXiv 2405.01434) around the model
{model}, whose own weights are not included.
"""

LOADING = """
## Loading

```python
from storydiffusion.publish.release import from_pretrained

released = from_pretrained("{folder}")  # checks SHA256SUMS; {attributes}
```

```sh
{command}
```
"""

DRAWN_RIGHTS = """
The training clips are procedurally drawn and contain no third-party images or text. These weights are licensed under
Apache-2.0. They cover StoryWorld, a drawn world, and nothing else: measurements on it compare methods within that
world and do not predict quality on real video.
"""

FILMED_RIGHTS = """
- These weights require Stable Diffusion 1.5, which is under the CreativeML Open RAIL-M license; its use restrictions
  apply to the outputs.
- The rights in these weights depend on the rights in the training videos, which have not been cleared. WebVid-10M in
  particular consists of a stock agency's previews and is no longer distributed: use weights trained on it for research
  only, and seek permission for any other use.
"""


@dataclass
class ReleaseConfig:
    """The settings of the command."""

    run: str
    out: str
    dtype: str
    measured: str | None  # folder with a table.md, of compare or evaluate
    upload: str | None  # NAME/REPOSITORY on the hub

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"dtype={self.dtype}: choose one of {', '.join(DTYPES)}")


@dataclass(frozen=True)
class Release:
    """The parts of a released folder, on the CPU in eval mode (None: not trained), and its config.json."""

    predictor: "SemanticMotionPredictor | None"
    motion_adapter: "MotionAdapter | None"
    config: dict[str, Any]


def from_pretrained(folder: str | Path, dtype: "torch.dtype | None" = None) -> Release:
    """Load a released folder after verifying all its files against SHA256SUMS.

    Args:
        dtype: of the weights; None: as stored.

    Raises:
        UserError: not a release, or a file that is missing, has changed or was added.
    """
    import torch

    from storydiffusion.models.motion_adapters import load_motion_adapter
    from storydiffusion.models.predictor_files import load_predictor

    folder = Path(folder)
    check_checksums(folder)
    config = _read_config(folder)
    kept: torch.dtype = dtype or getattr(torch, config["dtype"])
    predictor, adapter = (folder / part if (folder / part).is_dir() else None for part in PREFIXES)
    return Release(
        load_predictor(predictor, kept) if predictor else None,
        load_motion_adapter(adapter, dtype=kept) if adapter else None,
        config,
    )


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = read_object(folder / CONFIG)
        if config.get("dtype") not in DTYPES:
            raise ValueError(f"its dtype is none of {', '.join(DTYPES)}")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {folder / CONFIG} ({first_line(error)}): download the release again") from error
    return config


def release(config: ReleaseConfig) -> None:
    """Write the release in a temporary folder, verify it and move it to OUT."""
    out = Path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out} is not empty: choose a new folder, since releases are never overwritten")
    checkpoint = read_checkpoint(Path(config.run))
    draft = draft_path(out)
    try:
        draft.mkdir(parents=True)
        parts = write_parts(checkpoint, draft, config.dtype)
        text = build_card(checkpoint, parts, config, out.name)
        settings = {"parts": parts, "dtype": config.dtype, "steps": checkpoint["global_step"]}
        written = {**settings, "training": dict(checkpoint["config"])}
        write_atomically(draft / CONFIG, json_bytes(written))
        write_atomically(draft / "README.md", text.encode())
        for file in draft.rglob("*.safetensors"):
            file.chmod(0o644)  # safetensors files are owner-only by default; a release is shared
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
    """Read the newest checkpoint of a run: tensors and plain data only, no code is executed.

    Raises:
        UserError: no run, or a checkpoint that is unreadable or of another recipe.
    """
    from storydiffusion.training.checkpoint_io import load_plain, newest_checkpoint

    found = newest_checkpoint(folder / "checkpoints")
    if found is None:
        raise UserError(f"run={folder} has no checkpoints: give the run_dir of a training")
    file = found.path / DEEPSPEED_STATES if found.path.is_dir() else found.path
    checkpoint = load_plain(file, mmap=True)
    if "parts" not in checkpoint:
        raise UserError(f"{file} contains neither predictor nor motion modules: choose a run that trains them")
    return checkpoint


def write_parts(checkpoint: Mapping[str, Any], folder: Path, dtype: str) -> dict[str, int]:
    """Write the EMA weights of every trained part and return their parameter counts."""
    import torch
    from diffusers.models.unets.unet_motion_model import MotionAdapter

    from storydiffusion.loaders.boundary_frames import write_training_record
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
            raise UserError(f"the checkpoint's EMA lacks {min(lacking)} of the {part}: choose another run")
        network.load_state_dict(own | buffers)
        network.to(getattr(torch, dtype))
        if isinstance(network, SemanticMotionPredictor):
            save_predictor(network, arguments, folder / part)
        else:
            network.save_pretrained(folder / part)
            write_training_record(folder / part, checkpoint["config"]["recipe"]["boundary_frame_prob"])
        counts[part] = sum(weight.numel() for weight in network.parameters())
    return counts


def build_card(checkpoint: Mapping[str, Any], parts: Mapping[str, int], config: ReleaseConfig, name: str) -> str:
    """Build the model card in Markdown."""
    from storydiffusion.evaluation.tables import markdown_table
    from storydiffusion.training.csv_log import read_mean_losses

    settings, recipe = checkpoint["config"], checkpoint["config"]["recipe"]
    drawn = settings["data"]["storyworld"] is not None
    title = " and ".join(TITLES[part] for part in parts)
    rows = [
        *([part, f"{count:,} parameters, {config.dtype}"] for part, count in parts.items()),
        ["base model", f"{settings['model']['name']} ({settings['model']['path']})"],
        ["clips", describe_clips(settings["data"])],
        ["steps", f"{checkpoint['global_step']:,} of {recipe['steps']:,}, {recipe['batch_size']} clips per step"],
        ["wall time", f"{checkpoint['callbacks']['Stopwatch']['seconds'] / 60:.0f} min"],
        ["machine", checkpoint["machine"]],
        ["precision and strategy", f"{settings['trainer']['precision']}, {settings['trainer']['strategy']}"],
        *([name, f"{loss:.4f}"] for name, loss in read_mean_losses(Path(config.run)).items()),
    ]
    if settings["model"]["video"]["boundary_attention"]:
        rows.append(["beyond the paper", "boundary-frame attention in every spatial self-attention"])
    if recipe["boundary_frame_prob"]:
        rows.append(
            ["beyond the paper", f"clean boundary frames in {100 * recipe['boundary_frame_prob']:g} % of the clips"]
        )
    if recipe["teacher_forcing"]:
        forced = f"conditioned on the true frames' tokens in {100 * recipe['teacher_forcing']:g} % of the clips"
        rows.append(["beyond the paper", forced])
    commands = [f"model.video.{part}={name}/{part}" for part in parts]
    loading = LOADING.format(
        folder=name,
        attributes=", ".join(f"released.{part}" for part in parts),
        command=" ".join(["python infer.py", f"model={settings['model']['name']}", *commands]),
    )
    return (
        FRONT.format(license="apache-2.0" if drawn else "other", title=title, model=settings["model"]["name"])
        + f"\n## Training\n\n{markdown_table(['', 'value'], rows)}"
        + f"\n## Measured\n\n{measured_table(config.measured)}{loading}\n## License and limits\n"
        + (DRAWN_RIGHTS if drawn else FILMED_RIGHTS)
    )


def describe_clips(data: Mapping[str, Any]) -> str:
    """Describe the training clips in words."""
    shape = f"{data['frames']} frames of {data['width']} × {data['height']}, stride {data['stride']}"
    if data["storyworld"] is None:
        return f"the user's video shards, {shape}"
    return f"{data['storyworld']['clips']:,} drawn clips of StoryWorld (seed {data['storyworld']['seed']}), {shape}"


def measured_table(folder: str | None) -> str:
    """Return table.md of a folder. Raises UserError where the folder has none."""
    if folder is None:
        return "No metrics were measured for this release.\n"
    try:
        return (Path(folder) / "table.md").read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"measured={folder} has no table.md: give an output folder of `storydiffusion compare` or `evaluate`"
        ) from error


def upload(folder: Path, repository: str) -> str:
    """Upload the folder to a hub repository, created if missing, and return its address."""
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
