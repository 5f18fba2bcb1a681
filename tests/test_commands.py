"""Every command in the README, the documentation and the model cards runs.

The commands of a page run in their order, with small networks and little work. Image
sets that must be downloaded are replaced by small ones with the same kind of values.
"""

import dataclasses
import importlib
import json
import pathlib
import re
import shlex
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import gm_jax
from experiments import NAMES, compare
from gm_jax import cli
from gm_jax.training import flags, settings

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The notebooks have a test of their own.
PAGES = [
    ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', ROOT / 'results/models/README.md',
    *sorted(ROOT.glob('docs/*.md')), *sorted(ROOT.glob('docs/[gl]*/*.md')),
]
CARDS = sorted(ROOT.glob('results/models/*/**/README.md'))
_COMMAND = re.compile(r'(python -m |gm-jax\b|make |pip install )')
_WORK = {
    '--num_steps': '1', '--num_samples': '4', '--test_examples': '8',
    '--eval_batch_size': '8', '--eval_every': '1', '--checkpoint_every': '1',
    '--log_every': '1', '--batch_size': '8',
}
_SMALL = '--first_kernel=3 --features=6 --head=6'
_MACHINE = '--ais_chains=3 --ais_temperatures=5 --ais_sweeps=2 --gibbs_steps=11'
SMALL = {
    'autoencoder': '--hidden=8 --latent_dim=2',
    'nade': '--hidden=8',
    'made': '--hidden=8',
    'pixel_rnn': f'--num_layers=1 {_SMALL}',
    'pixel_cnn': f'--num_blocks=1 {_SMALL}',
    'gated_pixel_cnn': f'--num_layers=1 --kernels=3 {_SMALL}',
    'pixel_cnn_pp': '--features=4 --num_levels=1 --num_mixtures=2 --num_resnets=1',
    'multiscale_pixel_cnn': '--features=4 --num_layers=1 --head=4',
    'time_series': f'--num_blocks=1 --horizon=5 {_SMALL}',
    'nice': '--hidden=8 --test_samples=2',
    'real_nvp': '--checkerboard=0 --channelwise=1 --last=0 --whole_scales=0 '
    '--features=4 --num_blocks=0 --test_samples=2',
    'vae': '--hidden=8 --test_samples=2',
    'pixel_vae': '--features=4 --decoder_layers=1 --head=4 --first_kernel=3 '
    '--encoder=4 --latent_dim=2 --test_samples=2',
    'rbm': f'--hidden=8 {_MACHINE}',
    'dbm': f'--hidden=8,6 {_MACHINE}',
    'gsn': '--layers=8 --chain_steps=4 --thin=2 --test_samples=3',
    'gan': '--hidden=8 --discriminator_hidden=8',
    'dcgan': '--features=4,8 --latent_dim=4',
    'wgan': '--features=4,8 --latent_dim=4',
    'adversarial_autoencoder': '--hidden=8',
    'classifier': '--maps=4,8 --num_features=8',
}
# What a stand-in has in place of the values of a set.
_VALUES = {'binarized_mnist': (2, 1), 'cifar10': (256, 3), 'cifar10_jpeg': (256, 3)}
# What belongs to a mode other than training, or to where a run is.
_OF_A_MODE = {
    '--mode', '--checkpoint', '--label', '--given', '--seed', '--temperature',
    '--sampler', '--num_samples', '--workdir',
}
# Where the data are and which process of how many it is.
_DROPPED = {
    '--data_dir': '', '--coordinator_address': '', '--num_processes': '',
    '--process_id': '', '--workdir': '',
}


def commands(text: str) -> list[str]:
    """Return the commands of a page: lines of its blocks of shell, and inline code."""
    found = []
    for block, inline in re.findall(r'```sh\n(.*?)```|`([^`\n]+)`', text, re.DOTALL):
        for line in (block or inline).replace('\\\n', ' ').splitlines():
            line = re.sub(r'\s#.*', '', line)
            found += [
                ' '.join(part.split()) for part in line.split('&&')
                if _COMMAND.match(part.strip())
            ]
    return found


