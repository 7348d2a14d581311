from ._bilateral import BilateralHead as BilateralHead
from ._causal_norm import CausalNormHead as CausalNormHead
from ._class_means import NearestClassMeanHead as NearestClassMeanHead
from ._learnable_scale import LearnableScaleHead as LearnableScaleHead
from ._linear import CosineHead as CosineHead
from ._linear import LinearHead as LinearHead
from ._meta_embedding import MetaEmbeddingHead as MetaEmbeddingHead
from ._start import Features as Features
from ._start import Start as Start
from ._weight_norm import PriorNormHead as PriorNormHead
from ._weight_norm import TauNormHead as TauNormHead

__all__: list[str]
