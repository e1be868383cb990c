"""Evaluates pictures and clips, of a run folder or of any folder: result.json, a table and plots.

  python -m storydiffusion.evaluate run=runs/mia                       panels and transitions of a story
  python -m storydiffusion.evaluate run=runs                           of all run folders in a folder
  python -m storydiffusion.evaluate images=FOLDER captions=FILE        pictures of any origin, one line of text for each
  python -m storydiffusion.evaluate videos=FOLDER reference=FOLDER     .mp4 files, and the true ones of the same names

OUT (out=, by default FOLDER/evaluation) gets result.json, table.md, figures.png, similarity.png (of one story's
pictures with each other) and motion.png. images= takes pictures directly in the folder as one story, else each folder
in it as a story; texts may also stand in NAME.txt beside NAME.png. Every figure's name ends with what gave it.

- text-image similarity: cosine of picture and text, raw and as CLIPScore, 2.5 × max(0, cosine).
- character similarity: mean cosine over a story's pairs of pictures that show a character in common (all pairs where
  nobody says whom they show); with boxes=FILE also of the squares about the boxes: {"001.png": [x0, y0, x1, y1], …}.
- DreamSim distance, with dreamsim=FOLDER of its weights: the same pairs; its package must be installed.
- Emo-Score and Emo-A, with emotion=NAME, of Mikels' eight: probability of the emotion, and share of pictures for which
  it is the most probable; by comparing with words, or by emotion_probe=FILE (weight and bias as .npz or .safetensors).
- motion: mean length of the optical flow, as a share of the diagonal; with a reference also over that of the true clip.
- end-frame error: mean absolute difference of the first and last frame to panels, or to the true clip's.
- middle-frame error: distance (as in LPIPS below) of the frames between to the true clip's.
- LPIPS- and CLIPSIM-first (frames 2…F with frame 1) and -frames (neighbours), as in the paper's table 2.
- FVD, with i3d=FILE (TorchScript) and a reference: Fréchet distance of all clips to all true ones.

encoder= is a CLIP: package://…, a folder with its tokenizer, or open_clip://NAME/TAG-OR-FILE. By default it is the
miniature's own for a run of the miniature, else open_clip://ViT-H-14/laion2b_s32b_b79k. lpips=alex, vgg or squeeze
takes torchvision's weights under TORCH_HOME; encoder takes the encoder's tokens instead; auto (the default) is alex
where its weights are there. Further settings: frames (the first so many of each video), device (auto, cpu or cuda).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.config.command_line import command
from storydiffusion.config.loading import check_choice
from storydiffusion.errors import UserError
from storydiffusion.evaluation.networks import (
    FULL_SCALE,
    LPIPS_CHOICES,
    MINIATURE,
    Features,
    ImageTextEncoder,
    PerceptualDistance,
    load_dreamsim,
    load_i3d,
    load_image_text_encoder,
    load_perceptual_distance,
)
from storydiffusion.loaders.resolve import choose_device
from storydiffusion.loaders.sources import OPEN_CLIP_SCHEME, package_path
from storydiffusion.output.files import compute_folder_sha256, compute_sha256, write_atomically

if TYPE_CHECKING:
    import numpy as np

    from storydiffusion.evaluation.inputs import Clip, Inputs, Picture
    from storydiffusion.evaluation.summary import Measured

PARTNERS = {
    **dict.fromkeys(("captions", "boxes"), ("images",)),
    **dict.fromkeys(("reference", "frames", "i3d"), ("videos",)),
    **dict.fromkeys(("emotion", "emotion_probe", "dreamsim"), ("images", "run")),
}
"""setting → what it can be given with"""
DEVICES = ("auto", "cpu", "cuda")
MOST_IN_A_MATRIX = 40  # pictures of a story whose similarities are plotted
PIXELS = "pixels"  # what gives the end-frame error


@dataclass
class EvaluateConfig:
    """The command's settings; see the head of this file."""

    run: str | None = None
    images: str | None = None
    videos: str | None = None
    out: str | None = None
    captions: str | None = None
    boxes: str | None = None
    reference: str | None = None
    frames: int | None = None
    encoder: str | None = None
    lpips: str = "auto"
    emotion: str | None = None
    emotion_probe: str | None = None
    dreamsim: str | None = None
    i3d: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        from storydiffusion.evaluation.metrics.emotion import EMOTIONS

        given = [name for name in ("run", "images", "videos") if getattr(self, name) is not None]
        if len(given) != 1:
            raise UserError(f"{' and '.join(given) or 'nothing'} to evaluate: give one of run=, images= and videos=")
        for name, partners in PARTNERS.items():
            if getattr(self, name) is not None and given[0] not in partners:
                raise UserError(f"{name}={getattr(self, name)} goes with {partners[0]}=FOLDER, not with {given[0]}=")
        check_choice("lpips", self.lpips, LPIPS_CHOICES)
        check_choice("device", self.device, DEVICES)
        if self.emotion is not None:
            check_choice("emotion", self.emotion, EMOTIONS)
        if self.emotion_probe is not None and self.emotion is None:
            raise UserError(f"emotion_probe={self.emotion_probe} reads emotions: say which was meant, emotion=NAME")
        if self.i3d is not None and self.reference is None:
            raise UserError(f"i3d={self.i3d} compares clips with true ones: give reference=FOLDER")
        if self.frames is not None and self.frames < 2:
            raise UserError(f"frames={self.frames}: a clip needs 2 or more")

    @property
    def folder(self) -> Path:
        """What is evaluated."""
        return Path(self.run or self.images or self.videos or "")