@pytest.mark.long
@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.stem)
def test_page(page, stand_ins, trained, tmp_path):
    """Catch a command that does not run as it is written."""
    for command in commands(page.read_text()):
        _run_of(page, command, Place(tmp_path, stand_ins, trained))


def test_recorded_commands(tmp_path):
    """Catch a command of the table of numbers whose flags are no longer there."""
    for command in commands((ROOT / 'results/README.md').read_text()):
        if command.startswith('python -m experiments.compare '):
            compare._parse(_of_an_experiment(command)[1])
        elif re.match(r'python -m experiments\.\w+ ', command):
            _parse(*_of_an_experiment(command))
        else:
            _run(command, Place(tmp_path, tmp_path, {}))


@pytest.mark.parametrize(
    'path', sorted(ROOT.glob('results/*.json')), ids=lambda path: path.stem
)
def test_commands_of_a_file(path, tmp_path):
    """Catch a command beside a number that its program refuses."""
    for string in re.findall(r'"python -m (?:[^"\\]|\\.)*"', path.read_text()):
        for part in json.loads(string).split(' && '):
            module, argv = _of_an_experiment(part)
            if module in NAMES:
                _parse(module, argv)
            elif module.startswith('benchmarks.'):
                _run(part, Place(tmp_path, tmp_path, {}))
                given = {word.partition('=')[0] for word in argv}
                assert _required(module) <= given, part


def _required(module: str) -> set[str]:
    """Return the flags that a benchmark does not run without."""
    return set(re.findall(
        r"add_argument\(\s*'(--\w+)'[^()]*\brequired=True",
        _text(f'{module.replace(".", "/")}.py'),
    ))


def test_no_help_gives_two_runs_one_work_directory():
    """Catch an example of a docstring that the one above it makes fail."""
    of_help: dict[str, tuple[str, Any]] = {}
    for name in NAMES:
        text = (importlib.import_module(f'experiments.{name}').__doc__ or '')
        text = text.replace('\\\n', ' ')
        for command in re.findall(r'^ {4}(python -m .*)', text, re.MULTILINE):
            module, argv = _of_an_experiment(command)
            if any(word.startswith('--mode=') for word in argv):
                continue
            main = _main(module)
            run, config = flags.parse(
                argv, main.config_class, presets=main.presets, program='', about=''
            )
            before = of_help.setdefault(run.workdir, (module, config))
            assert before[0] == module, (name, command)
            assert settings.changed(before[1], config, 'train') == [], (name, command)


@pytest.mark.parametrize('card', CARDS, ids=lambda path: path.parent.name)
def test_model_cards(card):
    """Catch a card whose command makes another model, or one that cannot be trained."""
    name, argv = _of_an_experiment(*commands(card.read_text()))
    run = gm_jax.load(card.parent)
    assert run.command is _main(name)
    assert settings.changed(run.config, _parse(name, argv), 'train') == []
    experiment, size = run.experiment, 8
    state = jax.eval_shape(experiment.init, jax.random.key(0))
    many = (experiment.minibatches,) if experiment.minibatches else ()
    numbers = np.zeros((*many, size), np.int32)
    batch = {
        'image': np.zeros((*many, size, *run.data.image_shape), np.uint8),
        'label': numbers, 'index': numbers,
    }
    trained, _ = jax.eval_shape(
        experiment.train_step, state, batch, jax.random.key(1)
    )
    assert jax.tree.map(jnp.shape, trained) == jax.tree.map(jnp.shape, state)


def _of_an_experiment(command: str) -> tuple[str, list[str]]:
    """Return the name and the flags of `python -m experiments.NAME FLAGS`."""
    _, _, module, *argv = shlex.split(command)
    return module.removeprefix('experiments.'), argv


