"""Views: numbered augmentations, whose results can be cached and replayed; one file per kind of augmentation."""

from tutelage.data.views.boxes import RandomResizedCrop
from tutelage.data.views.colour import ColourJitter
from tutelage.data.views.crops_and_flips import CropsAndFlips
from tutelage.data.views.erasing import RandomErasing
from tutelage.data.views.protocol import CroppingViews, JoiningViews, NoAugmentation, Views
from tutelage.data.views.rand_augment import RandAugment
from tutelage.data.views.random_views import RandomViews, Step

__all__ = [
    "ColourJitter",
    "CroppingViews",
    "CropsAndFlips",
    "JoiningViews",
    "NoAugmentation",
    "RandAugment",
    "RandomErasing",
    "RandomResizedCrop",
    "RandomViews",
    "Step",
    "Views",
]
