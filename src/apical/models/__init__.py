"""The networks of the experiments, as ordinary modules without any knowledge of growing."""

from apical.models._deeplab import DeepLabV3, deeplabv3_resnet50, deeplabv3_resnet101
from apical.models._gpt import GPT, StreamGPT, gpt_small
from apical.models._lstm_lm import LSTMLanguageModel, lstm_large, lstm_medium, lstm_small
from apical.models._mobilenet import MobileNetV1, mobilenet_v1
from apical.models._resnet import ResNet, resnet18, resnet34, resnet50, resnet101
from apical.models._resnet_cifar import CifarResNet, resnet20, resnet56
from apical.models._unet import UNet
from apical.models._vgg import CifarVGG16, vgg16
from apical.models._vit import ViT, vit_small
from apical.models._wide_resnet import WideResNet, wrn28_10

__all__ = [
    "GPT",
    "CifarResNet",
    "CifarVGG16",
    "DeepLabV3",
    "LSTMLanguageModel",
    "MobileNetV1",
    "ResNet",
    "StreamGPT",
    "UNet",
    "ViT",
    "WideResNet",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "gpt_small",
    "lstm_large",
    "lstm_medium",
    "lstm_small",
    "mobilenet_v1",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "resnet56",
    "resnet101",
    "vgg16",
    "vit_small",
    "wrn28_10",
]