def _parse(name: str, argv: list[str]) -> settings.Config:
    """Read the flags of an experiment; raise UserError where one is not right."""
    main = _main(name)
    # A work directory that is to be evaluated or sampled from is not there yet.
    argv = [word for word in argv if not word.startswith('--mode=')]
    _, config = flags.parse(
        argv, main.config_class, presets=main.presets, program='', about=''
    )
    return config


@pytest.fixture(scope='module')
def stand_ins(tmp_path_factory) -> pathlib.Path:
    """Return a directory with small sets of 8x8 images: VALUES_CHANNELS.npz.

    Beside them are a folder of pictures, and one picture whose lower half is missing.
    """
    directory = tmp_path_factory.mktemp('sets')
    rng = np.random.default_rng(0)
    for values, channels in {(256, 1), *_VALUES.values()}:
        sets = {}
        for split, size in (('train', 1200), ('test', 32), ('validation', 32)):
            sets[split] = rng.integers(
                0, values, (size, 8, 8, channels), dtype=np.uint8
            )
            sets[f'{split}_labels'] = np.arange(size) % 10
        np.savez(directory / f'{values}_{channels}.npz', **sets)
    for name in ('cat', 'dog'):
        (directory / 'pictures' / name).mkdir(parents=True)
        for number in range(40):
            picture = Image.fromarray(rng.integers(0, 256, (9, 8, 3), dtype=np.uint8))
            picture.save(directory / 'pictures' / name / f'{number}.png')
    half = rng.integers(0, 256, (8, 8, 4), dtype=np.uint8)
    half[..., 3] = 255 * (np.arange(8) < 4)[:, None]
    Image.fromarray(half).save(directory / 'half.png')
    return directory


@pytest.fixture(scope='module')
def trained() -> dict[str, list[str]]:
    """Return what has been trained: the name and the flags, by work directory."""
    return {}


class Place(NamedTuple):
    """Where the commands of a page run.

    Attributes:
        directory: holds their work directories.
        sets: the directory of the stand-ins.
        trained: what has been trained, there and in other places.
    """

    directory: pathlib.Path
    sets: pathlib.Path
    trained: dict[str, list[str]]


def _run_of(page: pathlib.Path, command: str, place: Place) -> None:
    try:
        _run(command, place)
    except BaseException as error:
        error.add_note(f'in {page}: {command}')
        raise


def _run(command: str, place: Place) -> None:
    """Run a command with little work; of other programs, check the flags."""
    for long in ('python -m gm_jax.experiments', 'python -m experiments'):
        command = command.replace(f'{long}.', 'gm-jax ').replace(long, 'gm-jax')
    command = command.replace('compare_runs', 'compare-runs').replace('...', '')
    program, *words = shlex.split(command)
    if program == 'make':
        assert words[0] in re.findall(r'^([\w-]+):', _text('Makefile'), re.MULTILINE)
    elif program == 'pip':
        for extra in re.findall(r'gm_jax\[(\w+)\]', command):
            assert re.search(rf'^{extra} =$', _text('setup.cfg'), re.MULTILINE)
    elif program == 'python':
        source = _text(f'{words[1].replace(".", "/")}.py')
        for word in words[2:]:
            name = word.partition('=')[0]
            assert not name.startswith('--') or f"'{name}'" in source, name
    else:
        _gm_jax([re.sub('^NAME$', 'nade', word) for word in words], place)


def _text(name: str) -> str:
    return (ROOT / name).read_text()


def _gm_jax(words: list[str], place: Place) -> None:
    name, *argv = words or ['']
    if not name:
        assert set(NAMES) < set(cli.listing('experiments', '').split())
    elif name in NAMES and argv in ([], ['--help']):
        with pytest.raises(SystemExit) as ended:
            _main(name)(['--help'])
        assert not ended.value.code
    elif name == 'prepare':
        # Without the original files it ends before any work, but reads its flags.
        here = [f'--from={place.sets}', f'--data_dir={place.directory}']
        status = cli.prepare([*argv, *here] if argv else ['--help'], name)
        assert status == (2 if argv else 0)
    elif name == 'compare':
        new = {'--workdir': str(place.directory / 'all')}
        words = [_set(word, new) for word in argv]
        assert compare.main([*words, '--budget_minutes=0.001', '--models=NADE']) == 0
    elif name in ('export', 'compare-runs'):
        run = _trained('vae', str(place.directory / 'DIR'), [], place)
        out = str(place.directory / 'out')
        new = {'--workdir': run, '--to': out}
        act = cli.export if name == 'export' else cli.compare_runs
        words = [_set(word, new) if '=' in word else run for word in argv]
        assert act(words, name) == 0
    else:
        _experiment(name, argv, place)