@dataclass(frozen=True)
class EmotionReader:
    """`logits` of the eight emotions (P, 8) for embeddings (P, D) of pictures that were meant to evoke `emotion`."""

    emotion: str
    label: str
    logits: "Callable[[np.ndarray], np.ndarray]"


@dataclass(frozen=True)
class Networks:
    """What looks at pictures and clips."""

    encoder: ImageTextEncoder
    distance: PerceptualDistance | None  # of clips
    emotions: EmotionReader | None
    dreamsim: Features | None
    i3d: Features | None


def evaluate(config: EvaluateConfig) -> None:
    """Reads, measures and writes everything; see the head of this file."""
    from storydiffusion.evaluation.result import save_result
    from storydiffusion.evaluation.summary import Measured, remarks_on_motion, result_of, table

    inputs = inputs_of(config)
    source = config.encoder or (MINIATURE if inputs.are_miniature else FULL_SCALE)
    networks = load_networks(config, source, bool(inputs.clips))
    measured = Measured()
    matrices = measure_stories(inputs, networks, measured)
    measure_clips(inputs.clips, networks, measured)
    if not measured.values:
        raise UserError(
            f"{config.folder} has no picture with a text, no pair of pictures and no clip: nothing to measure"
        )
    remarks = [*remarks_on(inputs, networks, config), *remarks_on_motion(measured)]
    text = table(measured) + "\n" + "".join(f"- {remark}\n" for remark in remarks)
    out = Path(config.out) if config.out else config.folder / "evaluation"
    for name, plot in plots(measured, matrices, networks.encoder).items():
        write_atomically(out / name, plot)
    write_atomically(out / "table.md", text.encode())
    save_result(result_of(measured, settings_of(config, networks, inputs), remarks), out)
    print(text)


def inputs_of(config: EvaluateConfig) -> "Inputs":
    from storydiffusion.evaluation.inputs import inputs_of_pictures, inputs_of_runs, inputs_of_videos

    def path(value: str | None) -> Path | None:
        return None if value is None else Path(value)

    if config.run is not None:
        return inputs_of_runs(config.folder)
    if config.images is not None:
        return inputs_of_pictures(config.folder, path(config.captions), path(config.boxes))
    return inputs_of_videos(config.folder, path(config.reference), config.frames)


def load_networks(config: EvaluateConfig, source: str, has_clips: bool) -> Networks:
    """Raises UserError for a part that is not here or does not fit."""
    device = choose_device(config.device, "device")
    encoder = load_image_text_encoder(source, device)
    return Networks(
        encoder,
        load_perceptual_distance(config.lpips, encoder) if has_clips else None,
        load_emotion_reader(config.emotion, config.emotion_probe, encoder) if config.emotion is not None else None,
        load_dreamsim(Path(config.dreamsim), device) if config.dreamsim else None,
        load_i3d(Path(config.i3d), device) if config.i3d else None,
    )


