from ._cifar import cifar10_lt as cifar10_lt
from ._cifar import cifar100_lt as cifar100_lt
from ._digits import digits_lt as digits_lt
from ._features import features as features
from ._images import images as images
from ._lists import imagenet_lt as imagenet_lt
from ._lists import inaturalist18 as inaturalist18
from ._lists import places_lt as places_lt

__all__: list[str]
