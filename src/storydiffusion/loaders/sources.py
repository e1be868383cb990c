"""Turn the source of a part into a local folder: `package://…`, a folder, or a hub id, whose files are fetched once."""

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from storydiffusion.errors import UserError, first_line

PACKAGE_SCHEME = "package://"
OPEN_CLIP_SCHEME = "open_clip://"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(@.+)?")  # owner/name, or owner/name@revision
UNUSED_PARTS = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
"""parts of a pipeline that generating a story does without: passed as None, they are not loaded, and but for the image
encoder not fetched"""

INDEX_FILES = ("model_index.json", "storydiffusion.json")
CONFIG_FILES = ("*.json", "*/*.json", "*/*.txt")
"""of a model folder, without weights"""


def names_registered_encoder(source: str) -> bool:
    """Return whether `source` is `NAME://…` of a registered image encoder, rather than a folder or `package://…`."""
    return "://" in source and not source.startswith(PACKAGE_SCHEME)


def package_path(source: str) -> Path:
    """Return the path of `source`; `package://…` is one inside this package."""
    if source.startswith(PACKAGE_SCHEME):
        return Path(str(files("storydiffusion"))) / source.removeprefix(PACKAGE_SCHEME)
    return Path(source).expanduser()


def find_part_folder(source: str, key: str) -> Path:
    """Return the local folder of a part: a folder or `package://…`; `key` is the setting that names it.

    Raises:
        UserError: no such folder.
    """
    folder = package_path(source)
    if not folder.is_dir():
        where = "part of this installation" if source.startswith(PACKAGE_SCHEME) else "a local folder"
        raise UserError(f"{key}={source} is not {where}: name a folder with trained weights")
    return folder


def find_model_folder(
    path: str,
    revision: str | None,
    variants: Callable[[], Sequence[str | None]] = lambda: (None,),
    files: Sequence[str] | None = None,
) -> Path:
    """Return the local folder of a model: `package://NAME`, a folder, or `owner/name` on the hub, fetched once.

    Args:
        variants: returns the variants of the weights files, of which the first that the hub has is fetched, None: the
            full ones; called only for a hub id.
        files: patterns of the files to fetch; None: all that generating a story needs.

    Raises:
        UserError: no such folder, or the hub cannot be reached.
    """
    folder = package_path(path)
    if folder.is_dir():
        return folder
    if path.startswith(PACKAGE_SCHEME):
        name = path.removeprefix(PACKAGE_SCHEME)
        raise UserError(f"this installation contains no model {name!r} ({folder} is missing): set model.path=FOLDER")
    looks_like_hub_id = path.count("/") == 1 and not path.startswith((".", "~", "/", os.sep))
    if not looks_like_hub_id:
        raise UserError(
            f"model.path={path} is not a local folder: give a model folder in diffusers' format or a hub id"
        )
    if files is not None:
        return fetch_folder(f"{path}@{revision}" if revision else path, "model.path", files)
    return _download_pipeline(path, revision, variants())


def fetch_folder(source: str, key: str, patterns: Sequence[str]) -> Path:
    """Return the local folder of `source`: a folder, or `owner/name@revision` on the hub, fetched once.

    Args:
        key: the setting that names it.
        patterns: paths of the files to fetch; a pattern such as `image_encoder/*` matches several.

    Raises:
        UserError: no such folder, or the hub cannot be reached.
    """
    import httpx
    from huggingface_hub import snapshot_download

    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not HUB_ID.fullmatch(source):
        raise UserError(f"{key}={source} is not a local folder: give a folder with its weights, or a hub id")
    name, _, revision = source.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(patterns)))
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise UserError(
            f"cannot fetch {key}={source} from the hub, and it is not a local folder: connect, or download it "
            f"elsewhere and set {key}=FOLDER ({first_line(error)})"
        ) from error


def _download_pipeline(hub_id: str, revision: str | None, variants: Sequence[str | None]) -> Path:
    import httpx
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    def download(variant: str | None) -> Path:
        settings: dict[str, Any] = {"revision": revision, "variant": variant, **UNUSED_PARTS}
        return Path(DiffusionPipeline.download(hub_id, use_safetensors=True, **settings))

    *others, last = variants
    try:
        for variant in others:
            with suppress(ValueError):  # no such weights; a failing connection is no reason to fetch others
                return download(variant)
        return download(last)
    except (OSError, ValueError, httpx.HTTPError) as error:
        wanted = " or ".join(variant or "null" for variant in variants)
        raise UserError(
            f"cannot fetch model.path={hub_id} (revision {revision or 'main'}, model.variant={wanted}) from the hub, "
            "and it is not a local folder: connect, choose another model.variant, or download it elsewhere and set "
            f"model.path=FOLDER ({first_line(error)})"
        ) from error