def _main(name: str) -> Callable[[list[str]], int]:
    return importlib.import_module(f'experiments.{name}').main


def _set(word: str, new: dict[str, str]) -> str:
    name = word.partition('=')[0]
    return f'{name}={new[name]}' if name in new else word


def _experiment(name: str, argv: list[str], place: Place) -> None:
    assert name in NAMES
    _parse(name, argv)  # as they are written, before some give way to smaller ones
    given = dict(word.partition('=')[::2] for word in argv)
    assert '--workdir' in given, 'a command names its work directory'
    workdir = str(place.directory / given['--workdir'].strip('/').replace('/', '_'))
    noise = {k: v for k, v in given.items() if k in _OF_A_MODE}
    training = [word for word in argv if word.partition('=')[0] not in noise]
    _trained(name, workdir, training, place)
    if '--mode' in noise:
        noise['--num_samples'] = '4'
        if noise.get('--given', '').endswith('.png'):
            noise['--given'] = f'{place.sets}/half.png'
        words = [f'{k}={v}' if v else k for k, v in noise.items() if k != '--workdir']
        assert _main(name)([f'--workdir={workdir}', *words]) == 0


def _trained(name: str, workdir: str, argv: list[str], place: Place) -> str:
    """Train with little work, unless it is done; return the work directory."""
    if workdir in place.trained and not argv:
        return workdir
    small = dict(word.partition('=')[::2] for word in SMALL[name].split())
    command = _main(name)
    fields = {f'--{field.name}' for field in dataclasses.fields(command.config_class)}
    small |= {k: v for k, v in _WORK.items() if k in fields}
    given = dict(word.partition('=')[::2] for word in argv)
    preset = command.presets.get(given.get('--preset', ''), command.config_class())
    dataset = given.get('--dataset', preset.dataset)
    if dataset.startswith('images:'):
        small |= {'--dataset': f'images:{place.sets}/pictures', '--image_size': '8'}
    elif dataset != 'digits' and ':' not in dataset:
        values, channels = _VALUES.get(dataset, (256, 1))
        small['--dataset'] = f'npz:{place.sets}/{values}_{channels}.npz'
        small['--image_size'] = '0'
    if given.get('--network', getattr(preset, 'network', '')) in ('small', 'linear'):
        # One layer, or the network of Lucic et al., which has sizes of its own.
        for flag in ('--hidden', '--discriminator_hidden', '--features'):
            small.pop(flag, None)
    if '--classifier' in given:
        small['--classifier'] = _trained(
            'classifier', f'{workdir}_classifier', [f'--dataset={dataset}'], place
        )
    if '--begin_with' in given:
        # What the page has trained, or else the same network.
        of_page = place.directory / given['--begin_with'].strip('/').replace('/', '_')
        small['--begin_with'] = str(of_page) if str(of_page) in place.trained else (
            _trained(name, f'{workdir}_beginning', [
                word for word in argv if not word.startswith('--begin_with=')
            ], place)
        )
    words = [word for word in argv if word.partition('=')[0] not in small | _DROPPED]
    words += [f'{key}={value}' for key, value in small.items()]
    known = [where for where, what in place.trained.items() if what == [name, *words]]
    if workdir in known:
        return workdir
    shutil.rmtree(workdir, ignore_errors=True)
    if known:
        shutil.copytree(known[0], workdir)
    else:
        assert command([f'--workdir={workdir}', *words]) == 0
    place.trained[workdir] = [name, *words]
    return workdir
