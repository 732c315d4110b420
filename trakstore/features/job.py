"""A job: the model, data sets and checkpoints of one study, named on the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from trakstore.errors import NotFoundError, TrakStoreError, did_you_mean
from trakstore.features.batches import Collate
from trakstore.features.blockcheck import CheckedRows
from trakstore.features.checkpoints import (
    Checkpoint,
    TrainerFolder,
    by_epoch,
    load_weights,
    need_epochs,
    need_files,
)
from trakstore.features.derived_splits import draws_by_split, need_own_names, runs_by_split
from trakstore.features.outputs import ModelOutput, as_output, output_for
from trakstore.features.parameters import as_patterns, uncompiled
from trakstore.features.scale import Scale, as_scale
from trakstore.features.sharding import Shard, built_on_meta, whole_with_memory
from trakstore.features.weights import kept, unshared
from trakstore.planning import byte_count
from trakstore.quantities import as_flag, as_number, as_whole, is_one_of, shown
from trakstore.spec import FeatureDtype, Precision, ProjectionSpec
from trakstore.storage import layout
from trakstore.storage.layout import as_epoch

__all__ = ["Job"]

_MAPPINGS = {"datasets": "{'train': data}", "ids": "{'train': ids}", "learning_rates": "{10: 0.1}"}


@dataclass
class Job:
    """A model with its data sets and checkpoints, and how their features are computed and stored.

    Attributes
    ----------
    model : nn.Module
        Model whose own weights are epoch 0 where there are no checkpoints. Or a function without
        arguments that builds it: its parameters take no memory until checkpoints are loaded, and then,
        of a sharded model, each rank's parts alone.
    datasets : mapping of split to data set
        Map-style data sets without random transforms. Samples are trees of tensors, arrays, numbers and
        lists of numbers; outputs of classification take ``(input, ..., label)``. Columns of dicts that
        hold no numbers (texts, other objects) and that the model's forward does not take are carried
        along. :class:`Streamed` makes one from an iterable, :class:`Documents` from packed documents.
    output : str, ModelOutput or callable, optional
        The scalar that is differentiated: ``"margin"``, ``"cross_entropy"``, ``"squared_error"``,
        ``"causal_lm"``, ``"masked_lm"`` or your own. By default the one of the model's task, which the
        class of a transformers model tells; other models are taken for classifiers: ``"margin"``.
    projector : ProjectionSpec, optional
        Projection from gradients to features. By default that of the store, or for a new one
        ``ProjectionSpec("sjlt", dim=2048)``, with ``per_epoch=True`` for language models.
    checkpoints : mapping of epoch to checkpoint, or path, optional
        Weights of each epoch: a file of safetensors or of ``torch.save``, an index of shards, a folder
        that ``save_pretrained``, a Trainer, PEFT or ``torch.distributed.checkpoint`` wrote, a state
        dict, or a function without arguments that gives one of these. No file's code is run. State
        dicts that share memory with the model, as ``model.state_dict()`` does, are copied now; others
        are not, and cost nothing. The path of a Trainer's output folder stands for its folders
        ``checkpoint-N``, as epochs N, with learning rates that the Trainer logged at these very steps;
        a warning names the others.
    parameters : str or sequence of str
        Shell-style patterns of parameter names. A complex parameter that matches is refused.
    activations : str or sequence of str
        Names of modules, such as ``"layer4"``, whose outputs are stored beside the features, one row a
        sample; ``"head.input"`` names the input of the module ``head``. Costs a forward pass.
    batch_size : int
        Most samples of a batch; features depend on it by rounding alone. Texts of very different
        lengths (``input_ids``) that ``collate`` pads are sorted by length within a block of 8 batches
        or more, some of them smaller, so that at most a tenth of a batch is padding.
    ids : mapping of split to sequence of int or str
        Names of samples; their positions by default.
    learning_rates : mapping of epoch to float
        Learning rates of the training at its epochs, stored with the features for TracIn.
    dtype : {"float32", "float16", "int8"}, optional
        Stored dtype of features. By default that of the store, or float32 for a new one. ``"int8"``: 8
        bits a number and a scale for each row; rounding costs about a hundredth of a row's norm.
    collate : callable, optional
        Function that makes a batch from a list of samples; torch's default otherwise. Collators of
        transformers are given the columns that forward and the output take, as by ``Trainer``.
    block_rows : int, optional
        Rows of a block, the unit that is written whole; chosen by default.
    keep_bits : int, optional
        Bits of the 23 in a float32 mantissa to which features are rounded; they are then compressed.
    append : bool
        Whether to add samples that the data set has gained at its end. For a single worker.
    memory_limit : int or str, optional
        Most memory to take beside the model and torch's own, such as ``"600MB"``: as many samples of a
        batch are computed at once as fit, which changes features by rounding alone. Without a limit a
        GPU's free memory decides.
    precision : {"float32", "tf32", "bfloat16"}
        Precision of the model's products, forward and backward; a store does not mix several.
        ``"float32"``: the precision of the parameters, without TF32. ``"tf32"``: float32 products with
        10 bits where a GPU has them, also in the projection. ``"bfloat16"``: products under
        ``torch.autocast``, gradients still projected in float32. Inner products of features are then
        off by 0.4% to 2%, where projecting costs 16% to 25% (three models on a CPU). A model with
        bfloat16 parameters computes in bfloat16 under ``"float32"``.
    autocast : {"bfloat16"}, optional
        Another name for ``precision="bfloat16"``.
    check : {"some", "all"}
        Rows of each block that are compared with an ordinary backward pass: about one of 44, chosen
        by a hash, or every row, each alone, which costs a plain pass a sample. A block that disagrees
        is computed again by the generic engine, with all others of the split, whoever wrote them: they
        are withdrawn, and missing until then. If that disagrees too, the run stops. Where padding is
        what a row differs by, samples are computed in batches of one length instead.
    scale : {"samples", "adam"}, path or mapping, optional
        Second moments v, by whose fourth root gradients are divided before the projection, so that
        products of two are divided by √v: for models trained by Adam, whose steps are. ``"samples"``:
        moments of gradients of some samples of the first data set, with labels drawn from the model at
        the last epoch. ``"adam"``: the optimizer's moments, from ``optimizer.pt`` (or FSDP's shards) in
        the last checkpoint's folder; or the path of such a file. Or a mapping of parameter names to
        tensors of second moments. They are stored, factored into rows and columns of each matrix, the
        same for all epochs. Default: the store's.
    sampled : int or mapping of split to int
        Draws of labels from the model's own predictions, for each sample of the split ``"train"`` (or
        of the splits named). Features with these labels are written as a split ``train~sampled``, from
        which ``kernel="sampled"`` makes the kernel of scores; once its gram is stored,
        ``store.drop_rows`` may remove them. More draws make the kernel less noisy, most where samples
        times draws are not many more than the numbers of a row (``benchmarks/accuracy.py lm``). If the
        loss of a sequence is the mean over n tokens, ``loss`` and ``out_to_loss`` of these rows are
        stored times √n, so that their kernel is the Gauss-Newton matrix of the losses for any lengths.
    draw_seed : int
        Seed of drawn labels.
    tokens : int or mapping of split to int
        Tokens of a row of the split ``test~tokens``, written beside ``"test"`` (or beside the splits
        named): 1 for a row for each token that counts. Rows are named ``id#token``, by the position of
        their first token in the sample, and those of a sample add up to its row. Each costs a forward
        and a backward pass of the whole sample. For language models.
    skip_bad_rows : bool
        Whether to store rows with NaN or infinite features, outputs, losses or activations, with a
        label that is no class, or with features that the stored dtype cannot hold, as masked instead of
        refusing them. Queries leave them out; ``store.skipped(epoch, split)`` says why.
    name : str
        Name of the job in the record of the run.
    shard : callable, optional
        Function ``shard(model, mesh)`` that shards the model in place under ``trakstore featurize
        --fsdp``; the mesh of ranks has the dimension "data" and, with ``--tp``, "tensor". By default
        ``fully_shard`` of each child of every ``ModuleList``, then of the whole model.

    Raises
    ------
    TrakStoreError
        When an attribute has a wrong type or value.

    Examples
    --------
    >>> job = Job(
    ...     model,
    ...     datasets={"train": train, "test": test},
    ...     checkpoints={1: model.state_dict(), 2: model.state_dict()},
    ...     output="margin",
    ...     projector=ts.ProjectionSpec("sjlt", dim=256),
    ... )
    >>> job.epochs, job.splits
    ((1, 2), ('train', 'test'))
    """

    model: nn.Module
    datasets: Mapping[str, Any]
    output: str | ModelOutput | None = None
    projector: ProjectionSpec | None = None
    checkpoints: Mapping[int | str, Checkpoint] | str | Path | None = None
    parameters: str | Sequence[str] = ("*",)
    activations: str | Sequence[str] = ()
    batch_size: int = 64
    ids: Mapping[str, Sequence[int] | Sequence[str]] = field(default_factory=dict)
    learning_rates: Mapping[int | str, float] = field(default_factory=dict)
    dtype: FeatureDtype | None = None
    collate: Collate | None = None
    block_rows: int | None = None
    keep_bits: int | None = None
    append: bool = False
    memory_limit: int | str | None = None
    precision: Precision = "float32"
    autocast: Literal["bfloat16"] | None = None
    check: CheckedRows = "some"
    skip_bad_rows: bool = False
    scale: Scale = None
    sampled: int | Mapping[str, int] = 0
    draw_seed: int = 0
    tokens: int | Mapping[str, int] = 0
    name: str = ""
    shard: Shard | None = None
    # The epoch whose whole weights the model holds now; None while they are its own.
    _whole: int | str | None = field(default=None, init=False, repr=False, compare=False)
    _draws: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)
    _runs: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._set_model()
        self._set_weights()
        self.output = output_for(self.model) if self.output is None else as_output(self.output)
        if not isinstance(self.projector, ProjectionSpec | None):
            raise TrakStoreError(
                f"projector must be a ProjectionSpec, such as ProjectionSpec('sjlt', dim=2048), got "
                f"{self.projector!r}"
            )
        self.parameters = as_patterns(self.parameters)
        self._set_precision()
        self._check_texts()
        self._set_options()
        self.scale = as_scale(self.scale)
        need_own_names(self.datasets)
        self._draws = draws_by_split(self.sampled, self.datasets)
        self._runs = runs_by_split(self.tokens, self.datasets, as_output(self.output))

    def _set_model(self) -> None:
        """Check the model, or build it without memory for its parameters."""
        if not isinstance(self.model, nn.Module) and callable(self.model):
            if not self.checkpoints:
                raise TrakStoreError(
                    "a function that builds the model builds it without weights: give checkpoints= "
                    "that hold them, or the model itself"
                )
            self.model = built_on_meta(self.model)
        if not isinstance(self.model, nn.Module):
            raise TrakStoreError(f"model must be an nn.Module, got {type(self.model).__name__}")
        self.model = uncompiled(self.model)
        if self.shard is not None and not callable(self.shard):
            raise TrakStoreError(
                f"shard must be a function of the model and a mesh of ranks, got {shown(self.shard)}"
            )

    def _set_weights(self) -> None:
        """Check checkpoints and learning rates, and name both by the store's epochs."""
        for name, what in _MAPPINGS.items():
            if not isinstance(getattr(self, name), Mapping):
                got = type(getattr(self, name)).__name__
                raise TrakStoreError(f"{name} must be a mapping, like {what}, got {got}")
        if isinstance(self.checkpoints, str | Path):
            folder = TrainerFolder.of(Path(self.checkpoints))
            folder.rates.warn_of_unknown(Path(self.checkpoints), self.learning_rates)
            self.checkpoints = folder.checkpoints
            self.learning_rates = {**folder.rates.known, **self.learning_rates}
        need_epochs(self.checkpoints)
        self._own_checkpoints()
        self.learning_rates = {
            as_epoch(epoch): as_number(
                rate, f"the learning rate of epoch {epoch}", least=0, needed="must be a number >= 0"
            )
            for epoch, rate in self.learning_rates.items()
        }
        if self.checkpoints is not None:
            self.checkpoints = by_epoch(self._weights)

    def _set_options(self) -> None:
        """Check sizes, flags and choices, and turn them into Python's own values."""
        self.batch_size = as_whole(self.batch_size, "batch_size", 1)
        self.draw_seed = as_whole(self.draw_seed, "draw_seed", 0)
        for name in ("block_rows", "keep_bits"):
            if (size := getattr(self, name)) is not None:
                setattr(self, name, as_whole(size, name, 1))
        if self.collate is not None and not callable(self.collate):
            raise TrakStoreError(f"collate must be a function of a list, got {self.collate!r}")
        for name in ("append", "skip_bad_rows"):
            setattr(self, name, as_flag(getattr(self, name), name))
        if not is_one_of(self.check, get_args(CheckedRows)):
            raise TrakStoreError(f"check must be 'some' or 'all', got {self.check!r}")
        if self.memory_limit is not None:
            byte_count(self.memory_limit)  # raises unless it is a size

    @property
    def epochs(self) -> tuple[int | str, ...]:
        """Epochs of which the job has weights."""
        return (0,) if self.checkpoints is None else tuple(self._weights)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that are written: data sets, those with drawn labels, those of tokens."""
        drawn, tokens = map(layout.sampled_split, self._draws), map(layout.token_split, self._runs)
        return (*self.datasets, *drawn, *tokens)

    def draws_of(self, split: str) -> int:
        """Return the draws of labels for each sample of a split; 0 where samples keep their labels."""
        return self._draws[layout.own_split(split)] if split.endswith(layout.SAMPLED) else 0

    def tokens_of(self, split: str) -> int:
        """Return the number of tokens of a row, for a split of tokens."""
        return self._runs[layout.own_split(split)]

    def _check_texts(self) -> None:
        """Refuse names of the job and of layers that are not str."""
        if not isinstance(self.name, str):
            raise TrakStoreError(f"name must be a text, got {shown(self.name)}")
        layers = self.activations
        listed = isinstance(layers, Sequence) and all(isinstance(one, str) for one in layers)
        if not listed or isinstance(layers, bytes):
            raise TrakStoreError(
                f"activations must be the name of a layer or a list of names, got {shown(layers)}"
            )

    def _set_precision(self) -> None:
        """Check the precision; ``autocast``, another name for it, is None afterwards."""
        if self.autocast is not None and not is_one_of(self.autocast, ("bfloat16",)):
            raise TrakStoreError(f"autocast is bfloat16 or None, got {self.autocast!r}")
        if not is_one_of(self.precision, get_args(Precision)):
            known = ", ".join(get_args(Precision))
            raise TrakStoreError(f"precision is one of {known}, got {self.precision!r}")
        if self.autocast and self.precision == "tf32":
            raise TrakStoreError("autocast='bfloat16' and precision='tf32' contradict: give one")
        self.precision, self.autocast = self.autocast or self.precision, None

    @property
    def _weights(self) -> Mapping[int | str, Checkpoint]:
        """Weights by epoch; none where the only epoch is the model as it is."""
        if isinstance(self.checkpoints, str | Path):
            raise TypeError("the path of a folder becomes a mapping when the job is made")
        return self.checkpoints or {}

    @property
    def last_checkpoint(self) -> Checkpoint | None:
        """Weights of the last epoch, as they were given; None for those of the model itself."""
        return self._weights[self.epochs[-1]] if self.checkpoints else None

    def _own_checkpoints(self) -> None:
        """Copy state dicts that a step of training, or loading another checkpoint, would change."""
        if self.checkpoints:
            self.checkpoints = unshared(self._weights, self.model)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let :meth:`load` change the model in the ``with`` block, and restore it at the end.

        Meanwhile a copy of its weights is held on the CPU, or of its buffers alone without checkpoints.
        """
        # The copies are made again here: attributes may have been set since the job was made.
        self._own_checkpoints()
        with kept(self.model, parameters=bool(self.checkpoints)):
            try:
                yield
            finally:
                self._whole = None

    def check_names(self) -> None:
        """Check that there are data sets, and that ids and learning rates name known splits and epochs.

        Raises
        ------
        TrakStoreError
            When there are no data sets.
        NotFoundError
            When a split or an epoch is unknown; the nearest name is suggested.
        """
        if not self.datasets:
            raise TrakStoreError("the job has no data sets: give some, like {'train': data}")
        for what, given, known in (
            ("ids of the split", self.ids, tuple(self.datasets)),
            ("a learning rate of epoch", self.learning_rates, self.epochs),
        ):
            for name in given:
                if name not in known:
                    raise NotFoundError(
                        f"the job has {what} {name!r}, and no such "
                        f"{what.rpartition(' ')[2]}{did_you_mean(name, known)}"
                    )

    def load(self, epoch: int | str) -> nn.Module:
        """Load the weights of an epoch into the model, and return it; to be called within :meth:`lent`.

        Raises
        ------
        NotFoundError
            When the job has no such epoch.
        TrakStoreError
            When the weights do not fit the model, or are an adapter's alone and the model has no
            others.
        """
        epoch = as_epoch(epoch)
        if self.checkpoints is None and epoch == 0:
            return self.model
        if epoch not in self._weights:
            raise NotFoundError(f"the job has no epoch {epoch!r}{did_you_mean(epoch, self.epochs)}")
        whole_with_memory(self.model)
        kind = load_weights(self._weights[epoch], self.model, f"checkpoint {epoch}")
        if kind == "adapter" and self._whole is not None:
            raise TrakStoreError(
                f"checkpoint {epoch} is an adapter, and its base would be that of checkpoint "
                f"{self._whole}, which was loaded before: give whole weights of all epochs, or adapters"
            )
        self._whole = epoch if kind == "whole" else None
        return self.model

    def check_files(self, epochs: Sequence[int | str]) -> None:
        """Check that the files with the weights of these ``epochs`` are there.

        Raises
        ------
        NotFoundError
            When one is not.
        """
        need_files(self._weights, epochs, self.name)
