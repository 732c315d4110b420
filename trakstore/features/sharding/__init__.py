"""Models larger than a card: the same features through any sharding.

A sketch is linear, so no gradient is gathered: each rank adds what it holds under its true indices,
and ``dim`` numbers a sample are summed. Features are those of one process, to rounding (1e-6 relative
in float32), and so is the hash of the weights: a store that 4 ranks began, 2 or one can end.

```
torchrun --nproc-per-node 8 -m trakstore featurize jobs.py:llama --store run.zarr --fsdp
torchrun --nproc-per-node 8 -m trakstore featurize jobs.py:llama --store run.zarr --fsdp --tp 2
```

The model of the job is one that all ranks build alike, or a function that builds it: called so that
parameters take no memory, it is sharded first, and each rank then reads its own parts of the
checkpoints, a few modules at a time: of safetensors and files of ``torch.save``, in one file or
several, no more; of a folder of ``torch.distributed.checkpoint`` the chunks that they meet, each of
which is what one rank wrote of a tensor. (Files of before torch 1.6, and those that only
``from_pretrained`` of transformers can read, are in memory whole.)

By default FSDP2 shards each child of every ``ModuleList``, then the whole; children that share a
parameter with others are left to the whole, and modules of another dtype, such as float32 adapters in a
bfloat16 model, are sharded one by one. ``Job(shard=function)`` does it in another way, and says how
``--tp`` divides layers. In Python, ``featurize`` takes a model that ``fully_shard`` or
``parallelize_module`` has sharded as it is; all ranks call it at once.

**FSDP2.** Each rank computes its own blocks, with whole weights of one module at a time. Ranks begin
each forward and backward pass together; one that has nothing to do gathers weights with the others and
lets go of them. No gradient of a weight is kept or summed: of ordinary backward passes, which features
are checked by, each gradient is sketched as it comes and dropped. With replicas (HSDP) the groups
share the blocks as single processes do, and several such groups, numbered by ``--rank`` and
``--world-size``, share a store without a word between them.

**Tensor parallel.** Ranks of a group compute the same samples. Each sketches its rows or columns of a
weight where they belong, what all of them have whole is counted by one, and one sum over the group, of
``4 dim`` bytes a sample, makes features of it; with positions divided (``SequenceParallel``) likewise.
The first rank of a group writes. Columns are sketched in whole runs of ``dim``, with zeros in place of
those of other ranks: where a rank has fewer columns than ``dim``, rows are better if both can be had.
``rademacher`` and ``gaussian`` take all columns. It goes together with FSDP2 on a mesh of two
dimensions.

**When a rank fails**, all end with its error. What is committed stays; run again with any number of
ranks. One that stops without failing, or whose machine is lost, ends the others within a minute under
``trakstore featurize``, whose ranks give signs of life whatever they compute. One that waits for its
data for ever gives them, too, and is waited for until the timeout of the process group: half an hour.
In Python that holds for all ranks: ``init_process_group(timeout=)`` must be longer than a block takes.

What is refused: FSDP's first version (shard by ``fully_shard``), ``MixedPrecisionPolicy`` (give
``autocast="bfloat16"``, or convert the model), experts on ranks of their own and other meshes of
several dimensions within a layer, experts that FSDP2 shards one by one (which ones are called depends
on the samples: shard the module that chooses between them), ``Embedding(max_norm=)``, activations
under tensor parallel. Memory that does not suffice halves the samples at once on the rank where it
happens; under tensor parallel, where others wait in the same pass, it ends the run with the batch size
to give.

Pipeline stages (``torch.distributed.pipelining``) are missing. The sum over ranks would do for them
too. But a schedule runs forward and backward of its chunks by itself, where the watch of a pass
expects to call the model; a stage is handed activations of which it is not known where the samples
are; and outputs are known on the last stage alone, while all would have to agree on checks and
repeats.

A plan for 70e9 parameters on 8 cards
-------------------------------------
On paper, not measured: 80 layers of width 8,192 with 0.86e9 parameters each, embedding and head of
2.1e9, bfloat16, 8 cards of 80 GB that gather at 300 GB/s and compute at 400 TFLOP/s, samples of 512
tokens.

========================== ================================================ ==========================
quantity                   FSDP2 on 8                                       TP 8
========================== ================================================ ==========================
weights held               140 GB / 8 = 17.5 GB                             17.5 GB
gathered at a time         two layers 3.4 GB, embedding and head 4.2 GB     none
activations, by sample     0.24 MB a token and layer: 10 GB                 2 to 3 GB
samples at once            4 on each card: 39 GB, 64 GB in all              16 on all
traffic of a card          weights twice: 245 GB (7/8 of 280) for 4 samples 4.7 GB a sample
beside it, for features    8 bytes a pass                                   8 kB a sample at dim 2,048
forward and backward       2 x 72 TFLOP a sample: 0.36 s                    0.36 s / 8
gradients formed, ``sjlt`` 72 TFLOP, 0.18 s; 70e9 entries sketched, 0.5 s   0.15 of that
512 tokens, ``sjlt``       1.0 s on each of 8 cards, gathers (0.2 s) behind 0.15 s
512 tokens, ``kronecker``  0.4 s on each of 8 cards                         0.05 s
========================== ================================================ ==========================

Under tensor parallel the outputs of attention and of the other layers, 0.35 of the weights, are divided
by columns, of which each rank takes a fifth, in runs of 2,048; of the others it does an eighth.

So 8 cards do about 8 samples a second by ``sjlt`` with FSDP2 and 7 under tensor parallel, and 20 by
``kronecker`` either way. Comparisons with ordinary backward passes add one pass for each block.
"""

from __future__ import annotations

from trakstore.features.sharding.finding import sharding_of
from trakstore.features.sharding.heartbeats import watched_ranks
from trakstore.features.sharding.on_meta import (
    built_on_meta,
    forget_numbers,
    has_own_numbers,
    note_loaded,
    unloaded,
    whole_with_memory,
    with_memory,
)
from trakstore.features.sharding.places import Part, local_part, own_part, part_of, whole_tensor
from trakstore.features.sharding.sharding import WHOLE, Sharding, Take
from trakstore.features.sharding.slices import Span, is_part
from trakstore.features.sharding.starting import (
    Shard,
    free_at_once,
    shard_blocks,
    shard_model,
    started_ranks,
)

__all__ = [
    "WHOLE",
    "Part",
    "Shard",
    "Sharding",
    "Span",
    "Take",
    "built_on_meta",
    "forget_numbers",
    "free_at_once",
    "has_own_numbers",
    "is_part",
    "local_part",
    "note_loaded",
    "own_part",
    "part_of",
    "shard_blocks",
    "shard_model",
    "sharding_of",
    "started_ranks",
    "unloaded",
    "watched_ranks",
    "whole_tensor",
    "whole_with_memory",
    "with_memory",
]
