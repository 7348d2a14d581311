from ._digits import digits_lt as digits_lt

__all__: list[str]
