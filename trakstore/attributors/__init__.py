"""Class front-ends under well-known names: thin, and built from the public functions.

Code that was written for sketches of these classes runs with its imports changed::

    from trakstore.attributors import TRAKAttributor, DelayedGeneralizationTRAK
    from trakstore.attributors import compute_attribution_stability
    from trakstore.attributors import PhaseTransitionAttributor, BiasAttributor
    from trakstore.attributors import TrainingDynamicsTracker, TRAKer
    from trakstore.attributors import TracInAttributor as TracInAnalyzerOptimized

Names, arguments and the shapes of results are those of the sketches. The following must be changed, or
means something else:

**Loaders of features do not shuffle.** Row i of the features is sample i, so that a shuffling loader is
refused::

    train_loader = DataLoader(train_dataset, batch_size=32)  # without shuffle=True

**Checkpoints that are paths or state dicts** need the model that takes them::

    PhaseTransitionAttributor(model_checkpoints=checkpoints, train_data=train_data,
                              test_data=test_data, model=model)

**TRAK is TRAK.** Scores are T (ΦᵀΦ + λI)⁻¹ Φᵀ Q, not cosines of loss gradients. Φ and T hold gradients
of the margin log p / (1 - p), and Q = 1 - p of the train samples. Features that were computed in chunks
and concatenated are scored with the Q of their own rows. ``compute_attributions`` uses the paper's
formula, as does ``BiasAttributor`` with ``"published_trak"``; with ``"trak"`` it uses that of
:func:`trakstore.trak_scores`, which has a temperature.

**A weighted mean of train predictions is no linear datamodeling score.** Loops that compare such a mean
with the model's prediction run, but do not tell what training on other data would do. This does::

    models = trakstore.evaluation.retrain(trainer, store, "halves", plan, models=200)
    trakstore.evaluation.lds(scores, models["subset"].values, models["output"].values)

**A high score from another class is no sign of a shortcut.** Loops over such pairs run. Samples that
teach a shortcut have a higher mean score for targets that it solves than for targets that it misleads::

    BiasAttributor(model=model, biased_data=biased_train_data, unbiased_data=unbiased_test_data)

**The minimal notebook** computes something else until some lines are changed: the margin on both sides,
a kernel of samples rather than batches, a P of unit scale, and Q. ``docs/howto/classes.md`` shows these
lines, and ``examples/minimal.py`` is the whole notebook.

**The published library's README** runs unchanged, also without names of experiments. Its scores at
default arguments differ: see :class:`TRAKer`.

**Training dynamics** are recorded for each sample even if loaders shuffle: ``update`` without ``ids=``
recognises samples by their contents. If augmentation changes them, they need ids::

    for data, targets, ids in DataLoader(WithIds(train_dataset), shuffle=True):
        tracker.update(epoch, batch_idx, data, targets, predictions, losses, ids=ids)

**Sketches that extend a TracInAnalyzer** work on ``TracInAttributor``, which has ``compute_gradient``,
``compute_influence`` and ``device``. It already has what they add:

- Random projection: ``TracInAttributor(model, projection_dim=256)``. Most of the work is the gradients
  and their projection, so it saves storage and later queries, not "7,800 times" the work.
- Sampling: ``compute_influences_sampled(test_triple=..., training_triples=..., sample_rate=0.1,
  stratify_by="relation")``, in place of a ``_stratified_sample_by_relation`` of one's own. A tenth of
  the samples has about a tenth of the true list (``expected_recall`` of the result), not 85% of it.
- Caching: features of test and train samples are kept, by weights as well as by samples.
- Early stopping: lists of ``compute_influences`` are exact and take one pass over stored features, so
  there is nothing to stop, and no ``_should_early_stop`` that has to guess.
"""

from __future__ import annotations

from trakstore.attributors.bias import BiasAttributor
from trakstore.attributors.over_time import DelayedGeneralizationTRAK, PhaseTransitionAttributor
from trakstore.attributors.tracin_attributor import TracInAttributor
from trakstore.attributors.tracker import TrainingDynamicsTracker
from trakstore.attributors.trak_attributor import TRAKAttributor, compute_attribution_stability
from trakstore.attributors.traker import ModelIDException, TRAKer
from trakstore.attributors.unprojected import unprojected_scores
from trakstore.features.callback import featurize_epoch, trainer_callback
from trakstore.features.loading import WithIds

__all__ = [
    "BiasAttributor",
    "DelayedGeneralizationTRAK",
    "ModelIDException",
    "PhaseTransitionAttributor",
    "TRAKAttributor",
    "TRAKer",
    "TracInAttributor",
    "TrainingDynamicsTracker",
    "WithIds",
    "compute_attribution_stability",
    "featurize_epoch",
    "trainer_callback",
    "unprojected_scores",
]
