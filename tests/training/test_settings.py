"""Flags, presets and JSON become one validated config, or one sentence."""

import dataclasses
import importlib
import json
import os

import pytest

from experiments import vae
from gm_jax.errors import UserError
from gm_jax.training import flags, settings
from gm_jax.training.settings import Sizes, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(settings.Config):
    """A config with a setting of each type, and a default of its own."""

    num_steps: int = field(7, 'training steps', low=1)
    width: int = field(3, 'a whole number', low=1, high=9)
    rate: float = field(0.5, 'a number', low=0.0, high=1.0)
    kind: str = field('a', 'a choice', choices=('a', 'b'))
    deep: bool = field(False, 'a switch')
    widths: Sizes = field((8,), 'sizes')
    judge: str = field('', 'who evaluates', evaluation_only=True)


PRESETS = {'wide': Config(width=8, kind='b')}


def _parse(*argv, workdir='/nowhere'):
    directory = [f'--workdir={workdir}'] if workdir else []
    return flags.parse(
        [*directory, *argv], Config, presets=PRESETS,
        program='python -m experiments.toy', about='About toys.',
    )


def test_flags_set_every_type():
    """Catch a flag that is read as text or is lost."""
    run, config = _parse(
        '--width=4', '--rate', '1', '--kind=b', '--deep', '--dataset=idx:DIR',
        '--mode=train', '--checkpoint=best',
    )
    expected = Config(width=4, rate=1.0, kind='b', deep=True, dataset='idx:DIR')
    assert config == expected and type(config.rate) is float
    assert (run.workdir, run.mode, run.checkpoint) == ('/nowhere', 'train', 'best')
    assert run.command == (
        'python -m experiments.toy --workdir=/nowhere --width=4 --rate 1 --kind=b '
        '--deep --dataset=idx:DIR --mode=train --checkpoint=best'
    )
    assert _parse('--nodeep')[1] == _parse()[1] == Config()


def test_later_wins(tmp_path):
    """Catch flags that a preset or a file overrides, and defaults passed as flags."""
    assert _parse('--preset=wide')[1] == Config(width=8, kind='b')
    assert _parse('--preset=wide', '--width=3')[1] == Config(width=3, kind='b')
    path = tmp_path / 'config.json'
    path.write_text(settings.to_json(Config(width=5, deep=True)))
    config = _parse(f'--config={path}', '--nodeep', '--kind=b')[1]
    assert config == Config(width=5, kind='b')
    # Evaluation takes the run's own settings, and flags on top of them.
    for mode in ('eval', 'sample'):
        run, config = _parse(f'--mode={mode}', '--num_samples=9', workdir=tmp_path)
        assert config == Config(width=5, deep=True, num_samples=9)


def test_json_round_trip(tmp_path):
    """Catch a setting that JSON drops or rounds."""
    config = Config(rate=0.1 + 0.2, deep=True, seed=123456789, dataset='idx:a "b"')
    path = tmp_path / 'config.json'
    path.write_text(settings.to_json(config))
    assert settings.load(str(path), Config) == config
    assert set(json.loads(path.read_text())) == {
        f.name for f in dataclasses.fields(Config)
    }


