"""Class front-ends that people know: thin, built from the public functions.

Code that was written for sketches of these classes runs with its imports changed::

    from trakstore.attributors import TRAKAttributor, DelayedGeneralizationTRAK
    from trakstore.attributors import compute_attribution_stability
    from trakstore.attributors import PhaseTransitionAttributor, BiasAttributor
    from trakstore.attributors import TrainingDynamicsTracker, TRAKer
    from trakstore.attributors import TracInAttributor as TracInAnalyzerOptimized

Names, arguments and the shapes of results are theirs. These lines have to change, or mean something
else:

**Loaders of features do not shuffle.** Row i of the features is sample i, so a shuffling loader is
refused::

    train_loader = DataLoader(train_dataset, batch_size=32)  # without shuffle=True

**Checkpoints that are paths or state dicts** need the model that takes them::

    PhaseTransitionAttributor(model_checkpoints=checkpoints, train_data=train_data,
                              test_data=test_data, model=model)

**TRAK is TRAK.** Scores are T (ΦᵀΦ + λI)⁻¹ Φᵀ Q, not cosines of loss gradients: of gradients of
the margin log p / (1 - p), with Q = 1 - p of the train samples. Features that were computed in chunks
and put one behind the other are scored with the Q of their own rows. ``compute_attributions`` has the
paper's formula, ``BiasAttributor`` with ``"trak"`` that of :func:`trakstore.trak_scores`, which has a
temperature, and with ``"published_trak"`` the paper's.

**A weighted mean of train predictions is no linear datamodeling score.** Loops that compare such a mean
with the model's prediction run, and say nothing about what training on other data would do. This does::

    models = trakstore.evaluation.retrain(trainer, store, "halves", plan, models=200)
    trakstore.evaluation.lds(scores, models["subset"].values, models["output"].values)

**A high score from another class is no sign of a shortcut.** Loops over such pairs run. What teaches a
shortcut has a higher mean score for targets that it solves than for targets that it misleads::

    BiasAttributor(model=model, biased_data=biased_train_data, unbiased_data=unbiased_test_data)

**The minimal notebook** computes something else until some lines are changed: the margin on both sides,
a kernel of samples and not of batches, a P of unit scale, Q. ``docs/howto/classes.md`` has them, and
``examples/minimal.py`` is the whole of it.

**The published library's README** runs as it stands, without names of experiments too. Scores at its
default arguments are another matter: see :class:`TRAKer`.

**Training dynamics** are told sample by sample though loaders shuffle: ``update`` without ``ids=``
recognises samples by what they hold. Where augmentation changes them, they need names::

    for data, targets, ids in DataLoader(WithIds(train_dataset), shuffle=True):
        tracker.update(epoch, batch_idx, data, targets, predictions, losses, ids=ids)

**Sketches that extend a TracInAnalyzer** work on ``TracInAttributor``, which has ``compute_gradient``,
``compute_influence`` and ``device``. What they add is there already:

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
