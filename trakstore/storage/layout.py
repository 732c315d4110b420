"""Paths of everything in a store: only this module builds a path or an array name.

::

    zarr.json                        spec of the store
    {epoch}/zarr.json                a checkpoint
    {epoch}/{split}/zarr.json        spec of the split
    {epoch}/{split}/features         (sample, feature)
    {epoch}/{split}/{column}         (sample,)
    {epoch}/{split}/row_scale        (sample,): of features that are stored in 8 bits
    {epoch}/{split}/activations.{x}  (sample, unit) of a layer x, where they were asked for
    {epoch}/{split}/written          (block, entry): the markers that commit blocks
    {epoch}/{split}/masked           (sample,): rows that were left out, in stores of format 1
    {epoch}/{split}/skipped          (sample,): why rows were bad when written, where there are any
    _masks/{split}/{number}          rows that are left out, of all epochs; the highest number counts
    _claims/{path}~/{number}         who changes what lies at a path, or did last
    _complete/{epoch}/{split}        a split that was complete: no marker of it may be missing
    _dropped/{epoch}/{split}         a split whose features were deleted, and whose gram is kept
    runs/{epoch}.{split}.{run}       what each run did; "planned": a split that is still to come
    scores/{name}                    saved score matrices
    dynamics/{split}/{run}.{number}  what a training process saw of samples
    _scales/{digest}                 factors of gradients, named by the hash in the store's spec
    evaluation/{name}/{part}         models that were trained again on parts of the data
    grams/{epoch}/{split}            the gram of a split's features; ~{weighting} behind it: weighted

Other modules import this one as a whole, and use any name of it that has no leading underscore.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeAlias

from trakstore.documents import NAME
from trakstore.errors import DamagedError, TrakStoreError
from trakstore.quantities import as_whole

Epoch: TypeAlias = int | str

DOCUMENT = "zarr.json"  # the last part of the key of each metadata document
FEATURES = "features"
ACTIVATIONS = "activations."
SAMPLE_ID = "sample_id"
ROW_SCALE = "row_scale"
WRITTEN = "written"
MASKED = "masked"
SKIPPED = "skipped"
SCORES = "scores"
GRAMS = "grams"
RUNS = "runs"
DYNAMICS = "dynamics"
EVALUATION = "evaluation"
# No epoch of any format can have these six names: a name begins with a letter.
MASKS = "_masks"
CLAIMS = "_claims"
COMPLETE = "_complete"
DROPPED = "_dropped"
SCALES = "_scales"
INDEXES = "_indexes"
INDEX = "rows."  # comes before an epoch; other names are indexes of an earlier trakstore
RESERVED = frozenset(
    {SCORES, GRAMS, RUNS, DYNAMICS, EVALUATION, MASKS, CLAIMS, COMPLETE, DROPPED, SCALES, INDEXES}
)

# Ends of the names of splits that are made of another split's samples.
SAMPLED = "~sampled"  # with labels drawn from the model
TOKENS = "~tokens"  # with a row for each token
KEPT = ".kept"  # ends the name of the group that remains when a mask is deleted
MARKER_SEPARATOR = "."  # between the numbers in the key of a marker

_DIGITS = 19  # of the number of an epoch: as many as int64 has
_MARKER = re.compile(r"c\.(0|[1-9][0-9]*)\.0")
_SKIPPED = re.compile(rf"{SKIPPED}\.(0|[1-9][0-9]*)")
# Temporary files of writers, running or killed: those of trakstore and zarr, and of obstore.
_LEFTOVER = re.compile(r".*(\.partial|#[0-9]+)")


def check_name(name: str, what: str) -> str:
    """Return ``name`` if it can be a folder's name everywhere, else raise.

    Examples
    --------
    >>> check_name("train", "split")
    'train'
    >>> check_name("../train", "split")
    Traceback (most recent call last):
    trakstore.errors.TrakStoreError: '../train' cannot name a split: names begin with a letter and \
