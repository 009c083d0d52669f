"""Images with masks: which ones, what is done to them, and the loaders of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from apical._checks import check
from apical.data import IMAGENET_MEAN, IMAGENET_STD, Normalize, PairLoader, Pairs, RandomView, VocSplit, open_voc
from apical.data._splits import locate
from apical.data._voc import check_mask, has_masks, read_split, voc_classes
from apical.errors import ConfigError, DataError
from apical.recipes._task_kind import Prepared
from apical.recipes.tasks.segmentation._loss import Segmentation
from apical.recipes.tasks.segmentation._pictures import write_pictures
from apical.training import Loaders, TrainingConfig, processes
from apical.training._config import resolve_device


@dataclass(frozen=True)
class SegmentationData:
    """Images with masks in the layout of PASCAL VOC, and what is done to them before the model sees them.

    Attributes:
        path: a folder with JPEGImages, SegmentationClass and ImageSets/Segmentation (looked up here, then below the
            data root).
        crop: side in pixels of the square that is cut out of training images; MACs are counted at this size.
        scale: least and largest factor by which training images are scaled before.
        flip: training images are mirrored at random.
        eval_size: shorter side to which images and masks are scaled for evaluation; None evaluates them as they are.
        num_classes: number of classes; None takes it from classes.txt or, if there is none, from the masks.
        ignore_label: value of pixels that nobody labelled: they are neither learned nor judged.
        aux_weight: weight of the auxiliary head's loss in training, if the model has such a head.
        train_list: the list of training images, ``"train"`` or ``"trainval"``, …
        pictures: so many images are shown in the report with truth and prediction.
        memory_gb: images are decoded once and kept if they need no more; else they are read from files in each epoch.
        workers: threads that read and scale ahead.
    """

    path: str
    crop: int = 513
    scale: tuple[float, ...] = (0.5, 2.0)
    flip: bool = True
    eval_size: int | None = None
    num_classes: int | None = None
    ignore_label: int = 255
    aux_weight: float = 0.4
    train_list: str = "train"
    pictures: int = 4
    memory_gb: float = 4.0
    workers: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", tuple(self.scale))
        check(
            "data",
            {
                f"crop={self.crop}, expected at least 8": self.crop >= 8,
                f"scale={self.scale}, expected two positive numbers, the smaller first": len(self.scale) == 2
                and 0 < self.scale[0] <= self.scale[1],
                f"eval_size={self.eval_size}, expected at least 8": self.eval_size is None or self.eval_size >= 8,
                f"num_classes={self.num_classes}, expected 2 to 255": self.num_classes is None
                or 2 <= self.num_classes <= 255,
                f"ignore_label={self.ignore_label}, expected 0 to 255": 0 <= self.ignore_label <= 255,
                f"aux_weight={self.aux_weight}, expected at least 0": self.aux_weight >= 0,
                f"pictures={self.pictures}, expected 0 to 32": 0 <= self.pictures <= 32,
                f"memory_gb={self.memory_gb}, expected at least 0": self.memory_gb >= 0,
                f"workers={self.workers}, expected at least 0": self.workers >= 0,
            },
        )


def prepare(config: SegmentationData, training: TrainingConfig) -> Prepared:
    """Read the images and masks, or open them if they are too many, and make loaders."""
    if not config.path:
        raise DataError("no data: name the folder with JPEGImages and SegmentationClass with --data FOLDER")
    if training.batch_size < 2:
        raise ConfigError("batch_size=1: the pooling branch of a pyramid cannot be normalised over one image; take 2")
    folder = locate(config.path)
    train = open_voc(folder, config.train_list)
    evaluation = open_voc(folder, "val", config.eval_size)
    test = open_voc(folder, "test", config.eval_size) if has_masks(folder, "test") else None
    classes = voc_classes(train, config.ignore_label, config.num_classes)
    if config.ignore_label < len(classes):
        raise ConfigError(
            f"data.ignore_label={config.ignore_label} is one of the {len(classes)} classes; give unlabelled pixels a "
            "value beyond them, and number the classes from 0"
        )
    used = [split for split in (train, evaluation, test) if split is not None]
    in_memory = _needed_gb(used) <= config.memory_gb
    device, normalize = resolve_device(training.device), Normalize(IMAGENET_MEAN, IMAGENET_STD)
    team = processes()

    def loader(split: VocSplit, view: RandomView | None) -> PairLoader:
        def look_at(mask: Tensor, index: int) -> None:
            where = f"{split.folder / 'SegmentationClass' / split.names[index]}.png"
            check_mask(mask, len(classes), config.ignore_label, where)

        pairs: Pairs = read_split(split, look_at) if in_memory else split
        return PairLoader(
            pairs,
            team.share(training.batch_size) if view else training.batch_size,
            view=view,
            normalize=normalize,
            device=device,
            workers=config.workers,
            seed=training.seed,
            rank=team.rank,
            world_size=team.count,
            check=None if in_memory else look_at,
            names=(*classes, *split.described()),
        )

    low, high = config.scale
    view = RandomView(config.crop, (low, high), config.flip, config.ignore_label)
    loaders = Loaders(loader(train, view), loader(evaluation, None), None if test is None else loader(test, None))
    task = Segmentation(len(classes), config.ignore_label, config.aux_weight, training.label_smoothing)

    def illustrate(model: nn.Module, run: Path) -> None:
        write_pictures(run, model, evaluation, classes, config.ignore_label, normalize, config.pictures)

    return Prepared(
        loaders,
        task,
        facts={"classes": list(classes), "image_shape": [3, config.crop, config.crop]},
        notes={"data_in_memory": in_memory, "test_split": "val" if test is None else "test"},
        illustrate=illustrate if config.pictures else None,
    )


def _needed_gb(splits: Sequence[VocSplit]) -> float:
    """What all images and masks take in memory, from the sizes of some of them."""
    total = 0.0
    for split in splits:
        some = range(0, len(split), max(1, len(split) // 20))
        total += len(split) / len(some) * sum(4 * split.mask(index).numel() for index in some)
    return total / 2**30
