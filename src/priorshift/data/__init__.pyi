from ._batches import augmented as augmented
from ._batches import shuffled as shuffled
from ._images import ImageSet as ImageSet
from ._images import Splits as Splits
