"""Training subsets pinned by the content of their images, whatever order or file format the rows came in."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from jaxtyping import Int

from priorshift._inputs import ArrayLike, read_array, read_labels
from priorshift.priors import name_classes
from priorshift.shift._arguments import read_counts, read_whole


def image_hashes(images: ArrayLike) -> list[str]:
    """A hash of each image's content, by which `draw_subset` and `split_off` order images.

    It is BLAKE2b (16 bytes) over the image's shape, the name of its dtype and its values, row by row and
    little endian. Arrays of equal content have equal hashes, on every device and in every
    memory layout. Hash the stored pixels, before any transform: a cast, a resize or swapped axes change the
    content.

    Args:
        images: Array of integers or floats of any library, shape `[N, …]`.

    Returns:
        `N` strings of 32 hexadecimal digits.

    Raises:
        TypeError: If `images` is no array of integers or floats.
        ValueError: If it is not at least two-dimensional.

    Example:
        >>> image_hashes(np.zeros((1, 2, 2), dtype=np.uint8))
        ['1ed8e9bd999dd1280f0a4632f78aaa2b']
    """
    if not hasattr(images, "dtype"):
        raise TypeError(f"Expected `images` to be an array or tensor, but got {type(images).__name__}.")
    array = read_array(images, "images")
    if array.dtype.kind not in "uif" or array.dtype.itemsize != images.dtype.itemsize:
        raise TypeError(
            f"Expected `images` to be integers or floats that NumPy can hold, but got dtype {images.dtype}."
        )
    if array.ndim < 2:
        raise ValueError(
            f"Expected `images` with one image per row, [N, …], but got shape {tuple(array.shape)}."
        )
    shape = ",".join(str(size) for size in array.shape[1:])
    header = blake2b(f"{shape} {array.dtype.name} ".encode(), digest_size=16)
    little_endian = array.dtype.newbyteorder("<")
    hashes = []
    for image in array:
        state = header.copy()
        state.update(image.astype(little_endian, copy=False).tobytes())
        hashes.append(state.hexdigest())
    return hashes


def draw_subset(
    hashes: Sequence[str], labels: ArrayLike, counts: ArrayLike, seed: int
) -> Int[np.ndarray, " m"]:
    """Draw a given number of images of each class, the same images whatever order the rows are in.

    Within its class, each image is ranked by BLAKE2b(seed, hash of the image), and the first `counts[c]` are
    taken. So the subset depends on the seed and on the images only, and subsets of one seed are nested:
    smaller counts give a part of what larger counts give. Of images with equal pixels and label any copy may
    be taken; the content of the subset is the same.

    Args:
        hashes: Hash of each image from `image_hashes`, length `N`.
        labels: Class index of each image, shape `[N]`.
        counts: Images wanted of each class, shape `[C]`, such as `long_tail_counts` gives; 0 leaves a class
            out.
        seed: Non-negative. Another seed gives other images.

    Returns:
        Row indices of the drawn images, int64, shape `[counts.sum()]`, ascending.

    Raises:
        TypeError: If `labels` or `seed` are not whole numbers.
        ValueError: If a class has too few images, a label is outside the classes, or there is not one
            label per hash.

    Example:
        >>> images = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
        >>> draw_subset(image_hashes(images), [0, 0, 0, 0, 1, 1], counts=[2, 1], seed=0).tolist()
        [1, 3, 5]
    """
    wanted, names = read_counts(counts, "counts")
    classes = read_labels(labels, size=len(hashes), num_classes=len(wanted), names=names)
    return draw_rows(hashes, classes, wanted, read_whole(seed, "seed", least=0), "counts")


def split_off(
    hashes: Sequence[str], labels: ArrayLike, per_class: int | ArrayLike, seed: int
) -> tuple[Int[np.ndarray, " held_out"], Int[np.ndarray, " rest"]]:
    """Hold out a number of images of each class, the same images whatever order the rows are in.

    The held-out images are `draw_subset`'s, so with one seed they are the same for every long-tailed subset
    of one data set that was drawn with that seed. Use them to choose settings, and take the counts of the
    rest as the source prior. Equal images can fall on both sides.

    Args:
        hashes: Hash of each image from `image_hashes`, length `N`.
        labels: Class index of each image, shape `[N]`.
        per_class: Images to hold out of every class, one number or one per class, shape `[C]`.
        seed: Non-negative. Another seed gives other images.

    Returns:
        Row indices of the held-out images and of the rest, int64, each ascending.

    Raises:
        TypeError: If `labels` or `seed` are not whole numbers.
        ValueError: If a class has too few images, a label is outside the classes, or there is not one
            label per hash.

    Example:
        >>> images = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
        >>> held_out, rest = split_off(image_hashes(images), [0, 0, 0, 0, 1, 1], per_class=1, seed=0)
        >>> held_out.tolist(), rest.tolist()
        ([1, 5], [0, 2, 3, 4])
    """
    seed = read_whole(seed, "seed", least=0)
    if isinstance(per_class, int | np.integer):
        classes = read_labels(labels, size=len(hashes))
        wanted = np.full(classes.max(initial=-1) + 1, read_whole(int(per_class), "per_class", least=0))
        classes = read_labels(classes, num_classes=max(len(wanted), 1))
    else:
        wanted, names = read_counts(per_class, "per_class")
        classes = read_labels(labels, size=len(hashes), num_classes=len(wanted), names=names)
    held_out = draw_rows(hashes, classes, wanted, seed, "per_class")
    kept = np.ones(len(classes), dtype=bool)
    kept[held_out] = False
    return held_out, np.flatnonzero(kept)


def fingerprint(hashes: Sequence[str], labels: ArrayLike) -> str:
    """Sixteen hexadecimal digits that name a labelled set of images, whatever order its rows are in.

    It is BLAKE2b (8 bytes) over the sorted pairs of label and image hash, each copy counted. Print it beside
    a score: equal fingerprints mean equal images with equal labels.

    Args:
        hashes: Hash of each image from `image_hashes`, length `N`.
        labels: Class index of each image, shape `[N]`.

    Raises:
        TypeError: If `labels` are not whole numbers.
        ValueError: If lengths differ.

    Example:
        >>> hashes = image_hashes(np.arange(8, dtype=np.uint8).reshape(2, 2, 2))
        >>> fingerprint(hashes, [0, 1])
        'b3f301e6115a8538'
        >>> fingerprint(hashes[::-1], [1, 0]) == fingerprint(hashes, [0, 1])
        True
    """
    classes = read_labels(labels, size=len(hashes))
    state = blake2b(digest_size=8)
    order = np.argsort(classes, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(classes[order])) + 1):
        for image in sorted(hashes[row] for row in rows):
            state.update(f"{classes[rows[0]]} {image}\n".encode())
    return state.hexdigest()


def draw_rows(
    hashes: Sequence[str],
    labels: Int[np.ndarray, " n"],
    counts: Int[np.ndarray, " classes"],
    seed: int,
    argument: str,
) -> Int[np.ndarray, " m"]:
    """The rows of `draw_subset`; `argument` is the name of `counts` in messages.

    Raises:
        ValueError: If a class has too few images.
    """
    available = np.bincount(labels, minlength=len(counts))
    short = np.flatnonzero(available < counts).tolist()
    if short:
        first = short[0]
        raise ValueError(
            f"Expected `{argument}` to ask no class for more than it has, but got {counts[first]} for "
            f"class {first}, which has {available[first]} (too few in {name_classes(short)})."
        )

    def rank(row: int) -> bytes:
        return blake2b(f"{seed} {hashes[row]}".encode(), digest_size=16).digest()

    class_of, still_wanted = labels.tolist(), counts.tolist()
    drawn = []
    for row in sorted(range(len(hashes)), key=rank):
        if still_wanted[class_of[row]] > 0:
            still_wanted[class_of[row]] -= 1
            drawn.append(row)
    return np.array(sorted(drawn), dtype=np.int64)
