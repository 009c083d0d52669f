"""Images with a class each: which ones, what is done to them, and the loaders of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from apical._checks import check
from apical.data import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augment,
    Decode,
    FolderImages,
    ImageArrays,
    ImageLoader,
    Normalize,
    ParquetImages,
    RandomCrop,
    RandomFlip,
    RandomResizedCrop,
    channel_statistics,
    load_images,
    open_images,
    train_validation_split,
)
from apical.data._layouts import split_remark
from apical.errors import ConfigError, DataError
from apical.recipes._task_kind import Prepared
from apical.recipes.tasks.classification._stream import StreamLoader
from apical.training import Classification, Loaders, TrainingConfig, processes
from apical.training._config import resolve_device

_STATISTICS_IMAGES = 5_000  # enough for two digits more than matter
Files = FolderImages | ParquetImages
_BUILTIN = ("digits", "synthetic")


@dataclass(frozen=True)
class DataConfig:
    """The images, and what is done to them before the model sees them.

    Attributes:
        path: a folder in any known layout (looked up here, then below the data root), ``"digits"`` or ``"synthetic"``.
        image_size: height and width of the model's input in pixels; None keeps the size as stored.
        resize: shorter side to which photographs are scaled before `image_size` is cut out; None scales directly.
        channels: 1 or 3; None as stored (3 for photographs).
        validation_fraction: share of the training images that is held out and evaluated on after each epoch, in
            [0, 1); the test images are then read once, at the end. With 0 the test images are evaluated on after
            each epoch, for the record only: nothing in a run is decided by them.
        crop_padding: training images are padded by so many pixels and cut out at random; 0 for none.
        flip: training images are mirrored at random.
        random_resized_crop: a random box of training images is scaled to the input size.
        crop_scale: least area of that box, as a fraction of the image.
        limit: at most so many training and so many test images, chosen at random; None for all.
        memory_gb: images are decoded once and kept on the device if they need no more; else they are read from files
            in each epoch.
        workers: processes that read and decode files.
    """

    path: str
    image_size: int | None = None
    resize: int | None = None
    channels: int | None = None
    validation_fraction: float = 0.0
    crop_padding: int = 0
    flip: bool = False
    random_resized_crop: bool = False
    crop_scale: float = 0.08
    limit: int | None = None
    memory_gb: float = 4.0
    workers: int = 4

    def __post_init__(self) -> None:
        check(
            "data",
            {
                f"image_size={self.image_size}, expected at least 1": self.image_size is None or self.image_size >= 1,
                f"resize={self.resize}, expected at least image_size={self.image_size}": self.resize is None
                or (self.image_size is not None and self.resize >= self.image_size),
                f"channels={self.channels}, expected 1 or 3": self.channels in (None, 1, 3),
                f"validation_fraction={self.validation_fraction}, expected a number in [0, 1)": (
                    0 <= self.validation_fraction < 1
                ),
                f"crop_padding={self.crop_padding}, expected at least 0": self.crop_padding >= 0,
                f"crop_scale={self.crop_scale}, expected a number in (0, 1]": 0 < self.crop_scale <= 1,
                "random_resized_crop needs an image_size": not self.random_resized_crop or self.image_size is not None,
                f"limit={self.limit}, expected at least 2": self.limit is None or self.limit >= 2,
                f"memory_gb={self.memory_gb}, expected at least 0": self.memory_gb >= 0,
                f"workers={self.workers}, expected at least 0": self.workers >= 0,
            },
        )


def prepare_data(config: DataConfig, training: TrainingConfig) -> Prepared:
    """Read the images, or open them if they are too many, and make loaders.

    Args:
        config: which images, and what is done to them.
        training: batch size, seed and device are read from it.

    Raises:
        DataError: there is no such folder or layout, a file cannot be read, or training and test disagree.
        ConfigError: a batch is larger than the data, or images to be streamed have no size.
    """
    if not config.path:
        raise DataError("no data: name the folder of the images with --data FOLDER")
    opened = None if config.path in _BUILTIN else _open_if_large(config)
    prepared = _in_memory(config, training) if opened is None else _streamed(opened, config, training)
    remark = split_remark(config.path)
    return prepared if remark is None else replace(prepared, remarks=(remark,))


def _in_memory(config: DataConfig, training: TrainingConfig) -> Prepared:
    stored = config.resize if config.random_resized_crop and config.resize else config.image_size
    train = load_images(config.path, "train", size=stored, resize=config.resize, channels=config.channels)
    test = load_images(config.path, "test", size=config.image_size, resize=config.resize, channels=config.channels)
    train, test = _limited(train, config.limit), _limited(test, config.limit)
    held_out = None
    if config.validation_fraction:
        train, held_out = train_validation_split(train, config.validation_fraction)
        held_out = _middle(held_out, config.image_size)
    _check_agree(train, test, config)
    device, team = resolve_device(training.device), processes()
    normalize, share = _normalization(train.images), team.share(training.batch_size)
    loader = partial(ImageLoader, normalize=normalize, device=device, rank=team.rank, world_size=team.count)
    judge = partial(loader, batch_size=2 * share, shuffle=False)
    full = len(train) >= training.batch_size or team.count > 1  # else the only batch is a smaller one
    learn = loader(train, share, drop_last=full, augment=_augmentations(config), seed=training.seed)
    loaders = Loaders(learn, judge(test if held_out is None else held_out), None if held_out is None else judge(test))
    return _prepared(loaders, training, train.classes, test.images.shape[1:], in_memory=True)


def _streamed(images: Files, config: DataConfig, training: TrainingConfig) -> Prepared:
    size = config.image_size
    if size is None:
        raise ConfigError("images that are read from files in each epoch need data.image_size, since batches need one")
    if config.validation_fraction or config.limit is not None:
        raise ConfigError(
            "holding images out and limiting them needs images in memory: raise data.memory_gb, or set "
            "validation_fraction=0 and limit=none"
        )
    channels = config.channels or 3
    cut = RandomResizedCrop(size, (config.crop_scale, 1.0)) if config.random_resized_crop else None
    decode = Decode(size, config.resize, channels)
    train = open_images(config.path, decode=Decode(None, config.resize, channels) if cut else decode)
    test = open_images(config.path, "test", decode=decode)
    normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else Normalize((0.5,), (0.25,))
    device, team = resolve_device(training.device), processes()
    share = team.share(training.batch_size)

    loader = partial(
        StreamLoader, normalize=normalize, device=device, workers=config.workers, seed=training.seed, rank=team.rank,
        world_size=team.count,
    )  # fmt: skip
    rest = _augmentations(replace(config, random_resized_crop=False))
    learn = loader(train, share, shuffle=True, drop_last=True, cut=cut, augment=rest)
    loaders = Loaders(learn, loader(test, 2 * share, shuffle=False))
    return _prepared(loaders, training, images.classes, (channels, size, size), in_memory=False)


def _prepared(
    loaders: Loaders, training: TrainingConfig, classes: Sequence[str], shape: Sequence[int], in_memory: bool
) -> Prepared:
    facts = {"classes": list(classes), "image_shape": list(shape)}
    return Prepared(loaders, Classification(training.label_smoothing), facts, {"data_in_memory": in_memory})


def _open_if_large(config: DataConfig) -> Files | None:
    """The training images, if they are in files and would need more memory than allowed."""
    try:
        images = open_images(config.path, decode=Decode(config.image_size, config.resize, config.channels or 3))
    except DataError as error:
        if "read it with load_images" in str(error):
            return None
        raise
    side = max(config.image_size or 0, config.resize or 0)
    needed = len(images) * (config.channels or 3) * side**2
    return images if needed > config.memory_gb * 2**30 else None


def _limited(arrays: ImageArrays, limit: int | None) -> ImageArrays:
    if limit is None or limit >= len(arrays):
        return arrays
    _, chosen = train_validation_split(arrays, limit / len(arrays))
    return chosen


def _middle(arrays: ImageArrays, size: int | None) -> ImageArrays:
    if size is None:
        return arrays
    top, left = ((side - size) // 2 for side in arrays.images.shape[-2:])
    return replace(arrays, images=arrays.images[:, :, top : top + size, left : left + size])


def _check_agree(train: ImageArrays, test: ImageArrays, config: DataConfig) -> None:
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise DataError(f"{config.path}: training and test have other classes: {', '.join(odd[:5])}")
    if not config.random_resized_crop and train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"{config.path}: training images are {tuple(train.images.shape[1:])}, test images "
            f"{tuple(test.images.shape[1:])} (channels, height, width); set data.image_size and data.channels"
        )


def _normalization(images: Tensor) -> Callable[[Tensor], Tensor]:
    step = max(1, len(images) // _STATISTICS_IMAGES)
    mean, std = channel_statistics(images[::step])
    return Normalize(mean, tuple(max(value, 1 / 255) for value in std))


def _augmentations(config: DataConfig) -> tuple[Augment, ...]:
    found: list[Augment] = []
    if config.random_resized_crop:
        assert config.image_size is not None
        found.append(RandomResizedCrop(config.image_size, (config.crop_scale, 1.0)))
    if config.crop_padding:
        found.append(RandomCrop(config.crop_padding))
    if config.flip:
        found.append(RandomFlip())
    return tuple(found)
