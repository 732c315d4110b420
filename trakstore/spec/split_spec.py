"""One split at one epoch: its size, its blocks and columns, and its origin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

from trakstore import documents
from trakstore.errors import DamagedError, SpecMismatchError, TrakStoreError
from trakstore.quantities import as_number
from trakstore.spec.comparison import shortened
from trakstore.spec.model_settings import Settings
from trakstore.spec.store_spec import StoreSpec
from trakstore.spec.whole_fields import set_whole

LossScale: TypeAlias = Literal["", "root"]
# Why rows were withdrawn, by how much they are doubted: padding changes what the model computes of a
# sample, or an engine was wrong.
Doubt: TypeAlias = Literal["", "padding", "engine"]
_DOUBTS: tuple[Doubt, ...] = get_args(Doubt)
# Bits of the nonce that are inverted then.
_NONCES: dict[Doubt, int] = {"": 0, "padding": 0xF0F0F0F0, "engine": 0xFFFFFFFF}

_FEATURES = ("float32", "float16", "int8")
_NUMBERS = ("float32", "float16", "float64", "int64", "int32", "int8")
_WHOLE = ("rows", "dim", "block_rows", "chunk_rows", "chunk_columns", "nonce", "keep_bits", "draws")
# A document with more is damaged or forged, and is refused before memory is taken for it.
_MOST_BLOCKS, _MOST_BLOCK_ROWS = 2**22, 2**25  # of a split, of a block
_MOST_ENTRIES = 2**16  # of a block's commit record: one for each chunk
_MOST_CHUNK_BYTES = 2**28

_COLUMN = documents.text(documents.NAME)
_FIELDS = {
    "rows": documents.whole(1),
    "dim": documents.whole(1, 2**40),
    "columns": documents.entries(_COLUMN, documents.one_of(*_NUMBERS, "str")),
    "widths": documents.entries(_COLUMN, documents.whole(1, 2**31 - 1)),
    "checkpoint": documents.optional(documents.text()),
    "dataset": documents.optional(documents.text()),
    "learning_rate": documents.optional(documents.number(least=0)),
    "keep_bits": documents.optional(documents.whole(1, 23)),
    "block_rows": documents.whole(1, _MOST_BLOCK_ROWS),
    "chunk_rows": documents.whole(1, _MOST_BLOCK_ROWS),
    "chunk_columns": documents.whole(1, 2**31 - 1),
    "given": documents.optional(documents.text()),
    "nonce": documents.whole(0, 2**32 - 1),
    "coordinates": documents.text(),
    "draws": documents.whole(),
    "of_spec": documents.text(),
    "settings": documents.entries(documents.text(), documents.text()),
    "loss_scale": documents.one_of(*get_args(LossScale)),
    "doubted": documents.one_of(*get_args(Doubt)),
}
# Fields that are younger than the format: where they are empty, the document stays as it was.
_ADDED = ("widths", "given", "coordinates", "draws", "of_spec", "settings", "loss_scale", "doubted")


@dataclass(frozen=True)
class SplitSpec:
    """One split at one epoch: its size, its blocks and columns, and its origin.

    The creator of the split chooses the shape of blocks and the nonce, and all others adopt them: these
    are not compared.

    Attributes
    ----------
    rows, dim : int
        Shape of the features.
    columns : tuple of (name, dtype)
        The stored columns, ``features`` among them.
    widths : tuple of (name, width)
        Columns other than ``features`` that have several numbers a row: stored activations.
    checkpoint, dataset : str or None
        Hash of the model's parameters and buffers, or for features made elsewhere ``features:`` and a
        hash of these; and fingerprint of the data set.
    learning_rate : float or None
        Learning rate at this checkpoint, for TracIn.
    keep_bits : int or None
        Bits of rounded mantissas, as in :class:`StoreSpec`; chunks of such features are compressed.
    given : str or None
        SHA-256 of what was given, where features were made elsewhere.
    loss_scale : {"", "root"}
        ``"root"``: loss and ``out_to_loss`` are those of a mean over n tokens, times √n: of drawn
        labels, whose loss gradients make a kernel. Splits of drawn labels of before have ``""``.
    block_rows, chunk_rows, chunk_columns : int
        Shape of a block and of a feature chunk; see :class:`trakstore.planning.BlockShape`.
    nonce : int
        Random 32-bit number that distinguishes this split from a dropped one of the same name.
    coordinates : str
        Names of the arrays that xarray takes for coordinates; empty in splits older than this field.
    draws : int
        Rows of each train sample, in given rows of drawn labels; 0 if unknown.
    of_spec : str
        ``rows_digest`` of the :class:`StoreSpec` of the rows; empty in splits older than this field.
    settings : tuple of (name, text)
        Settings of the model's modules that are not part of its weights; see
        :mod:`trakstore.spec.model_settings`. Empty in splits older than this field, and if they are
        unknown.
    doubted : {"", "padding", "engine"}
        Why rows of it were withdrawn, if any were: see :meth:`withdrawn`.
    """

    rows: int
    dim: int
    columns: tuple[tuple[str, str], ...]
    checkpoint: str | None = None
    dataset: str | None = None
    learning_rate: float | None = None
    keep_bits: int | None = None
    widths: tuple[tuple[str, int], ...] = ()
    given: str | None = None
    loss_scale: LossScale = ""
    block_rows: int = field(default=1, compare=False)
    chunk_rows: int = field(default=1, compare=False)
    chunk_columns: int = field(default=1, compare=False)
    nonce: int = field(default=0, compare=False)
    coordinates: str = field(default="", compare=False)
    draws: int = field(default=0, compare=False)
    of_spec: str = field(default="", compare=False)
    settings: Settings = field(default=(), compare=False)
    doubted: Doubt = field(default="", compare=False)

    def __post_init__(self) -> None:
        for name in _WHOLE:
            set_whole(self, name)
        if self.rows < 1 or self.dim < 1:
            raise TrakStoreError(f"a split needs rows and features, got {self.rows} x {self.dim}")
        if self.learning_rate is not None:
            rate = as_number(
                self.learning_rate, "a learning rate", least=0, needed="must be a number >= 0"
            )
            object.__setattr__(self, "learning_rate", rate)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.rows // self.block_rows)

    @property
    def row_columns(self) -> tuple[str, ...]:
        """Columns that have one number a row, sorted."""
        wide = {"features", *(name for name, _ in self.widths)}
        return tuple(sorted(name for name, _ in self.columns if name not in wide))

    def check_of(self, store: StoreSpec) -> None:
        """Refuse this split if it does not fit into a store.

        Raises
        ------
        DamagedError
            When its features have another dimension, dtype or rounding.
        SpecMismatchError
            When its rows were made with another projection, output, scale or precision, or from other
            parameters.
        """
        dtype = dict(self.columns)["features"]
        mine, its = (self.dim, dtype, self.keep_bits), (store.dim, store.dtype, store.keep_bits)
        # The dim of a store may be open until its first split is written.
        if mine != (store.dim or self.dim, *its[1:]):
            raise DamagedError(
                f"its document says dim, dtype and keep_bits are {mine}, the store's says {its}"
            )
        if self.of_spec not in ("", store.rows_digest):
            raise SpecMismatchError(
                f"it is of a store with another projection, output, list of parameters, scale or "
                f"precision of products (digest {self.of_spec[:12]}, this store has "
                f"{store.rows_digest[:12]}): the split was copied here, or the store's own document "
                f"was replaced; drop the split (store.drop) and featurize it for this store"
            )

    def withdrawn(self, doubt: Doubt) -> SplitSpec:
        """Return the spec of the split once its rows are withdrawn: with a nonce that none of them has.

        The nonce follows from the first one and the doubt, so that all workers who have it write the
        same. A split that is doubted as much stays as it is.

        Examples
        --------
        >>> spec = SplitSpec(2, 3, (("features", "float32"), ("sample_id", "int64")), nonce=5)
        >>> worse = spec.withdrawn("padding").withdrawn("engine")
        >>> worse.nonce == spec.withdrawn("engine").nonce, worse.withdrawn("padding").doubted
        (True, 'engine')
        >>> spec.nonces_before, worse.nonces_before
        ((), (5, 4042322165))
        """
        if doubt not in _DOUBTS[_DOUBTS.index(self.doubted) + 1 :]:
            return self
        nonce = self.nonce ^ _NONCES[self.doubted] ^ _NONCES[doubt]
        return replace(self, nonce=nonce, doubted=doubt)

    @property
    def nonces_before(self) -> tuple[int, ...]:
        """Nonces that rows of the split had which were withdrawn, if any were."""
        less = _DOUBTS[: _DOUBTS.index(self.doubted)]
        return tuple(self.nonce ^ _NONCES[self.doubted] ^ _NONCES[one] for one in less)

    def block_range(self, block: int) -> tuple[int, int]:
        """Return the first row of a block, and the row after its last."""
        return block * self.block_rows, min(self.rows, (block + 1) * self.block_rows)

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON."""
        named = {name: dict(getattr(self, name)) for name in ("columns", "widths", "settings")}
        document = {**asdict(self), **named}
        return {name: value for name, value in document.items() if value or name not in _ADDED}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> SplitSpec:
        """Read a result of :meth:`to_dict`.

        Raises
        ------
        DamagedError
            When a field has a value that no writer produces, or the sizes do not fit together.
        """
        spec = cls(**documents.fields(document, _FIELDS, _ADDED, "the split's document"))
        _check_columns(spec)
        _check_shape(spec)
        return spec


