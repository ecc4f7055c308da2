"""A model as the backbone of another: stage maps, each with a norm of its own.

Detection and segmentation heads read maps at strides 4, 8, 16 and 32. The blocks of a stage end in
a sum that nothing normalises, so the authors give each map that they pass on a LayerNorm, which is
trained with the head.
"""

from collections.abc import Sequence

import torch.nn as nn
from torch import Tensor

from minivmamba.expect import expect_int
from minivmamba.stages import StagedModel


class Backbone(nn.Module):
    """Some stage maps of a model, (B, 3, H, W) → a list of (B, C, H/s, W/s), s = 4, 8, 16, 32.

    Args:
        model: a VSSM or VSSMv2; its classifier is not used.
        stages: which maps, 0 to 3, growing.
        norm: give every map a LayerNorm over its channels, named outnorm0, outnorm1, … .

    Attributes:
        channels: those of each map, in order. strides: pixels of the image to one of the map.

    Raises:
        TypeError: model is something else.
        ValueError: stages is empty, does not grow, or names a stage that the model lacks.
    """

    def __init__(
        self, model: StagedModel, stages: Sequence[int] = (0, 1, 2, 3), norm: bool = True
    ) -> None:
        super().__init__()
        if not isinstance(model, StagedModel):
            raise TypeError(f"model: expected a VSSM or VSSMv2, got {type(model).__name__}")
        for stage in stages:
            expect_int("stages", stage, minimum=0)
        known, wanted = len(model.dims), list(stages)
        if not wanted or wanted != sorted(set(wanted)) or wanted[-1] >= known:
            raise ValueError(
                f"stages: expected some of 0 to {known - 1} in growing order, got {wanted}"
            )
        self.model, self.stages = model, wanted
        self.channels = [model.dims[stage] for stage in wanted]
        self.strides = [model.stride * 2**stage for stage in wanted]
        for stage in wanted if norm else ():
            self.add_module(f"outnorm{stage}", nn.LayerNorm(model.dims[stage]))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Arguments and errors: `VSSM.forward_features`."""
        maps = self.model.forward_features(images)
        return [self._normed(stage, maps[stage]) for stage in self.stages]

    def _normed(self, stage: int, x: Tensor) -> Tensor:
        norm = getattr(self, f"outnorm{stage}", None)
        return x if norm is None else norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