@pytest.mark.parametrize('argv, sentence', [
    (['--widht=4'], "Unknown command line flag 'widht'"),
    (['--batchsize=4'], "'batchsize': did you mean --batch_size?"),
    (['--lr=4'], "'lr': did you mean --learning_rate?"),
    (['--steps=4'], "'steps': did you mean --num_steps?"),
    (['--epochs=4'], "'epochs': --num_steps counts steps, and an epoch is as many"),
    (['--qqq=4'], "'qqq'. See --help."),
    (['--preset=wied'], 'unknown; there are: wide: did you mean wide?'),
    (['--schedule=cosin'], 'constant, cosine, linear, stages: did you mean cosine?'),
    (['--width=1.5e0'], '1.5e0 is not a whole number'),
    (['--width=inf'], 'inf is not a whole number'),
    (['--width=1e3'], '--width must be at most 9, got 1000'),
    (['--data_dir=/tmp/\udcff'], "'--data_dir=/tmp/\\udcff' is not UTF-8"),
    (['--nohelp=3'], '--nohelp=3 does not take an argument'),
    (['--flagfile=\0'], 'embedded null byte'),
    (['--mode=\x1beval\n'], 'flag --mode=\\x1beval'),
    (['--width=' + '1' * 9999], 'flag --width=111'),
    (['width=4'], "'width=4' is not a flag"),
    (['--width=four'], "flag --width=four"),
    (['--width=4.5'], "flag --width=4.5"),
    (['--width=0'], '--width must be at least 1, got 0'),
    (['--width=10'], '--width must be at most 9, got 10'),
    (['--rate=nan'], '--rate must be a finite number, got nan'),
    (['--rate=inf'], '--rate must be a finite number, got inf'),
    (['--learning_rate=nan'], '--learning_rate must be a finite number'),
    (['--kind=c'], '--kind=c is not one of a, b'),
    (['--background=red'], '--background=red is not a colour: give white, black'),
    (['--mode=tain'], 'flag --mode=tain'),
    (['--preset=wild'], '--preset=wild is unknown; there are: wide'),
    (['--preset=wide', '--config=FILE'], '--preset and --config exclude each other'),
    (['--config=/nowhere/config.json'], 'There is no file /nowhere/config.json'),
    (['--mode=eval'], '/nowhere holds no run (no config.json): train one there first'),
])
def test_mistake_gets_a_sentence(argv, sentence):
    """Catch a mistake that is not noticed, or that is reported by a traceback."""
    with pytest.raises(UserError) as caught:
        _parse(*argv)
    assert sentence in str(caught.value)
    assert str(caught.value)[-1] in '.?' and str(caught.value).isprintable()
    assert len(str(caught.value)) < 1100


def test_a_directory_whose_name_is_not_text(monkeypatch):
    """Catch a page that cannot be written, at the end of a run."""
    monkeypatch.setattr(os, 'getcwd', lambda: '/tmp/caf\udce9')
    with pytest.raises(UserError, match='is not UTF-8'):
        _parse(workdir='run')


def test_home_directory(tmp_path, monkeypatch):
    """Catch ~ taken for a name, which a shell leaves alone after --workdir=."""
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'mine.json').write_text(settings.to_json(Config(width=5)))
    run, config = _parse('--config=~/mine.json', workdir='~/run')
    assert run.workdir == str(tmp_path / 'run') and config == Config(width=5)


def test_config_that_is_a_pipe(tmp_path):
    """Catch a program that waits for ever."""
    os.mkfifo(tmp_path / 'config.json')
    with pytest.raises(UserError, match='config.json is a pipe or a device, not a'):
        _parse(f'--config={tmp_path}/config.json')


def test_directory_is_required():
    """Catch a run that writes into the current directory."""
    with pytest.raises(UserError, match='--workdir=DIR is missing'):
        _parse(workdir='')


@pytest.mark.parametrize('content, sentence', [
    ('{"width": 4', 'cannot be read as a config'),
    ('[]', 'cannot be read as a config'),
    ('{"widht": 4}', 'has settings unknown here: .widht.'),
    ('{"width": "4"}', "--width must be of type int, got '4'"),
    ('{"width": true}', '--width must be of type int, got True'),
    ('{"width": 99}', '--width must be at most 9'),
    ('{"rate": NaN}', '--rate must be a finite number'),
    ('{"deep": 1}', '--deep must be of type bool'),
    ('{"width": 4.5}', '--width must be of type int, got 4.5'),
    ('{"width": Infinity}', '--width must be of type int, got inf'),
    ('{"width": 1e400}', '--width must be of type int, got inf'),
    ('{"' + '9' * 9999 + '": 1}', 'has settings unknown here: .999'),
    ('{"width": null}', '--width must be of type int, got None'),
    ('{"width": [4]}', '--width must be of type int'),
    ('{"dataset": "\\ud800"}', 'is not UTF-8'),
    ('{"width": ' + '[' * 9999 + ']' * 9999 + '}', 'cannot be read as a config'),
    ('{"width": ' + '9' * 5000 + '}', 'cannot be read as a config'),
])
def test_damaged_config_gets_a_sentence(tmp_path, content, sentence):
    """Catch a file that is half-written, edited by hand, or another experiment's."""
    path = tmp_path / 'config.json'
    path.write_text(content)
    with pytest.raises(UserError, match=sentence):
        _parse(f'--config={path}')


