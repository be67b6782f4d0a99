"""The chapter on less data, chosen well."""

from resnet_lib.experiments.downsampling.curve import CURVE_RATES, LEARNING_CURVE
from resnet_lib.experiments.downsampling.labels import LABEL_NOISE, NOISE_RATES
from resnet_lib.experiments.downsampling.selection import SELECTION
from resnet_lib.experiments.downsampling.skew import IMBALANCE, SKEW_RATES

EXPERIMENTS = (CURVE_RATES, LEARNING_CURVE, SKEW_RATES, IMBALANCE, NOISE_RATES, LABEL_NOISE, SELECTION)
