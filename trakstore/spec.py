"""What is stored with the data, and compared when a store is opened: small frozen dataclasses.

Each goes to a plain dict and back; two that are equal are compatible.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from trakstore import documents
from trakstore.errors import DamagedError, SpecMismatchError, TrakStoreError
from trakstore.quantities import as_number, as_whole, is_number, is_whole

__all__ = [
    "FORMAT_VERSION",
    "AutocastDtype",
    "FeatureDtype",
    "OutputSpec",
    "ParameterSpec",
    "ProjectionKind",
    "ProjectionSpec",
    "SplitSpec",
    "StoreSpec",
    "check_equal",
]

FORMAT_VERSION = 2
_ORIGINS = {"checkpoint": "checkpoint", "dataset": "data set"}  # in words
_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")  # its first figures do for people

ProjectionKind = Literal["sjlt", "kronecker", "rademacher", "gaussian", "identity", "external"]
FeatureDtype = Literal["float32", "float16"]
AutocastDtype = Literal["bfloat16"]

# P of (dim 8, seed 0, s 1, side 2) times the gradient 1, 2, ... 15 of a parameter "weight" of shape
# (3, 5). A projector that gives other numbers is another version: it must not write to, or be compared
# with, a store whose attributes hold these.
TEST_VECTORS: Mapping[tuple[str, int], tuple[float, ...]] = {
    ("sjlt", 1): (-13.0, 14.0, -20.0, -5.0, -5.0, 5.0, -16.0, -12.0),
    ("rademacher", 1): tuple(
        sum_of_signed / 8**0.5 for sum_of_signed in (12, 38, 40, -32, -20, 6, -8, 34)
    ),
    ("kronecker", 1): (-10.0, 13.0, 0.0, 0.0, 0.0, 0.0, -30.0, 39.0),
    ("gaussian", 1): (
        11.767250122991292,
        5.037858486431188,
        -32.219765060166125,
        0.3384857037142547,
        13.348187868498323,
        8.816744106712456,
        -15.487892648885575,
        2.2782084141128798,
    ),
    ("identity", 1): tuple(float(i) for i in range(1, 16)),
    ("external", 1): (),
}


@dataclass(frozen=True)
class ProjectionSpec:
    """How gradients are projected: φ = P·g with E[PᵀP] = I.

    Parameters
    ----------
    kind : {"sjlt", "kronecker", "rademacher", "gaussian", "identity", "external"}
        Sparse Johnson-Lindenstrauss transform; both sides of each weight projected, then sketched
        (fastest, with two times the error and more); dense random signs; dense normal numbers; no
        projection; or one that another program made, which cannot be made again here, may differ
        from epoch to epoch, and may lack the scale of E[PᵀP] = I.
    dim : int, optional
        Number of features; not for ``"identity"``, whose dimension is the number of parameters.
    seed : int, optional
        Seed of the random P, 0 by default; not for ``"identity"`` and ``"external"``.
    s : int
        Non-zeros of each column of an ``"sjlt"``; each is ±1/√s.
    version : int
        Version of the projection's definition; see ``storage/FORMAT.md``.
    side : int, optional
        Size to which a ``"kronecker"`` projects each side of a weight, 32 by default; only for it.

    Examples
    --------
    >>> spec = ProjectionSpec("sjlt", dim=512)
    >>> spec
    ProjectionSpec(kind='sjlt', dim=512, seed=0, s=1, version=1, side=None)
    >>> ProjectionSpec.from_dict(spec.to_dict()) == spec
    True
    """

    kind: ProjectionKind
    dim: int | None = None
    seed: int | None = None
    s: int = 1
    version: int = 1
    side: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(ProjectionKind):
            known = ", ".join(get_args(ProjectionKind))
            raise TrakStoreError(f"unknown projection {self.kind!r}; there are {known}")
        _settle_whole(self, "version")
        if (self.kind, self.version) not in TEST_VECTORS:
            raise TrakStoreError(
                f"projection {self.kind!r} has no version {self.version} in this trakstore; "
                f"install the version that wrote the store"
            )
        if self.kind in ("identity", "external"):
            if self.seed is not None or self.s != 1:
                raise TrakStoreError(f"the {self.kind} projection takes no seed and no s")
        elif self.seed is None:
            object.__setattr__(self, "seed", 0)
        if self.dim is None and self.kind != "identity":
            raise TrakStoreError(f"projection {self.kind!r} needs dim, the number of features")
        needed = "must be an integer from {} to 2**{} - 1".format
        _settle_whole(self, "dim", 1, 2**31 - 1, needed(1, 31))
        _settle_whole(self, "seed", 0, 2**64 - 1, needed(0, 64))
        most = None if self.kind == "sjlt" else 1
        _settle_whole(self, "s", 1, most, "counts an sjlt's non-zeros a column (>= 1)")
        if self.kind == "kronecker" and self.side is None:
            object.__setattr__(self, "side", 32)
        if self.side is not None and self.kind != "kronecker":
            raise TrakStoreError(f"side is a kronecker's (>= 1), got {self.side} for {self.kind}")
        _settle_whole(self, "side", 1, None, "is a kronecker's (>= 1)")

    @property
    def test_vector(self) -> tuple[float, ...]:
        """What this kind and version gives on the published test (``storage/FORMAT.md``)."""
        return TEST_VECTORS[self.kind, self.version]

    def to_dict(self) -> dict[str, Any]:
        """A dict for JSON, with the test vector."""
        return {**_plain(self), "test_vector": list(self.test_vector)}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ProjectionSpec:
        """From :meth:`to_dict`; refuses a test vector that this version does not give."""
        known = documents.fields(
            document, _PROJECTION, _PROJECTION.keys() - {"kind"}, "a projection"
        )
        vector = known.pop("test_vector", None)
        spec = cls(**known)
        if vector is not None and tuple(vector) != spec.test_vector:
            raise SpecMismatchError(
                f"the store's {spec.kind} version {spec.version} gives {vector} on the published "
                f"test, this trakstore's gives {list(spec.test_vector)}: they are not one projection"
            )
        return spec


@dataclass(frozen=True)
class OutputSpec:
    """Which scalar of the model is differentiated: a name and its options."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        plain = tuple((name, _python_number(value)) for name, value in self.options)
        object.__setattr__(self, "options", plain)

    def to_dict(self) -> dict[str, Any]:
        """A dict for JSON."""
        return {"name": self.name, "options": dict(self.options)}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> OutputSpec:
        """From :meth:`to_dict`."""
        known = documents.fields(document, _OUTPUT, what="an output")
        return cls(known["name"], tuple(sorted(known["options"])))