def test_whole_numbers_may_have_an_exponent(tmp_path):
    """Catch 1e3 steps that are refused, or that become a float."""
    config = _parse('--num_steps=1e3', '--batch_size=1_000')[1]
    assert config == Config(num_steps=1000, batch_size=1000)
    path = tmp_path / 'config.json'
    path.write_text('{"num_steps": 1000.0, "seed": 2e3}')
    config = settings.load(str(path), Config)
    assert (config.num_steps, config.seed) == (1000, 2000)
    assert type(config.num_steps) is type(config.seed) is int


@pytest.mark.parametrize('width', range(20, 201, 9))
def test_help_fits_every_screen(width, monkeypatch, capsys):
    """Catch help that a narrow terminal cannot show, and words that are cut."""
    texts = []
    for columns in (width, 110):
        monkeypatch.setenv('COLUMNS', str(columns))
        with pytest.raises(SystemExit):
            vae.main(['--help'])
        texts.append(capsys.readouterr().out)
    assert texts[0].split() == texts[1].split()
    for line in texts[0].splitlines():
        # A word that is wider than the screen, a flag, a command or a heading.
        alone = len(line.split()) == 1 or '--' in line or line.startswith('python -m')
        assert len(line) <= width or alone, line


def test_a_preset_cannot_change_a_run(tmp_path):
    """Catch an evaluation with other settings than the run's."""
    path = tmp_path / 'config.json'
    path.write_text(settings.to_json(PRESETS['wide']))
    flags = ['--mode=eval', '--preset=wide']
    assert _parse(*flags, workdir=tmp_path)[1] == PRESETS['wide']
    path.write_text(settings.to_json(Config()))
    with pytest.raises(UserError, match='--preset cannot change the run'):
        _parse(*flags, workdir=tmp_path)


def test_changed_names_what_must_not_change():
    """Catch a run that goes on with another seed, or stops for other logging."""
    old = Config()
    assert settings.changed(old, Config(log_every=1, num_samples=2), 'train') == []
    assert settings.changed(old, Config(seed=1, width=4), 'train') == [
        '--seed was 0 and is now 1', '--width was 3 and is now 4'
    ]
    constant, longer = Config(schedule='constant'), dict(num_steps=9)
    assert settings.changed(
        constant, Config(schedule='constant', **longer), 'train'
    ) == []
    assert settings.changed(old, Config(**longer), 'train') == [
        '--num_steps was 7 and is now 9, on which every step depends '
        'because of --schedule=cosine'
    ]
    assert settings.changed(
        constant, Config(schedule='constant', num_steps=5), 'train'
    ) == ['--num_steps was 7 and is now 5']
    # The evaluations of one run are of one kind; a later one may be of another.
    other = Config(judge='other')
    assert settings.changed(old, other, 'train') == [
        "--judge was '' and is now 'other'"
    ]
    assert settings.changed(old, other, 'eval') == []


@pytest.mark.parametrize('name, others, field, value', [
    ('autoencoder', {'network': 'linear'}, 'hidden', (9,)),
    ('autoencoder', {'probe': False}, 'probe_steps', 9),
    ('vae', {'latent_dims': (3,)}, 'hidden2', (9,)),
    ('vae', {'optimizer': 'sgd'}, 'adam_eps', 0.1),
    ('vae', {'optimizer': 'muon'}, 'adam_eps', 0.1),
    ('nice', {'dequantization': 'uniform'}, 'noise_features', 9),
    ('gsn', {'layers': (9,)}, 'hidden_noise', 3.0),
    ('adversarial_autoencoder', {'num_clusters': 0}, 'category_noise', 0.1),
    ('adversarial_autoencoder', {'optimizer': 'sgd'}, 'adversarial_b1', 0.1),
    ('pixel_cnn_pp', {'task': 'colorization'}, 'missing', 'top'),
    ('pixel_rnn', {'cell': 'diagonal_bilstm'}, 'kernel', 5),
    ('rbm', {'optimizer': 'sgd'}, 'adam_b1', 0.1),
    ('wgan', {'lipschitz': 'spectral'}, 'penalty', 1.0),
])
def test_a_flag_without_effect_is_refused(name, others, field, value):
    """Catch a setting that is taken, recorded and ignored."""
    config_class = importlib.import_module(f'experiments.{name}').main.config_class
    config = config_class(**others)
    argv = [f'--{k}={settings.text(v)}' for k, v in {**others, field: value}.items()]
    with pytest.raises(UserError, match=f'--{field} .*: leave it out.'):
        flags.parse(
            ['--workdir=DIR', *argv], config_class, presets={}, program='', about=''
        )
    # An older version took it, and its runs go on without it.
    old = dataclasses.replace(config, **{field: value})
    assert settings.changed(old, config, 'train') == []


