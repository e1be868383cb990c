"""A CLIP whose image tower is a convolutional network: open_clip's ModifiedResNet, the tower of CLIP's RN models, or
plain convolutions.

At this size and on simple images it learns in minutes what a vision transformer learns in hours. All else is
transformers' CLIPModel: the text tower, the logits and the folder (config.json, model.safetensors).

Shapes: B images, H × W pixels, M = H / S · W / S tokens of stride S, C channels, P the width of the shared space.
"""

from typing import Any

from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


class ConvolutionalClipConfig(CLIPConfig):
    """CLIPConfig whose `vision_config` describes a convolutional tower.

    `tower` is resnet, as without it, or plain; `hidden_size` the channels of its last stage, a multiple of 64;
    `num_attention_heads` those of its attention pooling; `patch_size` its stride, see `STRIDES`; `num_hidden_layers` a
    ResNet's blocks in each of its four stages.
    """

    model_type = "convolutional_clip"


class ResNet(ModifiedResNet):
    """open_clip's ModifiedResNet, stride 32."""

    def __init__(self, vision: Any, projection: int) -> None:
        blocks, width = [vision.num_hidden_layers] * 4, vision.hidden_size // 32  # width of the first stage
        super().__init__(blocks, projection, vision.num_attention_heads, vision.image_size, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, H, W) → the last stage's grid (B, C, H / S, W / S) and its attention pooling (B, P)."""
        grid = self.stem(x)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            grid = stage(grid)
        return grid, self.attnpool(grid)


class PlainConvolutions(nn.Module):
    """Four stages of 3 × 3 convolutions, stride 16: more channels on fine grids than in a ResNet of the same size.

    Where details such as faces are a few pixels large, they are lost in the ResNet's narrow first stage.
    """

    def __init__(self, vision: Any, projection: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for out in (vision.hidden_size // part for part in (8, 4, 2, 1)):
            for stride in (2, 1) if channels != 3 else (2,):
                layers += [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
                channels = out
        self.stages = nn.Sequential(*layers)
        side = vision.image_size // STRIDES["plain"]
        self.attnpool = AttentionPool2d(side, channels, vision.num_attention_heads, projection)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As in `ResNet`."""
        grid = self.stages(x)
        return grid, self.attnpool(grid)


TOWERS = {"resnet": ResNet, "plain": PlainConvolutions}
STRIDES = {"resnet": 32, "plain": 16}
"""Pixels per token of a tower, in height and in width"""


class ConvolutionalTower(nn.Module):
    """A convolutional network with the interface of CLIPVisionModel."""

    def __init__(self, config: ConvolutionalClipConfig) -> None:
        super().__init__()
        vision: Any = config.vision_config
        projection: Any = config.projection_dim
        self.tower: Any = TOWERS[getattr(vision, "tower", "resnet")](vision, projection)

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Pixels (B, 3, H, W) → the last stage's grid, row by row, (B, M, C), and its attention pooling (B, P).

        Attention pooling is the last block, so that `hidden_states[-2]` are the tokens, as in a vision transformer.
        """
        grid, pooled = self.tower(pixel_values)
        tokens = grid.flatten(2).transpose(1, 2)
        return BaseModelOutputWithPooling(tokens, pooled, hidden_states=(tokens, pooled[:, None]))


class ConvolutionalClip(CLIPModel):
    """CLIPModel with a `ConvolutionalTower`, whose attention pooling projects to the shared space already."""

    config_class = ConvolutionalClipConfig

    def __init__(self, config: ConvolutionalClipConfig) -> None:
        super().__init__(config)
        self.vision_model: Any = ConvolutionalTower(config)
        self.visual_projection: Any = nn.Identity()