@dataclass(frozen=True)
class ParameterSpec:
    """The parameters that gradients are taken of: canonical names and shapes, in model order."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    patterns: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if not self.shapes:
            raise TrakStoreError(
                f"no parameter that requires a gradient matches {list(self.patterns)}; "
                f"patterns are shell-style, like 'layer4.*'"
            )

    @property
    def count(self) -> int:
        """Number of scalars."""
        return sum(_product(shape) for _, shape in self.shapes)

    def to_dict(self) -> dict[str, Any]:
        """A dict for JSON."""
        return {
            "patterns": list(self.patterns),
            "shapes": [[name, list(shape)] for name, shape in self.shapes],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ParameterSpec:
        """From :meth:`to_dict`."""
        return cls(**documents.fields(document, _PARAMETERS, what="the list of parameters"))


@dataclass(frozen=True)
class StoreSpec:
    """What all features of a store have in common.

    ``output`` and ``parameters`` are ``None`` in a store whose features were made elsewhere. With
    ``keep_bits`` the mantissas of float32 features are rounded to so many bits before they are
    written, and compressed. ``autocast`` is what the model's products were computed in, where that was
    less than its parameters' precision.
    """

    projection: ProjectionSpec
    output: OutputSpec | None = None
    parameters: ParameterSpec | None = None
    dtype: FeatureDtype = "float32"
    keep_bits: int | None = None
    autocast: AutocastDtype | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.projection, ProjectionSpec):
            raise TrakStoreError(
                f"projection must be a ProjectionSpec, such as ProjectionSpec('sjlt', dim=2048), "
                f"got {self.projection!r}"
            )
        if self.autocast not in (None, *get_args(AutocastDtype)):
            known = ", ".join(get_args(AutocastDtype))
            raise TrakStoreError(f"autocast is {known} or None, got {self.autocast!r}")
        if self.dtype not in get_args(FeatureDtype):
            known = ", ".join(get_args(FeatureDtype))
            raise TrakStoreError(f"features are stored as {known}, got {self.dtype!r}")
        if self.keep_bits is not None and self.dtype != "float32":
            raise TrakStoreError(
                f"keep_bits rounds float32 to 1 to 23 bits, got {self.keep_bits} for {self.dtype}"
            )
        _settle_whole(self, "keep_bits", 1, 23, "rounds float32 to 1 to 23 bits")

    @property
    def dim(self) -> int | None:
        """Number of features; ``None`` where only the first written split will tell."""
        if self.projection.kind == "identity" and self.parameters is not None:
            return self.parameters.count
        return self.projection.dim

    def to_dict(self) -> dict[str, Any]:
        """A dict for JSON; without autocast where there was none, as before there was any."""
        document = {
            "projection": self.projection.to_dict(),
            "output": self.output.to_dict() if self.output else None,
            "parameters": self.parameters.to_dict() if self.parameters else None,
            "dtype": self.dtype,
            "keep_bits": self.keep_bits,
        }
        return {**document, "autocast": self.autocast} if self.autocast else document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> StoreSpec:
        """From :meth:`to_dict`."""
        return cls(**documents.fields(document, _STORE, ("autocast",), "the store's document"))


@dataclass(frozen=True)
class SplitSpec:
    """One split at one epoch: its size, its blocks and columns, and what it was made from.

    The shape of blocks and the nonce are settled by whoever creates the split, and adopted by all
    others; they do not take part in comparisons.

    Attributes
    ----------
    rows, dim : int
        Shape of the features.
    columns : tuple of (name, dtype)
        The stored columns, ``features`` among them.
    widths : tuple of (name, width)
        Of the columns that have several numbers a row beside ``features``: stored activations.
    checkpoint, dataset : str or None
        Hash of the model's parameters and buffers, or ``features:`` and a hash of the features
        where those were made elsewhere; fingerprint of the data set.
    learning_rate : float or None
        Learning rate at this checkpoint, for TracIn.
    keep_bits : int or None
        As in :class:`StoreSpec`: chunks of rounded features are compressed.
    given : str or None
        SHA-256 of what was given, where features were made elsewhere.
    block_rows, chunk_rows, chunk_columns : int
        Shape of a block and of a feature chunk; see :class:`trakstore.planning.BlockShape`.
    nonce : int
        A random 32-bit number that tells this split from one of the same name dropped before.
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
    block_rows: int = field(default=1, compare=False)
    chunk_rows: int = field(default=1, compare=False)
    chunk_columns: int = field(default=1, compare=False)
    nonce: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        for name in (
            "rows",
            "dim",
            "block_rows",
            "chunk_rows",
            "chunk_columns",
            "nonce",
            "keep_bits",
        ):
            _settle_whole(self, name)
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
        """The columns that have one number a row, sorted."""
        wide = {"features", *(name for name, _ in self.widths)}
        return tuple(sorted(name for name, _ in self.columns if name not in wide))

    def check_of(self, store: StoreSpec) -> None:
        """Raise a :class:`DamagedError` where a store's splits cannot be like this one."""
        dtype = dict(self.columns)["features"]
        mine, its = (self.dim, dtype, self.keep_bits), (store.dim, store.dtype, store.keep_bits)
        if mine != (store.dim or self.dim, *its[1:]):
            raise DamagedError(
                f"its document says dim, dtype and keep_bits are {mine}, the store's says {its}"
            )

    def block_range(self, block: int) -> tuple[int, int]:
        """First row of a block, and the row after its last."""
        return block * self.block_rows, min(self.rows, (block + 1) * self.block_rows)

    def to_dict(self) -> dict[str, Any]:
        """A dict for JSON; without widths, and what was given, where there are none of them."""
        document = {**_plain(self), "columns": dict(self.columns), "widths": dict(self.widths)}
        added = ("widths", "given")
        return {name: value for name, value in document.items() if value or name not in added}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> SplitSpec:
        """From :meth:`to_dict`.

        Raises
        ------
        DamagedError
            When a field has a value that no writer gives it, or the sizes do not fit together.
        """
        spec = cls(
            **documents.fields(document, _SPLIT, ("widths", "given"), "the split's document")
        )
        _check_columns(spec)
        _check_shape(spec)
        return spec


