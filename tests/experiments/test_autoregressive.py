"""The experiments of autoregressive models: one command line, three samplers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import sampling
from experiments import gated_pixel_cnn, made, nade, pixel_cnn, pixel_cnn_pp, pixel_rnn
from gm_jax.data import sources
from gm_jax.errors import UserError
from gm_jax.families import autoregressive, setting
from gm_jax.models.made import draw_masks

TINY = ('--num_steps=2', '--batch_size=8', '--num_samples=8', '--eval_every=2')
NARROW = ('--features=4', '--head=4', '--first_kernel=3')
EXPERIMENTS = {
    'nade': (nade.main, ('--hidden=4', '--order=random')),
    'made': (made.main, ('--hidden=4,5', '--order=random', '--num_masks=3')),
    'pixel_cnn': (pixel_cnn.main, ('--num_blocks=1', *NARROW)),
    'gated_pixel_cnn': (gated_pixel_cnn.main, ('--num_layers=1', *NARROW)),
    'pixel_cnn_pp': (
        pixel_cnn_pp.main,
        ('--features=4', '--num_levels=1', '--num_mixtures=2', '--dropout=0.5'),
    ),
    'row_lstm': (
        pixel_rnn.main,
        ('--cell=row_lstm', '--kernel=5', '--order=reversed', '--num_layers=1',
         *NARROW),
    ),
    'diagonal_bilstm': (pixel_rnn.main, ('--num_layers=1', *NARROW)),
}
V = 256


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> str:
    """Return the flag of a set of 4 x 3 images of two classes."""
    path = tmp_path_factory.mktemp('data') / 'images.npz'
    rng = np.random.default_rng(0)
    images = rng.integers(0, V, (30, 4, 3, 1), dtype=np.uint8)
    np.savez(
        path, images=images, labels=rng.integers(0, 2, 30), class_names=['odd', 'even']
    )
    return f'--dataset=npz:{path}'


@pytest.fixture(scope='module', params=EXPERIMENTS)
def run(request, data, tmp_path_factory):
    """Return (main, workdir, flags) of a trained class-conditional model."""
    main, more = EXPERIMENTS[request.param]
    workdir = tmp_path_factory.mktemp(request.param)
    flags = (f'--workdir={workdir}', data, '--class_conditional', *TINY, *more)
    assert main(list(flags)) == 0
    return main, workdir, flags


def _samples(run, *flags):
    main, workdir, given = run
    assert main([*given, '--mode=sample', *flags]) == 0
    with np.load(workdir / 'samples.npz') as file:
        return file['images'].astype(int), str(file['sampler'])


def test_results(run):
    """Catch a number that is no exact likelihood, or not of the whole test set."""
    main, workdir, flags = run
    results = json.loads((workdir / 'results.json').read_text())
    numbers = results['metrics']
    assert numbers['estimator'] == 'exact' and results['num_examples'] == 3
    bits = numbers['nats_per_image'] / 12 / np.log(2)
    np.testing.assert_allclose(numbers['bits_per_dim'], bits, rtol=1e-6)
    assert (workdir / 'samples' / 'completions.png').exists()
    assert main([*flags, '--mode=eval']) == 0
    again = json.loads((workdir / 'results_eval_step=2.json').read_text())
    assert again['metrics'] == numbers


def test_three_samplers_give_the_same_images(run, tmp_path, monkeypatch, capfd):
    """Catch a flag that a sampler ignores, and given pixels that are not kept.

    The mask has given pixels after missing ones, in every order: the screen says so.
    """
    monkeypatch.delattr(sources, 'load')
    rng = np.random.default_rng(1)
    images, mask = rng.integers(0, V, (2, 4, 3, 1)), rng.random((4, 3)) < 0.4
    given = tmp_path / 'given.npz'
    np.savez(given, images=images, mask=mask)
    plain, name = _samples(run)
    assert name == 'incremental'
    assert 'not given all that is known' not in capfd.readouterr().out
    flags = ('--temperature=0.5', f'--given={given}')
    expected, _ = _samples(run, *flags, '--label=1')
    assert capfd.readouterr().out.count('not given all that is known') == 1
    for sampler in ('ancestral', 'fixed_point'):
        got, name = _samples(run, *flags, '--label=even', f'--sampler={sampler}')
        assert name == sampler
        np.testing.assert_array_equal(got, expected)
    assert not np.array_equal(expected, plain)
    for image in range(8):
        np.testing.assert_array_equal(expected[image][mask], images[image % 2][mask])
    # What they were made from is kept beside them, and so are those made before.
    _, workdir, _ = run
    made = sorted(path.name for path in workdir.glob('samples_*.npz'))
    assert made[0] == 'samples_seed=0_step=2.npz' and len(made) == 4
    with np.load(workdir / 'samples.npz') as file:
        assert (file['labels'] == 1).all() and file['labels'].shape == (8,)
        assert file['mask'].shape == file['given'].shape == file['images'].shape
        np.testing.assert_array_equal(
            file['images'][file['mask']], file['given'][file['mask']]
        )
    with np.load(workdir / 'samples_seed=0_step=2.npz') as file:
        np.testing.assert_array_equal(file['images'], plain)
        np.testing.assert_array_equal(file['labels'], np.arange(8) % 2)


def test_trained_samplers_agree_in_float64(run):
    """Catch what random weights of one scale hide."""
    _, workdir, _ = run
    name = json.loads((workdir / 'results.json').read_text())['experiment']
    data, make_model, variables = sampling.trained(name, str(workdir))
    flips = sampling.flips_in_float64(make_model, variables, data.image_shape, batch=8)
    assert flips == 0


@pytest.mark.parametrize('main', [pixel_cnn.main, pixel_rnn.main])
@pytest.mark.parametrize('name', ['kernel', 'first_kernel'])
def test_kernels_are_odd(main, name):
    """Catch a sentence that names the flag beside the wrong one."""
    with pytest.raises(UserError, match=f'^--{name} must be odd'):
        main.config_class(**{name: 4})


def test_samplers_compute_in_float32(monkeypatch):
    """Catch draws that differ because a GPU, a TPU or --dtype rounds to less."""
    config = gated_pixel_cnn.Config(
        features=4, num_layers=1, head=4, first_kernel=3, dtype='bfloat16'
    )
    data = sources.load('digits')
    built, precise = [], []

    def make_model(config, data):
        built.append(gated_pixel_cnn.make_model(config, data))
        return built[-1]

    def generate_and_sweep(model, temperature):
        precise.append(model)
        return real(model, temperature)

    real = autoregressive.generate_and_sweep
    monkeypatch.setattr(autoregressive, 'generate_and_sweep', generate_and_sweep)
    experiment = autoregressive.build(config, data, make_model=make_model)
    variables = {'params': experiment.init(jax.random.key(0)).params}
    x = jnp.zeros((1, 8, 8, 1), jnp.int32)
    texts = [
        jax.jit(
            lambda x: model.apply(variables, x, None, rngs=None, step=None, chunk=0)
        ).lower(x).as_text()
        for model in (built[0], precise[0])
    ]
    assert ['bf16' in text for text in texts] == [True, False]
    uniform = jnp.zeros((1, 8, 8, 1))
    generate, sweep = real(precise[0], 1.0)
    for lowered in (
        jax.jit(generate).lower(variables, x, x > 0, uniform),
        jax.jit(sweep).lower(variables, x, uniform),
    ):
        products = [
            line for line in lowered.as_text().splitlines() if 'dot_general' in line
        ]
        assert products and all('HIGHEST' in line for line in products)


@pytest.mark.parametrize('flags, sentence', [
    (('--temperature=0',), 'must be 0.001 or more'),
    (('--temperature=nan',), 'temperature'),
    (('--label=2',), 'are 0 to 1 (odd, even)'),
    (('--label=',), 'is not a class of'),
    (('--label=Even',), 'did you mean even?'),
    (('--given=nowhere.npz',), 'There is no file'),
])
def test_mistakes(run, flags, sentence, capfd):
    """Catch a traceback, or a mistake that is taken for something else."""
    main, _, given = run
    assert main([*given, '--mode=sample', *flags]) == 2
    error = capfd.readouterr().err
    assert sentence in error and error.count('\n') == 1


@pytest.mark.parametrize('images, mask, sentence', [
    (np.zeros((2, 4, 4, 1), int), np.ones((4, 3)), 'images are'),
    (np.zeros((2, 4, 3, 1), int), np.ones((3, 4)), 'mask is'),
    (np.full((2, 4, 3, 1), V), np.ones((4, 3)), 'from 0 to 255'),
    (np.zeros((2, 4, 3, 1)), np.ones((4, 3)), 'integers'),
    (np.zeros((2, 4, 3, 1), int), np.full((4, 3), np.nan), 'of 0 and 1'),
    (np.zeros((2, 4, 3, 1), int), np.full((4, 3), 'x'), 'of 0 and 1'),
    (np.zeros((9, 4, 3, 1), int), np.ones((4, 3)), 'num_samples must be'),
])
def test_partial_images_that_do_not_fit(images, mask, sentence, run, tmp_path, capfd):
    """Catch an image that is completed although it is none of the model's."""
    np.savez(tmp_path / 'given.npz', images=images, mask=mask)
    main, _, given = run
    assert main([*given, '--mode=sample', f'--given={tmp_path / "given.npz"}']) == 2
    error = capfd.readouterr().err
    assert sentence in error and error.count('\n') == 1


