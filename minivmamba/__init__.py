"""minivmamba: VMamba (arXiv 2401.10166), built step by step in the lessons of `notebooks/`.

Read the modules in the order of the lessons:

    discretize → ssm → selective_scan → cross_scan → ss2d_scan → ss2d → stages → vssm → vssm_v2

`minivmamba.kernels` holds the rungs of the scan, `minivmamba.figures` the pictures of the book,
`minivmamba.classroom` its exercises; `minivmamba.photos` opens a photograph.
"""

from pathlib import Path

# kernels/ and figures/ stand beside this folder; where a checkout has no symbolic links
# (Windows), look for them there.
if not (Path(__file__).parent / "kernels" / "__init__.py").exists():
    __path__.append(str(Path(__file__).parent.parent))

from minivmamba.backbone import Backbone
from minivmamba.checkpoints import (
    CheckpointError,
    LoadReport,
    load_checkpoint,
    save_checkpoint,
)
from minivmamba.cross_scan import cross_merge, cross_scan
from minivmamba.discretize import bilinear, euler, inverse_softplus, mamba_rule, zoh, zoh_matrix
from minivmamba.flops import count_flops
from minivmamba.selective_scan import selective_scan
from minivmamba.ss2d import SS2D
from minivmamba.ss2d_scan import ss2d_scan
from minivmamba.ssm import lti_convolution, lti_kernel, lti_recurrence
from minivmamba.stages import VSSLayer
from minivmamba.vssm import (
    VSSM,
    PatchEmbed2D,
    PatchMerging2D,
    VSSBlock,
    vmamba_base,
    vmamba_small,
    vmamba_tiny,
)
from minivmamba.vssm_v2 import (
    SS2Dv2,
    VSSBlockV2,
    VSSMv2,
    vmamba_base_s1l20,
    vmamba_base_s2l15,
    vmamba_small_s1l20,
    vmamba_small_s2l15,
    vmamba_tiny_s1l8,
    vmamba_tiny_s2l5,
)

__all__ = [
    "SS2D",
    "VSSM",
    "Backbone",
    "CheckpointError",
    "LoadReport",
    "PatchEmbed2D",
    "PatchMerging2D",
    "SS2Dv2",
    "VSSBlock",
    "VSSBlockV2",
    "VSSLayer",
    "VSSMv2",
    "bilinear",
    "count_flops",
    "cross_merge",
    "cross_scan",
    "euler",
    "inverse_softplus",
    "load_checkpoint",
    "lti_convolution",
    "lti_kernel",
    "lti_recurrence",
    "mamba_rule",
    "save_checkpoint",
    "selective_scan",
    "ss2d_scan",
    "vmamba_base",
    "vmamba_base_s1l20",
    "vmamba_base_s2l15",
    "vmamba_small",
    "vmamba_small_s1l20",
    "vmamba_small_s2l15",
    "vmamba_tiny",
    "vmamba_tiny_s1l8",
    "vmamba_tiny_s2l5",
    "zoh",
    "zoh_matrix",
]