_FLOATS, _NUMBERS = ("float32", "float16"), ("float32", "float16", "float64", "int64", "int32")
_MOST_BLOCKS, _MOST_BLOCK_ROWS = 2**22, 2**25  # of a split, of a block
_MOST_ENTRIES = 2**16  # of a marker
_MOST_CHUNK_BYTES = 2**28

_PROJECTION = {
    "kind": documents.text(),
    "dim": documents.optional(documents.whole(1, 2**31 - 1)),
    "seed": documents.optional(documents.whole(0, 2**64 - 1)),
    "s": documents.whole(1, 2**31 - 1),
    "version": documents.whole(1),
    "side": documents.optional(documents.whole(1, 2**31 - 1)),
    "test_vector": documents.optional(documents.each(documents.number())),
}
_OUTPUT = {
    "name": documents.text(),
    "options": documents.entries(documents.text(), documents.anything()),
}
_PARAMETERS = {
    "patterns": documents.each(documents.text()),
    "shapes": documents.each(
        documents.row_of(documents.text(), documents.each(documents.whole(0, 2**53)))
    ),
}
_STORE = {
    "projection": documents.made_by(ProjectionSpec.from_dict, "a projection"),
    "output": documents.optional(documents.made_by(OutputSpec.from_dict, "an output")),
    "parameters": documents.optional(
        documents.made_by(ParameterSpec.from_dict, "a list of parameters")
    ),
    "dtype": documents.one_of(*_FLOATS),
    "keep_bits": documents.optional(documents.whole(1, 23)),
    "autocast": documents.optional(documents.one_of(*get_args(AutocastDtype))),
}
_COLUMN = documents.text(documents.NAME)
_SPLIT = {
    "rows": documents.whole(1),
    "dim": documents.whole(1, 2**40),
    "columns": documents.entries(_COLUMN, documents.one_of(*_NUMBERS, "str")),
    "widths": documents.entries(_COLUMN, documents.whole(1, 2**31 - 1)),
    "checkpoint": documents.optional(documents.text()),
    "dataset": documents.optional(documents.text()),
    "learning_rate": documents.optional(documents.number()),
    "keep_bits": documents.optional(documents.whole(1, 23)),
    "block_rows": documents.whole(1, _MOST_BLOCK_ROWS),
    "chunk_rows": documents.whole(1, _MOST_BLOCK_ROWS),
    "chunk_columns": documents.whole(1, 2**31 - 1),
    "given": documents.optional(documents.text()),
    "nonce": documents.whole(0, 2**32 - 1),
}