def load_emotion_reader(emotion: str, probe_file: str | None, encoder: ImageTextEncoder) -> EmotionReader:
    """The probe that is given, or the encoder's own comparison with words.

    Raises UserError for a probe that does not fit, or an encoder that has no words for emotions.
    """
    from storydiffusion.evaluation.metrics.emotion import ZERO_SHOT_PROMPTS, load_probe, zero_shot_logits

    if probe_file is not None:
        probe = load_probe(Path(probe_file), encoder.width)
        return EmotionReader(emotion, f"probe on {encoder.label}", probe.logits)
    for prompt in ZERO_SHOT_PROMPTS:
        if unknown := encoder.unknown_words(prompt):
            raise UserError(
                f"emotion={emotion} cannot be read by {encoder.label}, which does not know the word "
                f"{unknown[-1]!r}: give emotion_probe=FILE or another encoder"
            )
    prompts = encoder.of_texts(ZERO_SHOT_PROMPTS)
    return EmotionReader(
        emotion, f"zero-shot {encoder.label}", lambda pictures: zero_shot_logits(pictures, prompts, encoder.scale)
    )


def measure_stories(inputs: "Inputs", networks: Networks, measured: "Measured") -> "dict[str, np.ndarray]":
    """All figures of pictures and stories; returns each story's cosines of its pictures with each other, (P, P)."""
    import numpy as np
    from tqdm import tqdm

    from storydiffusion.evaluation.metrics.embeddings import mean_over_pairs, pairs_of_a_character, similarity_matrix
    from storydiffusion.evaluation.summary import CHARACTER, CROPS, DREAMSIM

    matrices = {}
    count = sum(map(len, inputs.stories.values()))
    with tqdm(desc="pictures", unit="picture", total=count, disable=not count) as bar:
        for story, pictures in inputs.stories.items():
            views = []
            for picture in pictures:
                views.append(view(picture, networks))
                bar.update()
            embeddings = np.stack([one.whole for one in views])
            measure_texts(pictures, embeddings, networks.encoder, measured)
            if networks.emotions is not None:
                measure_emotion(pictures, embeddings, networks.emotions, measured)
            matrices[story] = similarity_matrix(embeddings)
            pairs = pairs_of_a_character([picture.characters for picture in pictures])
            for kind, label, vectors in (
                (CHARACTER, networks.encoder.label, [one.whole for one in views]),
                (CROPS, networks.encoder.label, [one.crop for one in views]),
                (DREAMSIM, networks.dreamsim and networks.dreamsim.label, [one.dream for one in views]),
            ):
                seen = [i for i, vector in enumerate(vectors) if vector is not None]
                known = [(seen.index(i), seen.index(j)) for i, j in pairs if i in seen and j in seen]
                if label is not None and known:
                    matrix = similarity_matrix(np.stack([vector for vector in vectors if vector is not None]))
                    value = mean_over_pairs(1 - matrix if kind == DREAMSIM else matrix, known)
                    assert value is not None
                    measured.add(kind, label, story, value)
    return matrices


@dataclass(frozen=True)
class View:
    """The embeddings of one picture, (D,) each: as a whole, of its character's box, and DreamSim's."""

    whole: "np.ndarray"
    crop: "np.ndarray | None"
    dream: "np.ndarray | None"


def view(picture: "Picture", networks: Networks) -> View:
    from storydiffusion.evaluation.metrics.crops import square_crop

    pixels, encoder = picture.pixels(), networks.encoder
    try:
        crop = None if picture.box is None else encoder.of_picture(square_crop(pixels, picture.box))
    except ValueError as error:
        raise UserError(f"{picture.name}: {error}; mend it in boxes=FILE") from error
    dream = None if networks.dreamsim is None else networks.dreamsim.embed(pixels)
    return View(encoder.of_picture(pixels), crop, dream)


def measure_texts(
    pictures: "list[Picture]", embeddings: "np.ndarray", encoder: ImageTextEncoder, measured: "Measured"
) -> None:
    """Text-image similarity of those pictures that have a text; embeddings (P, D)."""
    from storydiffusion.evaluation.metrics.embeddings import clip_score, cosines
    from storydiffusion.evaluation.summary import CLIP_SCORE, TEXT_IMAGE

    told = [i for i, picture in enumerate(pictures) if picture.text is not None]
    if not told:
        return
    similarity = cosines(embeddings[told], encoder.of_texts([pictures[i].text or "" for i in told]))
    for i, raw, scaled in zip(told, similarity, clip_score(similarity), strict=True):
        measured.add(TEXT_IMAGE, encoder.label, pictures[i].name, float(raw))
        measured.add(CLIP_SCORE, encoder.label, pictures[i].name, float(scaled))