have letters, digits and _ . + = - only, 100 at most, and do not end in .partial
    """
    # Names of splits made from another split's samples cannot be given by anybody else.
    own = own_split(name) if what == "split" and isinstance(name, str) else name
    if not isinstance(own, str) or not NAME.fullmatch(own) or is_leftover(own):
        article = "an" if what[0] in "aeiou" else "a"
        shown = repr(name) if len(repr(name)) < 200 else f"{repr(name)[:100]}..."
        raise TrakStoreError(
            f"{shown} cannot name {article} {what}: names begin with a letter "
            f"and have letters, digits and _ . + = - only, 100 at most, and do not end in .partial"
        )
    return name


def check_key(key: str) -> str:
    """Return ``key`` if it leads to a place in the store and nowhere else; ``""`` is the store itself.

    Examples
    --------
    >>> check_key("0/train/zarr.json")
    '0/train/zarr.json'
    >>> check_key("0/../../other")
    Traceback (most recent call last):
    trakstore.errors.DamagedError: '0/../../other' is no key of a store: it leads out of it
    """
    parts = key.split("/") if key else ()
    if any(part in ("", ".", "..") for part in parts) or "\\" in key or "\0" in key:
        raise DamagedError(f"{key!r} is no key of a store: it leads out of it")
    return key


def as_epoch(epoch: Epoch) -> Epoch:
    """Return an epoch: a non-negative integer, of NumPy too or from its digits, or a valid name.

    Examples
    --------
    >>> as_epoch("10"), as_epoch("final")
    (10, 'final')
    """
    if isinstance(epoch, str) and epoch.isascii() and epoch.isdigit():
        if len(epoch) > _DIGITS or epoch != epoch.lstrip("0").rjust(1, "0"):
            raise TrakStoreError(
                f"{epoch[: _DIGITS + 1]!r} is no number of an epoch: those have no zeros before them, "
                f"and {_DIGITS} digits at most"
            )
        epoch = int(epoch)
    if not isinstance(epoch, str):
        needed = f"is a non-negative integer of {_DIGITS} digits at most, or a name"
        return as_whole(epoch, "an epoch", 0, 10**_DIGITS - 1, needed=needed)
    if epoch in RESERVED:
        raise TrakStoreError(f"{epoch!r} is a name that the store keeps for itself; choose another")
    return check_name(epoch, "epoch")


def epoch_sort_key(epoch: Epoch) -> tuple[bool, int, str]:
    """Return a key that sorts integers first, in order, then names."""
    return (False, epoch, "") if isinstance(epoch, int) else (True, 0, epoch)


def epoch_path(epoch: Epoch) -> str:
    """Return the group of an epoch."""
    return str(as_epoch(epoch))


def split_path(epoch: Epoch, split: str) -> str:
    """Return the group of a split at an epoch."""
    return f"{epoch_path(epoch)}/{check_name(split, 'split')}"


def sampled_split(split: str) -> str:
    """Return the name of the split of the same samples with labels drawn from the model."""
    return check_name(split, "split") + SAMPLED


def token_split(split: str) -> str:
    """Return the name of the split of the tokens of the same samples."""
    return check_name(split, "split") + TOKENS


def own_split(split: str) -> str:
    """Return the name of the split with these samples, which may be the split itself."""
    return split.removesuffix(SAMPLED if split.endswith(SAMPLED) else TOKENS)


def scale_path(digest: str) -> str:
    """Return the group of the factors of gradients that have this hash."""
    return f"{SCALES}/{digest}"


def scores_path(name: str) -> str:
    """Return the group of a saved score matrix."""
    return f"{SCORES}/{check_name(name, 'score matrix')}"


def index_path(split: str, epoch: Epoch) -> str:
    """Return the group of the index of a train split's rows at an epoch."""
    return f"{INDEXES}/{check_name(split, 'split')}/{INDEX}{epoch_path(epoch)}"


def run_path(epoch: Epoch, split: str, run: str) -> str:
    """Return the group of the record of one run."""
    return f"{RUNS}/{epoch_path(epoch)}.{check_name(split, 'split')}.{run}"


def gram_path(epoch: Epoch, split: str, weighting: str = "") -> str:
    """Return the group of the gram of a split's features; a weighted one's name can be no split's."""
    return gram_of(split_path(epoch, split), weighting)


def gram_of(split: str, weighting: str = "") -> str:
    """Return the group of the gram of the features of the split at path ``split``."""
    return f"{GRAMS}/{split}" + (f"~{weighting}" if weighting else "")


def dynamics_path(split: str) -> str:
    """Return the group of measures that training took of a split's samples."""
    return f"{DYNAMICS}/{check_name(split, 'split')}"


def evaluation_path(name: str) -> str:
    """Return the group of models that were trained again."""
    return f"{EVALUATION}/{check_name(name, 'set of models')}"


def masks_path(split: str) -> str:
    """Return the group of what is left out of a split, at all epochs."""
    return f"{MASKS}/{check_name(split, 'split')}"


def kept_path(path: str, number: int) -> str:
    """Return the group that stays when the mask of this number in the group at ``path`` is deleted."""
    return f"{path}/{number}{KEPT}"


def claims_path(path: str) -> str:
    """Return the group of the claims on what lies at ``path``; no other group's name ends so."""
    return f"{CLAIMS}/{path}~"


def claimed_path(claims: str) -> str:
    """Return the path whose claims lie in the group at ``claims``."""
    return claims.removeprefix(f"{CLAIMS}/").removesuffix("~")


