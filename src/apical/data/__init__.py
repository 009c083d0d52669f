"""Readers for the layouts in which people have images and text, and batches of them on the device."""

from apical.data._splits import Split
from apical.data.arrays import ImageArrays, channel_statistics, train_validation_split
from apical.data.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augment,
    Normalize,
    RandomCrop,
    RandomFlip,
    RandomResizedCrop,
    random_crop,
    random_flip,
    random_resized_crop,
)
from apical.data.builtin import read_digits, synthetic_images
from apical.data.cifar import read_cifar
from apical.data.decoding import Decode
from apical.data.folder import FolderImages, read_folder
from apical.data.idx import read_idx
from apical.data.layouts import load_images, open_images, recognise_layout
from apical.data.loader import ImageLoader
from apical.data.parquet import ParquetImages, read_parquet
from apical.data.root import data_root
from apical.data.sampler import BlockShuffleSampler
from apical.data.text import Corpus, TokenStream, Vocabulary, read_corpus

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Augment",
    "BlockShuffleSampler",
    "Corpus",
    "Decode",
    "FolderImages",
    "ImageArrays",
    "ImageLoader",
    "Normalize",
    "ParquetImages",
    "RandomCrop",
    "RandomFlip",
    "RandomResizedCrop",
    "Split",
    "TokenStream",
    "Vocabulary",
    "channel_statistics",
    "data_root",
    "load_images",
    "open_images",
    "random_crop",
    "random_flip",
    "random_resized_crop",
    "read_cifar",
    "read_corpus",
    "read_digits",
    "read_folder",
    "read_idx",
    "read_parquet",
    "recognise_layout",
    "synthetic_images",
    "train_validation_split",
]
