"""A CLIP whose image tower is a convolutional network: open_clip's ModifiedResNet, the tower of CLIP's RN models.

At this size and on simple images it learns in minutes what a vision transformer learns in hours. All else is
transformers' CLIPModel: the text tower, the logits and the folder (config.json, model.safetensors).

Shapes: B images, H × W pixels, M = H / S · W / S tokens of stride S, C channels, P the width of the shared space.
"""

from typing import Any

from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

STRIDES = (16, 32)
"""Pixels per token, in height and in width; at 16 the last stage keeps the grid of the one before"""


class ConvolutionalClipConfig(CLIPConfig):
    """CLIPConfig whose `vision_config` describes a ModifiedResNet.

    `hidden_size` is the channels of its last stage, a multiple of 64; `num_hidden_layers` the blocks in each of its
    four stages; `num_attention_heads` those of its attention pooling; `patch_size` its stride, one of STRIDES.
    """

    model_type = "convolutional_clip"


class ConvolutionalTower(nn.Module):
    """ModifiedResNet with the interface of CLIPVisionModel."""

    def __init__(self, config: ConvolutionalClipConfig) -> None:
        super().__init__()
        vision: Any = config.vision_config
        projection: Any = config.projection_dim
        blocks = [vision.num_hidden_layers] * 4
        width = vision.hidden_size // 32  # of the first stage
        cells = vision.image_size // vision.patch_size  # a ModifiedResNet has a stride of 32
        self.tower: Any = ModifiedResNet(blocks, projection, vision.num_attention_heads, 32 * cells, width)
        if vision.patch_size == 16:
            block = self.tower.layer4[0]
            block.avgpool = block.downsample[0] = nn.Identity()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Pixels (B, 3, H, W) → the last stage's grid, row by row, (B, M, C), and its attention pooling (B, P).

        Attention pooling is the last block, so that `hidden_states[-2]` are the tokens, as in a vision transformer.
        """
        tower = self.tower
        grid = tower.stem(pixel_values)
        for stage in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
            grid = stage(grid)
        tokens, pooled = grid.flatten(2).transpose(1, 2), tower.attnpool(grid)
        return BaseModelOutputWithPooling(tokens, pooled, hidden_states=(tokens, pooled[:, None]))


class ConvolutionalClip(CLIPModel):
    """CLIPModel with a `ConvolutionalTower`, whose attention pooling projects to the shared space already."""

    config_class = ConvolutionalClipConfig

    def __init__(self, config: ConvolutionalClipConfig) -> None:
        super().__init__(config)
        self.vision_model: Any = ConvolutionalTower(config)
        self.visual_projection: Any = nn.Identity()