def complete_path(epoch: Epoch, split: str) -> str:
    """Return the group that says that a split was complete."""
    return f"{COMPLETE}/{split_path(epoch, split)}"


def dropped_path(split: str) -> str:
    """Return the group that says that the features of the split at path ``split`` were deleted."""
    return f"{DROPPED}/{split}"


def models_path(name: str, first: int) -> str:
    """Return the group of some models of a set, by the number of the first."""
    return f"{evaluation_path(name)}/models.{first}"


def record_path(split: str, run: str, number: int) -> str:
    """Return the group of a part of what a training process saw of a split."""
    return f"{dynamics_path(split)}/{run}.{number}"


def child(path: str, *names: object) -> str:
    """Return the path, or key, of what is below ``path`` by these names; ``""`` is the store.

    Examples
    --------
    >>> child("0/train", "norm"), child("", "0"), child("_masks/train", 3)
    ('0/train/norm', '0', '_masks/train/3')
    """
    return "/".join([path, *map(str, names)] if path else map(str, names))


def parent(path: str) -> str:
    """Return the path of the group that something lies in; ``""`` is the store."""
    return path.rpartition("/")[0]


def below(path: str, key: str) -> str:
    """Return what follows the path of a group in the key of something in it."""
    return key.removeprefix(f"{path}/")


def last_part(path: str) -> str:
    """Return the name of what lies at a path, or key, in the group that it lies in."""
    return path.rpartition("/")[2]


def chunk_folder(array: str) -> str:
    """Return the folder of the chunks of the array at a path."""
    return f"{array}/c"


def chunk_key(array: str, numbers: Iterable[int], separator: str = "/") -> str:
    """Return the key of a chunk of the array at a path, by its numbers along each dimension.

    Examples
    --------
    >>> chunk_key("0/train/features", (3, 0)), chunk_key("0/train/written", (3, 0), ".")
    ('0/train/features/c/3/0', '0/train/written/c.3.0')
    """
    return f"{array}/{separator.join(['c', *map(str, numbers)])}"


def chunk_numbers(rest: str) -> tuple[int, ...]:
    """Return the numbers in the key of a chunk, less its array's path; none in any other text.

    Examples
    --------
    >>> chunk_numbers("c/1/2"), chunk_numbers("c/01/2"), chunk_numbers("zarr.json")
    ((1, 2), (), ())
    """
    letter, *parts = rest.split("/")
    right = letter == "c" and all(p.isascii() and p.isdigit() and str(int(p)) == p for p in parts)
    return tuple(map(int, parts)) if right else ()


def document_key(path: str, *names: object) -> str:
    """Return the key of the metadata document of the group or array that is :func:`child`.

    Examples
    --------
    >>> document_key(""), document_key("0/train", "norm")
    ('zarr.json', '0/train/norm/zarr.json')
    """
    return child(path, *names, DOCUMENT)


def is_document(key: str) -> bool:
    """Tell whether a key is that of a metadata document."""
    return last_part(key) == DOCUMENT


def document_keys(path: str) -> list[str]:
    """Return the keys of the documents of a group and of those above it, the highest first.

    Examples
    --------
    >>> document_keys("grams/3")
    ['grams/zarr.json', 'grams/3/zarr.json']
    """
    parts = path.split("/")
    return [document_key("/".join(parts[:n])) for n in range(1, len(parts) + 1)]


def written_path(split: str) -> str:
    """Return the path of the array whose chunks are the markers of the split at path ``split``."""
    return child(split, WRITTEN)


def marker_key(split: str, block: int) -> str:
    """Return the key whose presence commits ``block`` of the split at path ``split``."""
    return chunk_key(written_path(split), (block, 0), MARKER_SEPARATOR)


def marker_block(name: str) -> int | None:
    """Return the block that a key's last part marks, or ``None`` if it is not a marker."""
    return _number(_MARKER, name)


def skipped_key(split: str, block: int) -> str:
    """Return the key, among the markers, which says that ``block`` has a chunk of reasons."""
    return f"{written_path(split)}/{SKIPPED}.{block}"


def skipped_block(name: str) -> int | None:
    """Return the block whose reasons such a key announces, by its last part, or ``None``."""
    return _number(_SKIPPED, name)


def _number(pattern: re.Pattern[str], name: str) -> int | None:
    match = pattern.fullmatch(name)
    return int(match[1]) if match else None


def is_leftover(key: str) -> bool:
    """Tell whether a key is a temporary file of a writer.

    Examples
    --------
    >>> is_leftover("zarr.json.07580c.partial"), is_leftover("0/train/norm/c/0#1"), is_leftover("0")
    (True, True, False)
    """
    return _LEFTOVER.fullmatch(key) is not None
