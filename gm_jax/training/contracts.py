"""What the training loop asks of an experiment: pure functions of arrays and keys."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from gm_jax.data.image_set import Examples
from gm_jax.training.train_state import Batch, TrainState, TrainStep

__all__ = [
    'Alarms', 'ByExample', 'BySamples', 'Codes', 'Draw', 'EvalStep', 'Experiment',
    'Finish', 'HostBatch', 'HostSampler', 'MakePictures', 'Pictures', 'Sample',
    'SampleMany', 'Say', 'Score', 'Shared', 'Summarize',
]

# A batch as it is read, before it is on a device.
HostBatch = dict[str, np.ndarray]
# Pictures by name, uint8 [H, W, C] each.
Pictures = dict[str, np.ndarray]
# Prints a sentence for the user.
Say = Callable[[str], None]
# n -> n generated images, uint8 [n, H, W, C]; the same ones each time.
Draw = Callable[[int], np.ndarray]


class EvalStep(Protocol):
    """A function that evaluates each example of a batch."""

    def __call__(
        self, state: TrainState, batch: Batch, rng: jax.Array, /
    ) -> dict[str, jax.Array]:
        """Compute the numbers of each example.

        Args:
            state: the training state.
            batch: 'image' [B, H, W, C], 'label' [B], 'index' [B], which is the place of
                each example in the set and keys its noise, and 'chunk' [B].
            rng: the key of the evaluation.

        Returns:
            Arrays [B, ...]; 'loss' [B] selects the best checkpoint.
        """


class Shared(Protocol):
    """A function that computes what all examples of an evaluation need, such as log Z.

    It is compiled and runs once, before the steps; these, and whoever evaluates a
    loaded model, find the numbers in the collection 'shared' of the state. It is no
    part of the state of training.
    """

    def __call__(
        self, state: TrainState, rng: jax.Array, final: bool, /
    ) -> dict[str, jax.Array]:
        """Compute the numbers.

        Args:
            state: the training state.
            rng: the key of the evaluation, whose numbered children are the examples'.
            final: whether this is the final evaluation: it may then take minutes.

        Returns:
            Scalars, which results.json has under these names too.
        """


class Summarize(Protocol):
    """A function that computes the numbers of a set from those of its examples."""

    def __call__(self, arrays: dict[str, np.ndarray], /) -> dict[str, Any]:
        """Return the numbers of results.json.

        Args:
            arrays: [N, chunks] for each output [B] of the evaluation step, [N, ...] for
                each output [B, ...], [] for each number of `ByExample.shared`.
        """


class Sample(Protocol):
    """A sampler that is compiled as one program."""

    def __call__(
        self, state: TrainState, rngs: jax.Array, index: jax.Array, /
    ) -> jax.Array:
        """Generate images.

        Args:
            state: the training state.
            rngs: [B] one key per image.
            index: [B] the place of each image among all generated ones.

        Returns:
            uint8 [B, H, W, C].
        """


class SampleMany(Protocol):
    """A sampler on all devices of this process."""

    def __call__(
        self, state: TrainState, indices: np.ndarray, rng: jax.Array, /
    ) -> np.ndarray | jax.Array:
        """Generate images; image i has the key fold_in(rng, i).

        Args:
            state: the training state, on the devices.
            indices: [D, B/D] the places of the images.
            rng: the key of the sampling.

        Returns:
            uint8 [D, B/D, H, W, C].
        """


class HostSampler(NamedTuple):
    """A sampler that loops on the host.

    Attributes:
        sample: generates images.
        warm_up: takes the same arguments and only compiles.
    """

    sample: SampleMany
    warm_up: SampleMany


class Score(Protocol):
    """A function that scores a set of samples, if examples have no numbers."""

    def __call__(
        self, draw: Draw, examples: Examples, last: bool, /
    ) -> dict[str, Any]:
        """Compare samples with images.

        Args:
            draw: generates samples.
            examples: the split to compare with.
            last: whether to compute also the numbers that take long.

        Returns:
            Numbers, and with `last` also texts; the number `BySamples.best_by` selects
            the best checkpoint.
        """


class Alarms(Protocol):
    """A function that finds what is wrong with a run."""

    def __call__(
        self, split: str, scalars: Mapping[str, float], /
    ) -> list[str]:
        """Return one sentence for each thing that is wrong in a line of metrics."""


class MakePictures(Protocol):
    """A function that draws the pictures of a trained model."""

    def __call__(
        self, state: TrainState, batch: HostBatch, rng: jax.Array, /
    ) -> Pictures:
        """Draw the pictures, from a batch of the test set."""


class Finish(Protocol):
    """A function that measures what only the end of a run needs, such as probes."""

    def __call__(
        self, state: TrainState, seed: int, say: Say, /
    ) -> tuple[dict[str, Any], Pictures]:
        """Return numbers for results.json, and pictures.

        Args:
            state: the training state.
            seed: of the noise; after training, that of the run.
            say: prints a sentence for the user.
        """


class ByExample(NamedTuple):
    """The evaluation of a model example by example.

    Attributes:
        eval_step: computes the numbers of each example during training.
        test_step: computes more careful numbers at the end.
        summarize: computes the numbers of results.json from those of `test_step`.
        test_chunks: how often `test_step` is called with each batch; batch['chunk']
            counts the calls.
        fewer_chunks: smaller numbers of calls, from large to small, for when
            `test_chunks` of them take too long; () if all are needed. An experiment
            that has them has a flag --test_samples too.
        chunk_size: the random samples of each example that one call draws.
        log_prob: the name of that array of `test_step` which is an estimate of log p(x)
            [B] in nats; several are averaged in p. '' without a likelihood.
        shared: computes once what all examples need.
    """

    eval_step: EvalStep
    test_step: EvalStep
    summarize: Summarize
    test_chunks: int = 1
    fewer_chunks: tuple[int, ...] = ()
    chunk_size: int = 1
    log_prob: str = ''
    shared: Shared | None = None


class BySamples(NamedTuple):
    """The evaluation of a model by a set of its samples.

    Attributes:
        score: computes the numbers of a set of samples.
        best_by: the name of the number that is lowest for the best checkpoint.
    """

    score: Score
    best_by: str


class Codes(NamedTuple):
    """The functions of a model with a code, all of a training state.

    Attributes:
        encode: (state, image [B, H, W, C] integers, rngs [B]) -> codes [B, Z]: what
            stands for an image, such as the means of q(z|x).
        decode: (state, z [B, Z]) -> images [B, H, W, C] uint8.
        embed: (state, image, rngs) -> features [B, F], for comparisons of images.
        size: Z.
    """

    encode: Callable[[TrainState, jax.Array, jax.Array], jax.Array] | None = None
    decode: Callable[[TrainState, jax.Array], jax.Array] | None = None
    embed: Callable[[TrainState, jax.Array, jax.Array], jax.Array] | None = None
    size: int = 0


class Experiment(NamedTuple):
    """What the loop needs to know about a model.

    Attributes:
        init: makes the training state from a key. It is compiled, and checkpoints are
            read into its shapes.
        pretrained: () -> {'params': parameters by name, ...}, such as those of another
            run, and other collections of variables, with which training begins in place
            of those that `init` makes; None if there are none. It is called once, where
            a run has no checkpoint. --begin_with takes its place.
        train_step: one step of training.
        single_steps: whether a CPU runs the training steps one by one, since XLA runs
            convolutions slowly inside a loop there.
        evaluation: how the model is evaluated.
        sample: the sampler; None for a model that generates nothing.
        no_sample: why there is none.
        sampler: how it samples, in words, for samples.npz.
        given: (indices [N]) -> arrays [N, ...] that images of these indices are
            generated from, such as 'labels' and 'mask', for samples.npz.
        classes: the names of K classes if sample i is of class i mod K.
        conditional: whether the likelihood is that of an image given something, such as
            its class or a part of it, and not log p(x).
        complete: (images [N, H, W, C] integers, mask [N, H, W, C] bool) -> a sampler
            that keeps image i mod N where its mask is true.
        codes: the functions of a model that encodes, decodes or embeds.
        host_sampler: makes a sampler that loops on the host, in place of `sample`.
        pictures: draws the pictures of a trained model.
        alarms: finds what is wrong with a line of metrics.
        finish: measures what only the end of a run needs.
        loss_unit: the unit of the loss, such as 'nats per image'.
        micro_batch: examples per gradient computation on a device; 0: all.
        minibatches: batches per step, along an axis of their own; 0: one, without the
            axis.
    """

    init: Callable[[jax.Array], TrainState]
    train_step: TrainStep
    single_steps: bool
    evaluation: ByExample | BySamples
    pretrained: Callable[[], dict[str, Any]] | None = None
    sample: Sample | None = None
    no_sample: str = 'this model generates nothing.'
    sampler: str = ''
    given: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None
    classes: tuple[str, ...] = ()
    conditional: bool = False
    complete: Callable[[np.ndarray, np.ndarray], Sample] | None = None
    codes: Codes = Codes()
    host_sampler: Callable[[], HostSampler] | None = None
    pictures: MakePictures | None = None
    alarms: Alarms | None = None
    finish: Finish | None = None
    loss_unit: str = ''
    micro_batch: int = 0
    minibatches: int = 0
