"""minivmamba: VMamba (arXiv 2401.10166), built step by step in the lessons of `notebooks/`.

Read the modules in the order of the lessons:

    discretize → ssm → selective_scan → cross_scan → ss2d_scan → ss2d → vssm

`minivmamba.kernels` holds the rungs of the scan, `minivmamba.figures` the pictures of the book,
`minivmamba.classroom` its exercises; `minivmamba.photos` opens a photograph.
"""

from pathlib import Path

# kernels/ and figures/ stand beside this folder; where a checkout has no symbolic links
# (Windows), look for them there.
if not (Path(__file__).parent / "kernels" / "__init__.py").exists():
    __path__.append(str(Path(__file__).parent.parent))

from minivmamba.cross_scan import cross_merge, cross_scan
from minivmamba.discretize import bilinear, euler, inverse_softplus, mamba_rule, zoh, zoh_matrix
from minivmamba.selective_scan import selective_scan
from minivmamba.ss2d import SS2D
from minivmamba.ss2d_scan import ss2d_scan
from minivmamba.ssm import lti_convolution, lti_kernel, lti_recurrence
from minivmamba.vssm import (
    VSSM,
    PatchEmbed2D,
    PatchMerging2D,
    VSSBlock,
    VSSLayer,
    vmamba_base,
    vmamba_small,
    vmamba_tiny,
)

__all__ = [
    "SS2D",
    "VSSM",
    "PatchEmbed2D",
    "PatchMerging2D",
    "VSSBlock",
    "VSSLayer",
    "bilinear",
    "cross_merge",
    "cross_scan",
    "euler",
    "inverse_softplus",
    "lti_convolution",
    "lti_kernel",
    "lti_recurrence",
    "mamba_rule",
    "selective_scan",
    "ss2d_scan",
    "vmamba_base",
    "vmamba_small",
    "vmamba_tiny",
    "zoh",
    "zoh_matrix",
]