def _check_columns(spec: SplitSpec) -> None:
    """Raise a :class:`DamagedError` for columns that no split has."""
    dtypes, widths = dict(spec.columns), dict(spec.widths)
    if dtypes.get("features") not in _FEATURES or dtypes.get("sample_id") not in ("int64", "str"):
        raise DamagedError(
            f"the split's columns must have features of {' or '.join(_FEATURES)} and a sample_id of "
            f"int64 or str, got {shortened(dtypes)}"
        )
    # Each column is a folder beside three arrays of the store itself, which it must not replace.
    strange = sorted(dtypes.keys() & {"written", "masked", "skipped"})
    strange += sorted(widths.keys() - {n for n in dtypes if n.startswith("activations.")})
    strange += sorted(n for n in dtypes if n != "sample_id" and dtypes[n] == "str")
    # Integers of 8 bits can only be features, and mean nothing without the scale of each row.
    strange += sorted(n for n in dtypes if n != "features" and dtypes[n] == "int8")
    scaled, scale = dtypes["features"] == "int8", dtypes.get("row_scale")
    if scale != ("float32" if scaled else None):
        raise DamagedError(
            f"the split's document has features of {dtypes['features']} and row_scale of {scale}: it "
            f"is there, in float32, for features of int8 alone"
        )
    if strange:
        raise DamagedError(f"the split's document has a column that no split has: {strange[0]!r}")


def _check_shape(spec: SplitSpec) -> None:
    """Raise a :class:`DamagedError` for blocks and chunks that no writer would choose."""
    widest = max(spec.chunk_columns, *(width for _, width in spec.widths), 1)
    across = -(-spec.dim // spec.chunk_columns) + len(spec.widths)
    # A block's commit record has an entry for each column, and for each chunk of wide columns.
    entries = len(spec.columns) + spec.block_rows // spec.chunk_rows * across
    if (
        spec.block_rows % spec.chunk_rows
        or spec.chunk_columns > spec.dim
        or spec.blocks > _MOST_BLOCKS
        or entries > _MOST_ENTRIES
        or 4 * spec.chunk_rows * widest > _MOST_CHUNK_BYTES
    ):
        raise DamagedError(
            f"the split's document says {spec.rows} x {spec.dim} features in {spec.blocks} blocks of "
            f"{spec.block_rows} rows and chunks of {spec.chunk_rows} x {spec.chunk_columns}, which no "
            f"writer makes"
        )
