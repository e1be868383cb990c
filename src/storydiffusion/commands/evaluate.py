"""`storydiffusion evaluate`: evaluate images and clips, of run folders or any folder: result.json, a table and plots.

conf/evaluate.yaml explains the settings and metrics.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.config.command_line import command
from storydiffusion.config.loading import check_choice
from storydiffusion.errors import UserError
from storydiffusion.evaluation.emotion_readers import EmotionReader, load_emotion_reader
from storydiffusion.evaluation.networks import (
    FULL_SCALE,
    LPIPS_CHOICES,
    MINIATURE,
    ImageTextEncoder,
    Networks,
    load_dreamsim,
    load_i3d,
    load_image_text_encoder,
    load_perceptual_distance,
)
from storydiffusion.files.atomic import write_atomically
from storydiffusion.files.checksums import compute_folder_sha256, compute_sha256
from storydiffusion.loaders.devices import choose_device
from storydiffusion.loaders.sources import OPEN_CLIP_SCHEME, package_path
from storydiffusion.output.folder_lock import own_folder

if TYPE_CHECKING:
    from storydiffusion.evaluation.inputs import Inputs

PARTNERS = {
    **dict.fromkeys(("captions", "boxes"), ("images",)),
    **dict.fromkeys(("reference", "frames", "i3d"), ("videos",)),
    **dict.fromkeys(("emotion", "emotion_probe", "dreamsim"), ("images", "run")),
}
"""Setting → what it can be combined with"""
DEVICES = ("auto", "cpu", "cuda")


@dataclass
class EvaluateConfig:
    """The settings of the command; see conf/evaluate.yaml."""

    run: str | None
    images: str | None
    videos: str | None
    out: str | None
    captions: str | None
    boxes: str | None
    reference: str | None
    frames: int | None
    encoder: str | None
    lpips: str
    emotion: str | None
    emotion_probe: str | None
    emotion_normalize: bool | None  # null: as the probe's file says
    dreamsim: str | None
    i3d: str | None
    device: str

    def __post_init__(self) -> None:
        from storydiffusion.story.emotions import EMOTIONS

        given = [name for name in ("run", "images", "videos") if getattr(self, name) is not None]
        if len(given) != 1:
            raise UserError(f"{' and '.join(given) or 'nothing'} to evaluate. Pass one of run=, images= and videos=")
        for name, partners in PARTNERS.items():
            if getattr(self, name) is not None and given[0] not in partners:
                raise UserError(f"{name}={getattr(self, name)} goes with {partners[0]}=FOLDER, not with {given[0]}=")
        check_choice("lpips", self.lpips, LPIPS_CHOICES)
        check_choice("device", self.device, DEVICES)
        if self.emotion is not None:
            check_choice("emotion", self.emotion, EMOTIONS)
        if self.emotion_probe is not None and self.emotion is None:
            raise UserError(f"emotion_probe={self.emotion_probe} needs the intended emotion. Pass emotion=NAME")
        if self.emotion_probe is None and self.emotion_normalize is not None:
            value = str(self.emotion_normalize).lower()
            raise UserError(f"emotion_normalize={value} is of a probe. Pass emotion_probe=FILE")
        if self.i3d is not None and self.reference is None:
            raise UserError(f"i3d={self.i3d} compares clips with references. Pass reference=FOLDER")
        if self.frames is not None and self.frames < 2:
            raise UserError(f"frames={self.frames} is too few: a clip needs 2 or more. Pass a larger number")

    @property
    def folder(self) -> Path:
        """The folder that is evaluated."""
        return Path(self.run or self.images or self.videos or "")


@command(EvaluateConfig)
def main(config: EvaluateConfig) -> None:
    """Read, measure and write everything; see conf/evaluate.yaml."""
    inputs = find_inputs(config)
    out = Path(config.out) if config.out else config.folder / "evaluation"
    with own_folder(out):
        print(evaluate(config, inputs, out))


def evaluate(config: EvaluateConfig, inputs: "Inputs", out: Path) -> str:
    """Measure the inputs, write everything into `out` and return the table."""
    from storydiffusion.evaluation.measure import measure_clips, measure_stories
    from storydiffusion.evaluation.measurements import Measurements
    from storydiffusion.evaluation.report import plot_measurements, write_remarks, write_table
    from storydiffusion.evaluation.result import save_result
    from storydiffusion.evaluation.tables import escape_markdown

    source = config.encoder or (MINIATURE if inputs.are_miniature else FULL_SCALE)
    networks = load_networks(config, source, bool(inputs.clips))
    measured = Measurements(networks.names)
    matrices = measure_stories(inputs, networks, measured, config.emotion)
    measure_clips(inputs.clips, networks, measured)
    if not measured.values:
        raise UserError(
            f"nothing to measure: {config.folder} has no image with a text, no pair of images and no clip. "
            "Choose another folder, or pass captions=FILE"
        )
    remarks = write_remarks(inputs, networks, measured, config.lpips, config.emotion)
    text = write_table(measured) + "\n" + "".join(f"- {escape_markdown(remark)}\n" for remark in remarks)
    for name, plot in plot_measurements(measured, matrices, networks.encoder.label).items():
        write_atomically(out / name, plot)
    write_atomically(out / "table.md", text.encode())
    save_result(measured.to_result(get_settings(config, networks, inputs), remarks), out)
    return text


def find_inputs(config: EvaluateConfig) -> "Inputs":
    """Find what is evaluated and refuse what is missing, before any network is loaded."""
    from storydiffusion.evaluation.inputs import find_images, find_runs, find_videos

    def to_path(value: str | None) -> Path | None:
        return None if value is None else Path(value)

    if config.run is not None:
        return find_runs(config.folder)
    if config.images is not None:
        return find_images(config.folder, to_path(config.captions), to_path(config.boxes))
    return find_videos(config.folder, to_path(config.reference), config.frames)


def load_networks(config: EvaluateConfig, source: str, has_clips: bool) -> Networks:
    """Load every network that the settings name; `source` is the encoder's.

    Raises:
        UserError: a network is missing, damaged, or does not fit.
    """
    device = choose_device(config.device, "device")
    encoder = load_image_text_encoder(source, device)
    return Networks(
        encoder,
        load_perceptual_distance(config.lpips, encoder) if has_clips else None,
        load_emotion(config, encoder),
        load_dreamsim(Path(config.dreamsim), device) if config.dreamsim else None,
        load_i3d(Path(config.i3d), device) if config.i3d else None,
    )


def load_emotion(config: EvaluateConfig, encoder: ImageTextEncoder) -> EmotionReader | None:
    """Load the classifier of emotions, if an emotion is intended."""
    if config.emotion is None:
        return None
    return load_emotion_reader(config.emotion_probe, encoder, config.emotion_normalize)


def get_settings(config: EvaluateConfig, networks: Networks, inputs: "Inputs") -> dict[str, Any]:
    """Return everything that the values depend on; weights by their checksums."""
    from storydiffusion.output.manifest import installed_versions

    source = networks.encoder.source
    emotion = networks.emotion
    files = {"emotion_probe": emotion and emotion.file, "i3d": config.i3d}
    weights = {name: compute_sha256(file) for name, file in files.items() if file is not None}
    if not source.startswith(OPEN_CLIP_SCHEME):
        folder = compute_folder_sha256(package_path(source))
        weights |= {f"encoder/{name}": checksum for name, checksum in folder.items()}
    return {
        "encoder": source,
        "lpips": networks.distance and networks.distance.label,
        "emotion": emotion and [config.emotion, emotion.label],
        "frames": config.frames,
        "weights": weights,
        "versions": installed_versions(
            ("torch", "torchmetrics", "open_clip_torch", "transformers", "opencv-python-headless")
        ),
        "inputs": inputs.settings,
    }