@pytest.mark.parametrize('content', [b'', b'no archive', b'PK\x05\x06' + bytes(18)])
def test_partial_images_that_cannot_be_read(content, run, tmp_path, capfd):
    """Catch a traceback for a damaged file, and for one without the arrays."""
    main, _, given = run
    path = tmp_path / 'given.npz'
    path.write_bytes(content)
    assert main([*given, '--mode=sample', f'--given={path}']) == 2
    error = capfd.readouterr().err
    assert str(path) in error and error.count('\n') == 1


def test_settings_that_contradict_the_data(data, tmp_path, capfd):
    """Catch labels that the set lacks, a label without a condition, a lost rest."""
    main, more = EXPERIMENTS['gated_pixel_cnn']
    flags = [f'--workdir={tmp_path}', *TINY, *more]
    path = tmp_path / 'no_labels.npz'
    np.savez(path, images=np.arange(120, dtype=np.uint8).reshape(10, 4, 3, 1))
    assert main([*flags, f'--dataset=npz:{path}', '--class_conditional']) == 2
    assert main([*flags, data, '--label=1']) == 2
    assert main([*flags, data, '--micro_batch=3']) == 2
    error = capfd.readouterr().err
    assert '--micro_batch=3 must divide the 1 examples' in error
    assert 'needs labels' in error and 'trained with --class_conditional' in error


