from ._classifier import Classifier as Classifier
