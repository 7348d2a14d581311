from ._small_cnn import SmallCNN as SmallCNN

__all__: list[str]
