"""Readers for the layouts in which people have images and text, and batches of them on the device."""

from apical.data._contents import contents
from apical.data._optional import import_optional
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
from apical.data.layouts import load_images, locate, open_images, recognise_layout, split_remark
from apical.data.loader import ImageLoader
from apical.data.paired import PairLoader, Pairs, RandomView, draw_views, random_view
from apical.data.parquet import ParquetImages, read_parquet
from apical.data.root import data_root
from apical.data.sampler import BlockShuffleSampler
from apical.data.text import Corpus, TokenStream, Vocabulary, read_bytes, read_corpus
from apical.data.voc import VocSplit, check_mask, find_voc, has_masks, open_voc, read_split, voc_classes

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
    "PairLoader",
    "Pairs",
    "ParquetImages",
    "RandomCrop",
    "RandomFlip",
    "RandomResizedCrop",
    "RandomView",
    "Split",
    "TokenStream",
    "VocSplit",
    "Vocabulary",
    "channel_statistics",
    "check_mask",
    "contents",
    "data_root",
    "draw_views",
    "find_voc",
    "has_masks",
    "import_optional",
    "load_images",
    "locate",
    "open_images",
    "open_voc",
    "random_crop",
    "random_flip",
    "random_resized_crop",
    "random_view",
    "read_bytes",
    "read_cifar",
    "read_corpus",
    "read_digits",
    "read_folder",
    "read_idx",
    "read_parquet",
    "read_split",
    "recognise_layout",
    "split_remark",
    "synthetic_images",
    "train_validation_split",
    "voc_classes",
]
