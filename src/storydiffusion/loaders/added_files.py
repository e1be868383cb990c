"""Find what a user adds to a model folder: weights in a single file, a U-Net, a VAE, a ControlNet, LoRAs, new words.

A file is opened once here, so a damaged one is named before a run starts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from storydiffusion.config import ModelConfig
from storydiffusion.errors import UserError, first_line
from storydiffusion.loaders.sources import fetch_folder, package_path

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
NETWORK_FILES = ("config.json", "diffusion_pytorch_model.safetensors")


@dataclass(frozen=True)
class AddedFiles:
    """The files and folders behind `model.single_file`, `unet`, `vae`, `controlnet`, `lora` and `textual_inversion`.

    Attributes:
        vae: a file, or a folder in diffusers' format.
        unet, controlnet: such a folder.
        lora: file → scale.
        textual_inversion: word → file.
    """

    single_file: Path | None
    unet: Path | None
    vae: Path | None
    controlnet: Path | None
    lora: Mapping[Path, float]
    textual_inversion: Mapping[str, Path]

    @property
    def replaced_parts(self) -> tuple[str, ...]:
        """The networks of the model folder that others replace."""
        return tuple(part for part in ("unet", "vae") if getattr(self, part) is not None)

    @property
    def weights(self) -> dict[str, Path]:
        """The weights files by the names under which a run records them."""
        found = {"single_file": self.single_file} if self.single_file else {}
        for part, network in (("unet", self.unet), ("vae", self.vae), ("controlnet", self.controlnet)):
            if network is not None:
                file = find_weights_file(network, f"model.{part}")
                found[f"{part}/{file.name}"] = file
        found |= {f"lora/{number}/{file.name}": file for number, file in enumerate(self.lora, 1)}
        return found | {f"textual_inversion/{word}": file for word, file in self.textual_inversion.items()}


def find_added_files(config: ModelConfig) -> AddedFiles:
    """Find the files, fetch those on a hub, and open each.

    Raises:
        UserError: a file that is missing, damaged or in another format, or a hub that is out of reach.
    """
    files = AddedFiles(
        find_file(config.single_file, "model.single_file") if config.single_file else None,
        find_unet(config.unet, package_path(config.path)) if config.unet else None,
        find_network(config.vae, "model.vae") if config.vae else None,
        fetch_folder(config.controlnet, "model.controlnet", NETWORK_FILES) if config.controlnet else None,
        {find_file(file, "model.lora"): scale for file, scale in (config.lora or {}).items()},
        {
            word: find_file(file, f"model.textual_inversion.{word}")
            for word, file in (config.textual_inversion or {}).items()
        },
    )
    for file in files.weights.values():
        check_file(file)
    return files


def find_file(source: str, key: str) -> Path:
    """Return a local weights file. Raises UserError for one that is missing or of another format."""
    file = Path(source).expanduser()
    if not file.is_file():
        raise UserError(f"{key}={source} is not a file: give a .safetensors or .ckpt file on this machine")
    if file.suffix not in (".safetensors", *PICKLES):
        raise UserError(f"{key}={source} has another format: give one of .safetensors, {', '.join(PICKLES)}")
    return file


def find_unet(source: str, model: Path) -> Path:
    """Return the folder of a U-Net inside that of the model, any other, or of a hub id, whose files are fetched.

    Raises:
        UserError: neither of these, or a hub out of reach.
    """
    own = model / source
    return own if own.is_dir() else fetch_folder(source, "model.unet", NETWORK_FILES)


def find_network(source: str, key: str) -> Path:
    """Return a weights file, or a folder in diffusers' format, which a hub id is fetched into.

    Raises:
        UserError: neither of these, or a hub out of reach.
    """
    if Path(source).expanduser().is_file():
        return find_file(source, key)
    return fetch_folder(source, key, NETWORK_FILES)


def find_weights_file(network: Path, key: str) -> Path:
    """Return a weights file itself, or that of a folder. Raises UserError if it has none."""
    if network.is_file():
        return network
    file = network / NETWORK_FILES[1]
    if not file.is_file():
        raise UserError(f"{key}={network} contains no {file.name}: use a folder in diffusers' format")
    return file


def check_file(file: Path) -> None:
    """Open a weights file; safetensors checks that header and length agree. Code in a pickle is never run.

    Raises:
        UserError: a file that is damaged or truncated.
    """
    from zipfile import is_zipfile

    from safetensors import SafetensorError, safe_open

    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="numpy"):
                return
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged or truncated ({first_line(error)}): fetch it again") from error
    if not is_zipfile(file):
        raise UserError(f"{file} is damaged, or older than PyTorch 1.6: fetch it again, or convert it to .safetensors")
