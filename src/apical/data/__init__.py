"""Readers for the layouts in which people have images and text, and batches of them on the device."""

from apical.data._arrays import ImageArrays, channel_statistics, train_validation_split
from apical.data._augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augment,
    Normalize,
    RandomCrop,
    RandomFlip,
    RandomResizedCrop,
)
from apical.data._builtin import synthetic_images
from apical.data._decoding import Decode
from apical.data._folder import FolderImages
from apical.data._layouts import load_images, open_images
from apical.data._loader import ImageLoader
from apical.data._paired import PairLoader, Pairs, RandomView
from apical.data._parquet import ParquetImages
from apical.data._splits import data_root
from apical.data._text import Corpus, TokenStream, Vocabulary, read_bytes, read_corpus
from apical.data._voc import VocSplit, open_voc

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Augment",
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
    "TokenStream",
    "VocSplit",
    "Vocabulary",
    "channel_statistics",
    "data_root",
    "load_images",
    "open_images",
    "open_voc",
    "read_bytes",
    "read_corpus",
    "synthetic_images",
    "train_validation_split",
]