def test_help_lists_common_flags_first_with_defaults(capsys):
    """Catch a flag without help, and help that a newcomer has to search."""
    with pytest.raises(SystemExit) as caught:
        _parse('--help', workdir='')
    assert caught.value.code == 0
    text = capsys.readouterr().out
    places = [text.index(f'\n  --{name}=') for name in ('workdir', 'dataset', 'width')]
    assert places == sorted(places)
    assert text.index('About toys.') < places[0]
    for line in ('--num_steps=7', '--width=3', '--rate=0.5', '--kind=a', '--deep=False',
                 '[a | b]', '--preset=wide', 'width=8 kind=b'):
        assert line in text
    for setting in dataclasses.fields(Config):
        assert f'--{setting.name}={settings.text(setting.default)}' in text


def test_sizes(tmp_path):
    """Catch sizes that are read as something else than what was written."""
    config = _parse('--widths=200,100')[1]
    assert config.widths == (200, 100) and config == Config(widths='200,100')
    path = tmp_path / 'config.json'
    path.write_text(settings.to_json(config))
    assert '"widths": "200,100"' in path.read_text()
    assert settings.load(str(path), Config) == config
    assert settings.changed(Config(), config, 'train') == [
        "--widths was '8' and is now '200,100'"
    ]


@pytest.mark.parametrize(
    'text', ['', '200,', '0', '-3', '2.5', 'a', '3 4', (), (0,), 8]
)
def test_what_is_not_sizes(text):
    """Catch a layer without units, and a traceback."""
    with pytest.raises(UserError, match='--widths=.* must be sizes such as 200,200'):
        Config(widths=text)


@pytest.mark.parametrize('flags, sentence', [
    (['--batch_sise=8'], "Unknown command line flag 'batch_sise'"),
    (['--batch_size=12'], 'cannot be split evenly over 8 devices'),
    (['--dataset=idx:/nowhere'], '/nowhere'),
    (['--dataset=synthetic:nothing'], 'nothing'),
    (['--preset=iwae_9l'], 'there are: iwae_1l, iwae_2l, manifold'),
    (['--mode=sample'], 'holds no run'),
    (['--objective=iwae', '--beta=2'], '--objective=iwae does not have'),
    (['--latent_dims=3,2,1'], 'at most two layers'),
    (['--likelihood=bernoulli'], 'needs pixels of 0 and 1'),
])
def test_mistake_ends_with_status_2_and_writes_nothing(
    tmp_path, capfd, flags, sentence
):
    """Catch a traceback, another exit status, and a directory for no run."""
    workdir = tmp_path / 'run'
    assert vae.main([f'--workdir={workdir}', *flags]) == 2
    out, error = capfd.readouterr()
    assert error.startswith('vae: ') and sentence in error and error.count('\n') == 1
    assert out == '' and not workdir.exists()


def test_directory_that_cannot_be_written(tmp_path, capfd):
    """Catch a traceback where the work directory is a file."""
    path = tmp_path / 'file'
    path.write_text('kept')
    assert vae.main([f'--workdir={path}']) == 2
    error = capfd.readouterr().err
    assert str(path) in error and error.count('\n') == 1
    assert path.read_text() == 'kept'
