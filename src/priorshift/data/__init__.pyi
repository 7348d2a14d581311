from ._augmentation import augmented as augmented
from ._images import ImageSet as ImageSet
from ._images import Splits as Splits
from ._samplers import SAMPLERS as SAMPLERS
from ._samplers import sampled_order as sampled_order
from ._samplers import sampled_prior as sampled_prior
