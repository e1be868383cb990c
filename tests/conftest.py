"""Tiny folders of the real classes, on which full-scale code is tested in a second."""

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from storydiffusion import commands
from storydiffusion.config import command_line

if TYPE_CHECKING:
    from storydiffusion.storyworld.edition import Edition

VOCABULARY = ("a", "the", "cat", "fox", "girl", "red", "blue", "hat", "on", "in", "beach", "park", "runs", "book")
ROOT = Path(__file__).resolve().parents[1]


def shipped_edition() -> "Edition":
    """Return the edition of StoryWorld that the miniature in the package draws."""
    from storydiffusion.storyworld.edition import EDITIONS

    card = json.loads((ROOT / "src" / "storydiffusion" / "miniature" / "storydiffusion.json").read_text())
    return EDITIONS[card["edition"]]


def write_tokenizer(folder: Path) -> None:
    """A CLIPTokenizer that knows VOCABULARY, commas and full stops; any other word has unknown pieces."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True)
    letters = sorted({letter for word in VOCABULARY for letter in word})
    vocabulary = ["<|startoftext|>", "<|endoftext|>", "<|unknown|>", *letters, *[f"{letter}</w>" for letter in letters]]
    vocabulary += [",</w>", ".</w>"]
    merges = []
    for word in VOCABULARY:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:  # merge from the left: (c a) t</w> → (ca t</w>) → cat</w>
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = [pieces[0] + pieces[1]]
            vocabulary.append(pieces[0])
    ids = {token: index for index, token in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = CLIPTokenizer(
        vocab=ids, merges=list(dict.fromkeys(merges)), unk_token="<|unknown|>", model_max_length=16
    )
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session", autouse=True)
def interrupts_arrive() -> None:
    """Restore Ctrl-C where the parent ignores it, as a shell does for `make test &`; children inherit it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionPipeline folder with random weights: 32×32 latents at most, three grids, a 16-token encoder."""
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_video_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all parts of a tiny video model; see tests/helpers/video_model.py."""
    from tests.helpers.video_model import build_tiny_video_model

    return build_tiny_video_model(tmp_path_factory.mktemp("models") / "tiny_video")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the clips of tiny trainings are rendered, once for all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium for the tests of one file; they are skipped where there is none."""
    from tests.helpers.browser import open_browser

    with open_browser() as opened:
        yield opened


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Return a function that opens a page of the given size, as tests/helpers/browser.py describes it."""
    from tests.helpers.browser import Visit

    opened: list[Visit] = []

    def open_page(address: str, size: str = "desktop") -> Visit:
        opened.append(Visit(browser, size))
        opened[-1].page.goto(address)
        return opened[-1]

    yield open_page
    for each in opened:
        each.context.close()


def build_tiny_model(folder: Path) -> Path:
    """Saves the folder: 8× VAE, U-Net with self- and cross-attention on three grids, DDIM; a fixed random seed."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    write_tokenizer(folder / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
            )
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16, 16), norm_num_groups=4, layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16, attention_head_dim=2,
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(4, 4, 8, 8), norm_num_groups=2, layers_per_block=1, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    (folder / "storydiffusion.json").write_text(json.dumps({"kind": "random", "note": "Its weights are random."}))
    return folder


STORY = """
title: Two friends
characters: {Pip: a red cat, Bo: a blue fox}
panels:
  - {prompt: "[Pip] runs on the beach", caption: One.}
  - {prompt: "[Bo] in the park", caption: Two.}
  - {prompt: "[Pip] and [Bo] in the park", caption: Three.}
"""

SMALL = ("height=64", "width=64", "steps=6", "guidance_scale=3", "model.scheduler=ddim", "model.guidance_start=0")


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def sentences(self) -> list[str]:
        """Lines of stderr that are not progress bars."""
        lines = [line.rpartition("\r")[2] for line in self.err.split("\n")]
        return [
            line for line in lines if line and not line.startswith(("loading", "denoising", "writing", "rendering"))
        ]


@pytest.fixture
def story_file(tmp_path: Path) -> Path:
    file = tmp_path / "friends.yaml"
    file.write_text(STORY)
    return file


def compose_config(verb: str, *overrides: str) -> Any:
    """Return the configuration that `storydiffusion VERB OVERRIDES` runs with."""
    name = verb.replace("-", "_")
    return command_line.compose_config(commands.load_verb(verb), name, overrides)


def outcome_of(command: Callable[[], object], capsys: pytest.CaptureFixture) -> Outcome:
    """Run a command's entry point as the shell does."""
    try:
        command()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    captured = capsys.readouterr()
    return Outcome(code, captured.out, captured.err)


def run_verb(verb: str, overrides: Sequence[str], capsys: pytest.CaptureFixture) -> Outcome:
    """Call `storydiffusion VERB OVERRIDES` in this process; its errors name VERB.py, as a script's do."""
    program = f"{verb.replace('-', '_')}.py"
    return outcome_of(lambda: commands.run_verb(verb, list(overrides), program), capsys)


@pytest.fixture
def infer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> Callable[..., Outcome]:
    """Call `python infer.py OVERRIDES` in this process, in an empty working directory."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: run_verb("infer", overrides, capsys)


@pytest.fixture
def generate_story(infer: Callable[..., Outcome], tiny_model: Path, story_file: Path) -> Callable[..., Outcome]:
    """Generate the story of `story_file` with the tiny model; further overrides come last."""
    return lambda *overrides: infer(f"story={story_file}", f"model.path={tiny_model}", *SMALL, *overrides)


@pytest.fixture(scope="session")
def finished_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of STORY as `generate_story` writes it in three steps, generated once; tests use a copy."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "friends.yaml").write_text(STORY)
    given = ["story=friends.yaml", f"model.path={tiny_model}", *SMALL, "steps=3", "run_dir=run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        commands.run_verb("infer", given, "infer.py")
    return folder / "run"