@pytest.mark.parametrize('flags, known', [
    ((), True), (('--class_conditional',), False), (('--binarize=threshold',), False),
])
def test_no_model_gets_below_the_entropy(flags, known, tmp_path):
    """Catch an entropy beside nats of something else: given a class, or of bits."""
    flags = ('--dataset=synthetic:checkers', '--hidden=4', '--num_steps=1', *flags)
    more = ('--test_examples=20', '--num_samples=1')
    assert nade.main([f'--workdir={tmp_path}', *flags, *more]) == 0
    numbers = json.loads((tmp_path / 'results.json').read_text())['metrics']
    assert numbers.get('entropy_nats') == (
        pytest.approx(4 * np.log(12)) if known else None
    )


def test_orders_and_masks_are_those_that_were_trained():
    """Catch a NumPy whose generator draws others: checkpoints do not hold them."""
    rng = np.random.default_rng(3)
    assert rng.permutation(12).tolist() == [11, 7, 2, 10, 0, 1, 4, 6, 9, 5, 3, 8]
    masks = draw_masks(np.random.default_rng(3), 6, (4, 3), shuffle=True)
    assert [np.asarray(x).tolist() for x in (masks.rank, *masks.degrees)] == [
        [2, 5, 4, 1, 3, 0], [5, 5, 3, 1], [1, 2, 3],
    ]


def test_label_of_an_older_config():
    """Catch a config.json with a number for --label, refused."""
    assert setting.Config(label=-1) == setting.Config()
    assert setting.Config(label=3).label == '3'
    with pytest.raises(UserError, match='--label must be of type str, got True'):
        setting.Config(label=True)


NARROW = {'features': 4, 'head': 4, 'first_kernel': 3, 'micro_batch': 2}


@pytest.mark.parametrize('module, settings', [
    (gated_pixel_cnn, {'num_layers': 2, **NARROW}),
    (pixel_rnn, {'num_layers': 2, **NARROW}), (nade, {'hidden': 8}),
    (made, {'hidden': (8, 8)}),
])
def test_dropout_is_of_training_alone(module, settings):
    """Catch features that are dropped in evaluations, or the same ones at each step."""
    images = sources.load('digits')
    built = [
        module.main.build(module.Config(dropout=share, **settings), images)
        for share in (0.0, 0.5)
    ]
    rngs = jax.random.split(jax.random.key(0), 3)
    state = jax.jit(built[0].init)(rngs[0])
    batch = {**images.splits['train'].fetch(np.arange(8)), 'index': np.arange(8)}
    batch['chunk'] = np.zeros(8, np.int32)
    same = [jax.jit(e.evaluation.eval_step)(state, batch, rngs[1]) for e in built]
    np.testing.assert_array_equal(same[0]['loss'], same[1]['loss'])
    steps = [jax.jit(e.train_step) for e in built]
    loss, *dropped = (
        float(step(state, batch, rng)[1]['loss'])
        for step, rng in ((steps[0], rngs[1]), *((steps[1], rng) for rng in rngs))
    )
    assert loss == pytest.approx(float(same[0]['loss'].mean()), rel=1e-5)
    assert len({loss, *dropped}) == 4
    # As each example has its own mask, the order of the batch does not matter.
    order = np.arange(8)[::-1]
    turned = {name: x[order] for name, x in batch.items()}
    again = float(steps[1](state, turned, rngs[0])[1]['loss'])
    assert again == pytest.approx(dropped[0], rel=1e-5)