def measure_emotion(
    pictures: "list[Picture]", embeddings: "np.ndarray", reader: EmotionReader, measured: "Measured"
) -> None:
    """Emo-Score and Emo-A of pictures; embeddings (P, D)."""
    from storydiffusion.evaluation.metrics.emotion import emotion_hits, emotion_scores, probabilities
    from storydiffusion.evaluation.summary import EMO_A, EMO_SCORE

    found = probabilities(reader.logits(embeddings))
    for kind, values in (
        (EMO_SCORE, emotion_scores(found, reader.emotion)),
        (EMO_A, emotion_hits(found, reader.emotion)),
    ):
        for picture, value in zip(pictures, values, strict=True):
            measured.add(kind, reader.label, picture.name, float(value))


def measure_clips(clips: "list[Clip]", networks: Networks, measured: "Measured") -> None:
    """All figures of clips, one by one, and of their set."""
    import numpy as np
    from tqdm import tqdm

    from storydiffusion.evaluation.metrics.frechet import frechet_distance
    from storydiffusion.evaluation.summary import FVD

    features: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for clip in tqdm(clips, desc="clips", unit="clip", disable=not clips):
        frames, true = clip.read(), clip.true and clip.true()
        if true is not None and true.shape != frames.shape:
            (many, height, width), (count, high, wide) = true.shape[:3], frames.shape[:3]
            raise UserError(
                f"{clip.name} has {count} frames of {wide} × {high} pixels, the true one {many} of {width} × {height}: "
                "make them alike, or choose frames=N"
            )
        measure_clip(clip, frames, true, networks, measured)
        if networks.i3d is not None and true is not None:
            for part, shown in zip(features, (frames, true), strict=True):
                part.append(networks.i3d.embed(shown))
    if networks.i3d is not None:
        if len(clips) < 2:
            raise UserError("FVD compares sets of clips, and there is only one: give more, or leave i3d out")
        measured.add(FVD, networks.i3d.label, "all clips", frechet_distance(*map(np.stack, features)))


def measure_clip(
    clip: "Clip", frames: "np.ndarray", true: "np.ndarray | None", networks: Networks, measured: "Measured"
) -> None:
    """The figures of one clip, uint8 (F, H, W, 3), and its true one."""
    import numpy as np

    from storydiffusion.evaluation.metrics import optical_flow
    from storydiffusion.evaluation.metrics.clips import cosine, from_first, from_previous, pixel_error
    from storydiffusion.evaluation.summary import (
        CLIPSIM_FIRST,
        CLIPSIM_FRAMES,
        END_ERROR,
        LPIPS_FIRST,
        LPIPS_FRAMES,
        MIDDLE_ERROR,
        MOTION,
        RELATIVE_MOTION,
        TRUE_MOTION,
    )

    def add(kind: Any, network: str, value: float) -> None:
        measured.add(kind, network, clip.name, value)

    encoder, distance = networks.encoder, networks.distance
    assert distance is not None
    motion, seen = optical_flow.motion_magnitude(frames), distance.prepare(frames)
    add(MOTION, optical_flow.NAME, motion)
    ends = clip.ends() if clip.ends is not None else None if true is None else true[[0, -1]]
    if ends is not None:
        if ends.shape[1:] != frames.shape[1:]:
            raise UserError(f"{clip.name} and the pictures at its ends differ in size: make the video again")
        add(END_ERROR, PIXELS, pixel_error(frames[[0, -1]], ends))
    if true is not None:
        true_motion, expected = optical_flow.motion_magnitude(true), distance.prepare(true)
        add(TRUE_MOTION, optical_flow.NAME, true_motion)
        if true_motion >= optical_flow.STILL:
            add(RELATIVE_MOTION, optical_flow.NAME, motion / true_motion)
        if len(frames) > 2:
            errors = [distance.compare(a, b) for a, b in zip(seen[1:-1], expected[1:-1], strict=True)]
            add(MIDDLE_ERROR, distance.label, float(np.mean(errors)))
    pooled = encoder.of_frames(frames, "pooled")[:, 0]
    add(LPIPS_FIRST, distance.label, from_first(distance.compare, seen))
    add(LPIPS_FRAMES, distance.label, from_previous(distance.compare, seen))
    add(CLIPSIM_FIRST, encoder.label, from_first(cosine, pooled))
    add(CLIPSIM_FRAMES, encoder.label, from_previous(cosine, pooled))


