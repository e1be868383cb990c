"""The networks that generate a story, loaded when they are needed.

`RunNetworks` serves one run, whose video takes over the networks of its images; `KeptNetworks` keeps both loaded for
the next run.
"""

import sys
from typing import TYPE_CHECKING, Protocol

from storydiffusion.loaders.resolve import ResolvedModel

if TYPE_CHECKING:
    from storydiffusion.loaders.text_to_image import StoryModel
    from storydiffusion.models.video_model import VideoModel


class Networks(Protocol):
    """Loads the networks of a resolved model. Raises UserError for weights that cannot be used."""

    def load_images(self, model: ResolvedModel) -> "StoryModel":
        """Return the pipeline of the images."""
        ...

    def load_video(self, model: ResolvedModel) -> "VideoModel":
        """Return the model of the video; the pipeline of the images may not be called any more."""
        ...


class RunNetworks:
    """The networks of one run.

    Args:
        shares: whether the video takes over the networks of the images; not where a baseline has changed them.
    """

    def __init__(self, shares: bool = True):
        self._shares = shares
        self._images: StoryModel | None = None

    def load_images(self, model: ResolvedModel) -> "StoryModel":
        from storydiffusion.loaders.text_to_image import load_story_model

        announce_images(model)
        self._images = load_story_model(model)
        return self._images

    def load_video(self, model: ResolvedModel) -> "VideoModel":
        from storydiffusion.loaders.video import load_video_model

        announce_video()
        images, self._images = self._images, None
        return load_video_model(model, images.pipe if images is not None and self._shares else None)


class KeptNetworks:
    """The networks of the latest model, kept for every run with it; those of images and video side by side."""

    def __init__(self) -> None:
        self._model: ResolvedModel | None = None
        self._images: StoryModel | None = None
        self._video: VideoModel | None = None

    def load_images(self, model: ResolvedModel) -> "StoryModel":
        from storydiffusion.loaders.text_to_image import load_story_model

        self._keep(model)
        if self._images is None:
            announce_images(model)
            self._images = load_story_model(model)
        return self._images

    def load_video(self, model: ResolvedModel) -> "VideoModel":
        from storydiffusion.loaders.video import load_video_model

        self._keep(model)
        if self._video is None:
            announce_video()
            self._video = load_video_model(model)
        return self._video

    def _keep(self, model: ResolvedModel) -> None:
        """Release the networks of another model, or of files that have changed."""
        if self._model is None or (self._model.config, self._model.checksums) != (model.config, model.checksums):
            self._images = self._video = None
        self._model = model


def announce_images(model: ResolvedModel) -> None:
    """Print that the model is loaded next, which takes seconds."""
    print(f"loading the model {model.config.name} from {model.config.path} …", file=sys.stderr, flush=True)


def announce_video() -> None:
    """Print that the video model is loaded next, which takes seconds."""
    print("loading the video model: motion modules, predictor and image encoder …", file=sys.stderr, flush=True)
