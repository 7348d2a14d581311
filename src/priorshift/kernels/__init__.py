r"""The losses' fast path: forward and backward passes that read the logits as rarely as cross-entropy does.

The definitions stand in `priorshift.losses`; nothing here has to be read to know what is computed. A loss
hands its batch and its definition to `cross_entropy` or `lade` where `support` says so. Elsewhere, which is
in float64, on devices without a backend, in `torch.compile` and under `torch.func`, it evaluates the
definition itself; so does a backward pass that is going to be differentiated again.

`_fused.py` holds what all devices share: autograd, the collectives and the algebra of the few numbers that
there are for each row and class. A backend, `_cpu.py` or `_triton.py`, is two functions:

- `statistics(scores, label, counted, log_prior, log_weight)` gives `(surprise, own, column, saved)`, that is
  $-\log \mathrm{softmax}(f + \log\pi)$ at each row's label, the score $f$ there, and
  $\log \sum_i w_i e^{f_c(x_i)}$ of each column, None without weights; `saved` is for the other function.
- `gradient(scores, label, counted, log_prior, log_weight, saved, by_surprise, by_own, by_column)` gives the
  gradient by the scores from those by the three.

Scores are `[M, C]` in float32, bfloat16 or float16, of any strides; vectors are float32. `counted` is None
where all rows count. A row that does not may hold anything: its surprise, own score, weight and gradient are
zero. The same input gives the same bits.

`_numba.py` comes before the backends where Numba is installed: on a CPU, in float32 and within one process
it takes the losses whole, since up to a few thousand classes it is calls that take the time.
"""

from priorshift._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