def remarks_on(inputs: "Inputs", networks: Networks, config: EvaluateConfig) -> list[str]:
    """What must be known of the networks and of the inputs."""
    encoder, remarks = networks.encoder, list(inputs.remarks)
    if encoder.source == MINIATURE:
        remarks.append(
            "“miniature” is the miniature's own CLIP, which has seen StoryWorld alone: compare its figures only with "
            "others that it gave."
        )
    if networks.distance is not None and not networks.distance.is_lpips:
        why = ", since AlexNet's weights are not under TORCH_HOME" if config.lpips == "auto" else ""
        remarks.append(
            f"LPIPS is not LPIPS proper here but the distance of the encoder's tokens, without learnt weights{why}."
        )
    texts = [picture.text for story in inputs.stories.values() for picture in story if picture.text is not None]
    if cut := sum(encoder.length(text) > encoder.window for text in texts):
        remarks.append(
            f"{cut} of {len(texts)} texts are longer than the encoder's {encoder.window} tokens: it read their start."
        )
    if unknown := list(dict.fromkeys(word for text in texts for word in encoder.unknown_words(text))):
        remarks.append(f"The encoder does not know these words of the texts: {', '.join(unknown)}.")
    if config.emotion is not None:
        remarks.append(f"Emo-Score and Emo-A: {config.emotion} was meant; chance is 0.125 for both.")
    if inputs.stories:
        remarks.append(
            "± is the standard error over subjects; pictures of one story depend on each other, stories do not."
        )
    return remarks


def settings_of(config: EvaluateConfig, networks: Networks, inputs: "Inputs") -> dict[str, Any]:
    """What the figures depend on."""
    from storydiffusion.output.manifest import installed_versions

    source = networks.encoder.source
    files = {name: value for name in ("emotion_probe", "i3d") if (value := getattr(config, name)) is not None}
    weights = {name: compute_sha256(file) for name, file in files.items()}
    if not source.startswith(OPEN_CLIP_SCHEME):
        folder = compute_folder_sha256(package_path(source))
        weights |= {f"encoder/{name}": checksum for name, checksum in folder.items()}
    return {
        "encoder": source,
        "lpips": networks.distance and networks.distance.label,
        "emotion": networks.emotions and [networks.emotions.emotion, networks.emotions.label],
        "frames": config.frames,
        "weights": weights,
        "versions": installed_versions(
            ("torch", "torchmetrics", "open_clip_torch", "transformers", "opencv-python-headless")
        ),
        "made with": inputs.settings,
    }


def plots(measured: "Measured", matrices: "dict[str, np.ndarray]", encoder: ImageTextEncoder) -> dict[str, bytes]:
    """File name → PNG."""
    from storydiffusion.evaluation.plots import plot_figures, plot_motion, plot_similarity
    from storydiffusion.evaluation.summary import LPIPS_FRAMES, MOTION, TRUE_MOTION, title

    values = {title(kind, network): list(found.values()) for kind, network, found in measured.in_order()}
    found = {"figures.png": plot_figures(values)}
    for story, matrix in matrices.items():
        if len(matrices) == 1 and 2 <= len(matrix) <= MOST_IN_A_MATRIX:
            labels, name = [str(i) for i in range(1, len(matrix) + 1)], f"{story}: cosines ({encoder.label})"
            found["similarity.png"] = plot_similarity(matrix, labels, name)
    if motion := measured.of(MOTION):
        true, change = measured.of(TRUE_MOTION), measured.of(LPIPS_FRAMES)
        label = next(title(kind, network) for kind, network in measured.values if kind == LPIPS_FRAMES)
        found["motion.png"] = plot_motion(list(motion.values()), list(change.values()), label, list(true.values()))
    return found


main = command(EvaluateConfig)(evaluate)