def _check_columns(spec: SplitSpec) -> None:
    """Raise a :class:`DamagedError` for columns that no split has."""
    dtypes, widths = dict(spec.columns), dict(spec.widths)
    if dtypes.get("features") not in _FLOATS or dtypes.get("sample_id") not in ("int64", "str"):
        raise DamagedError(
            f"the split's columns must have features of {' or '.join(_FLOATS)} and a sample_id of "
            f"int64 or str, got {_short(dtypes)}"
        )
    strange = sorted(dtypes.keys() & {"written", "masked", "skipped"})
    strange += sorted(widths.keys() - {n for n in dtypes if n.startswith("activations.")})
    strange += sorted(n for n in dtypes if n != "sample_id" and dtypes[n] == "str")
    if strange:
        raise DamagedError(f"the split's document has a column that no split has: {strange[0]!r}")


def _check_shape(spec: SplitSpec) -> None:
    """Raise a :class:`DamagedError` for blocks and chunks that no writer would choose."""
    widest = max(spec.chunk_columns, *(width for _, width in spec.widths), 1)
    across = -(-spec.dim // spec.chunk_columns) + len(spec.widths)
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


def check_equal(stored: Any, got: Any, where: str, remedy: str = "give it another store") -> None:
    """Raise a :class:`SpecMismatchError` that shows both values of each field that differs.

    Hashes are shortened, and what they are of is said first, in words.

    Examples
    --------
    >>> check_equal(ProjectionSpec("sjlt", 8), ProjectionSpec("sjlt", 9), "run.zarr")
    Traceback (most recent call last):
    trakstore.errors.SpecMismatchError: run.zarr holds dim 8, this run has 9; give it another store
    """
    if stored == got:
        return
    names = [f.name for f in fields(stored) if f.compare]
    names = [name for name in names if getattr(stored, name) != getattr(got, name)]
    differences = [
        f"{name} {_short(getattr(stored, name))}, this run has {_short(getattr(got, name))}"
        for name in names
    ]
    if "output" in names and _same_function(stored.output, got.output):
        remedy += ", or if both functions compute the same, FunctionOutput(function, name=...)"
    raise SpecMismatchError(f"{where}{_told(names)} holds {'; '.join(differences)}; {remedy}")


def _same_function(stored: OutputSpec | None, got: OutputSpec | None) -> bool:
    """Whether two outputs differ in their code alone."""
    if stored is None or got is None or "code" not in dict(stored.options):
        return False
    return {**dict(stored.options), "code": ""} == {**dict(got.options), "code": ""}


def _told(names: list[str]) -> str:
    """Which of these fields mean that the store was made from something else, in words."""
    others = [f"the {_ORIGINS[name]}" for name in names if name in _ORIGINS]
    differ = "differ from those" if len(others) > 1 else "differs from the one"
    return f": {' and '.join(others)} {differ} that the store was made from; it" if others else ""


def _settle_whole(
    spec: Any, name: str, least: int | None = None, most: int | None = None, needed: str = ""
) -> None:
    """Make a field of a spec Python's own whole number; None is left."""
    value = getattr(spec, name)
    if value is not None:
        object.__setattr__(spec, name, as_whole(value, name, least, most, needed=needed))


def _python_number(value: Any) -> Any:
    """A number of any library as Python's own, which JSON holds; all else as it is."""
    if is_whole(value):
        return as_whole(value, "an option")
    return float(value) if is_number(value) else value


def _short(value: Any) -> str:
    text = _HASH.sub(r"\1", str(value))
    return text if len(text) <= 400 else f"{text[:400]}..."


def _plain(spec: Any) -> dict[str, Any]:
    return {f.name: getattr(spec, f.name) for f in fields(spec)}


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
