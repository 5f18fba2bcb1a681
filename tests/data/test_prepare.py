"""Sets made from their original files: downloaded from a server, or found."""

import errno
import fcntl
import functools
import gzip
import hashlib
import http.server
import io
import os
import pathlib
import sys
import tarfile
import threading
import time
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from gm_jax import cli
from gm_jax.data import originals, prepare, prepared, tfds_writer
from gm_jax.data.originals import Original
from gm_jax.errors import UserError

NUM = {'train': 12, 'test': 5}


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; closes the connection after `cuts` bytes of the next answers."""

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files, self.cuts, self.ranges, self.asked = {}, [], True, []
        self.seconds = 0.0
        self.url = f'http://127.0.0.1:{self.server_port}'


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as storage servers do, with and without ranges."""

    def do_GET(self):
        """Send a file, what is left of it, or a part of that."""
        name, wanted = self.path[1:], self.headers['Range']
        self.server.asked.append((name, wanted))
        time.sleep(self.server.seconds)
        body = self.server.files.get(name)
        if body is None:
            self.send_error(404)
            return
        start = int(wanted[6:-1]) if wanted and self.server.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(len(body) - start))
        # As some do for files in .gz, which must not be unpacked on the way.
        self.send_header('Content-Encoding', 'gzip')
        self.end_headers()
        end = start + self.server.cuts.pop(0) if self.server.cuts else len(body)
        self.wfile.write(body[start:end])

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture
def server():
    """Start a server on this machine."""
    with Server() as it:
        thread = threading.Thread(target=it.serve_forever, args=(0.01,))
        thread.start()
        yield it
        it.shutdown()
        thread.join()


@pytest.fixture
def digits():
    """Make the images and labels of a small MNIST, by split."""
    rng = np.random.default_rng(0)
    return {
        split: {
            'image': rng.integers(0, 256, (num, 28, 28, 1), dtype=np.uint8),
            'label': rng.integers(0, 10, num),
        }
        for split, num in NUM.items()
    }


def idx_files(digits, name='{prefix}-{kind}-idx{rank}-ubyte.gz'):
    """Return the contents of the files of MNIST, by name."""
    files = {}
    for split, prefix in (('train', 'train'), ('test', 't10k')):
        for kind, rank, array in (
            ('images', 3, digits[split]['image'][..., 0]),
            ('labels', 1, digits[split]['label'].astype(np.uint8)),
        ):
            head = bytes((0, 0, 8, rank)) + np.array(array.shape, '>u4').tobytes()
            name_here = name.format(prefix=prefix, split=split, kind=kind, rank=rank)
            files[name_here] = gzip.compress(head + array.tobytes())
    return files


def sources(files, url='http://nowhere.invalid', unpack=False):
    """Return the table of files whose contents are given."""
    return [
        Original(
            name, f'{url}/{name}', len(body), hashlib.sha256(body).hexdigest(),
            hashlib.sha256(gzip.decompress(body)).hexdigest() if unpack else '',
        )
        for name, body in files.items()
    ]


def save(directory, files):
    """Write files; return their directory."""
    directory.mkdir(exist_ok=True)
    for name, body in files.items():
        (directory / name).write_bytes(body)
    return str(directory)


def order(split, num):
    """Return TFDS's order: by the MD5 of the split and the place."""
    return sorted(
        range(num), key=lambda i: hashlib.md5(f'{split}{i}'.encode()).hexdigest()
    )


def assert_holds(spec, root, arrays, splits=('train', 'test')):
    """Assert that the set in `root` is these arrays, in TFDS's order."""
    data = prepared.read(spec, str(root), 0)
    assert tuple(data.splits) == splits
    for split, found in data.splits.items():
        places = order(split, len(arrays[split]['image']))
        batch = found.fetch(np.arange(len(found)))
        np.testing.assert_array_equal(batch['image'], arrays[split]['image'][places])
        labels = arrays[split].get('label', np.full(len(places), -1))
        np.testing.assert_array_equal(batch['label'], labels[places])
    return data


@pytest.fixture
def mnist(server, digits, tmp_path):
    """Serve a small MNIST; return a function that prepares it."""
    server.files = idx_files(digits)
    return functools.partial(
        prepare.prepare, 'mnist', str(tmp_path / 'data'),
        sources=sources(server.files, server.url),
    )


def test_downloads_and_writes_what_tfds_would(mnist, server, digits, tmp_path):
    """Catch another order, a missing split, and a set that is prepared twice."""
    path, new = mnist()
    assert (path, new) == (str(tmp_path / 'data/mnist/3.0.1'), True)
    assert_holds('mnist', tmp_path / 'data', digits)
    info = tfds.builder('mnist', data_dir=tmp_path / 'data').info
    assert info.splits['train'].num_examples == 12
    assert info.description.startswith('The MNIST database')
    assert sorted(os.listdir(tmp_path / 'data')) == ['downloads', 'mnist']
    assert set(server.files) == set(os.listdir(tmp_path / 'data/downloads/mnist'))
    num_asked = len(server.asked)
    assert mnist() == (path, False)
    assert len(server.asked) == num_asked == 4


def test_goes_on_where_it_stopped(mnist, server, digits, tmp_path):
    """Catch what is downloaded twice, lost or doubled after cut connections."""
    size = len(server.files['train-images-idx3-ubyte.gz'])
    server.cuts = [1000, 2000]
    mnist()
    assert server.asked[:3] == [
        ('train-images-idx3-ubyte.gz', start)
        for start in (None, 'bytes=1000-', 'bytes=3000-')
    ]
    assert size > 3000 and len(server.asked) == 6
    assert_holds('mnist', tmp_path / 'data', digits)


def test_interrupted_and_called_again(mnist, server, digits, tmp_path):
    """Catch Ctrl-C that throws away what has come, and half a set left by it."""
    def stop(what, done, total):
        raise KeyboardInterrupt

    server.cuts = [1000]
    with pytest.raises(KeyboardInterrupt):
        mnist(show=stop)
    assert os.listdir(tmp_path / 'data') == ['downloads']
    mnist()
    assert server.asked[1] == ('train-images-idx3-ubyte.gz', 'bytes=1000-')
    assert_holds('mnist', tmp_path / 'data', digits)


def test_server_without_ranges(mnist, server, digits, tmp_path):
    """Catch a whole file that is appended to its beginning, and an endless loop."""
    server.ranges, server.cuts = False, [1000, 900]
    with pytest.raises(UserError, match=r'train-images.* was cut \(900 of'):
        mnist()
    assert len(server.asked) == 2
    mnist()
    assert_holds('mnist', tmp_path / 'data', digits)


@pytest.mark.parametrize('there', [False, True])
def test_other_content(mnist, server, digits, tmp_path, there):
    """Catch an unverified file, and one that stands in the way of the right one."""
    name = 't10k-images-idx3-ubyte.gz'
    right, server.files[name] = server.files[name], bytes(len(server.files[name]))
    part = tmp_path / f'data/downloads/mnist/{name}.part'
    if there:
        part.parent.mkdir(parents=True)
        part.write_bytes(bytes(2 * len(right)))
    with pytest.raises(UserError, match=f'{server.url}/{name} is not the file.*--from'):
        mnist()
    assert not part.exists() and not (tmp_path / 'data/mnist').exists()
    server.files[name] = right
    mnist()
    assert_holds('mnist', tmp_path / 'data', digits)


def test_servers_that_do_not_answer(mnist, server, monkeypatch):
    """Catch a traceback, and a sentence without the URL or another way."""
    monkeypatch.setattr(originals, '_TIMEOUT', (1, 0.05))
    del server.files['train-labels-idx1-ubyte.gz']
    with pytest.raises(UserError) as gone:
        mnist()
    server.seconds = 0.2
    with pytest.raises(UserError) as slow:
        mnist()
    nobody = [file._replace(url='http://127.0.0.1:1/x') for file in mnist.keywords[
        'sources']]
    with pytest.raises(UserError) as refused:
        mnist(sources=nobody[1:])
    for error, reason, url in (
        (gone, 'the server answers 404 Not Found', f'{server.url}/train-labels-idx1'),
        (slow, 'the server does not answer in time', f'{server.url}/train-labels-idx1'),
        (refused, 'there is no connection to the server', 'http://127.0.0.1:1/x'),
    ):
        message = str(error.value)
        assert reason in message and '--from=DIR' in message
        assert message.startswith(url)


def test_files_that_lie_somewhere(digits, tmp_path):
    """Catch files that are not taken as they are, unpacked or packed anew."""
    files = idx_files(digits)
    names = list(files)
    table = sources(files, unpack=True)
    lying = dict(files)
    lying[names[1]] = gzip.compress(gzip.decompress(files[names[1]]), 1, mtime=7)
    lying[names[2][:-3]] = gzip.decompress(lying.pop(names[2]))
    where = save(tmp_path / 'there', lying)
    root = tmp_path / 'data'
    prepare.prepare('mnist', str(root), from_dir=where, sources=table)
    assert_holds('mnist', root, digits)
    assert os.listdir(root) == ['mnist']


def test_files_that_cannot_be_taken(digits, tmp_path):
    """Catch unverified content, and a sentence that does not say which file."""
    files = idx_files(digits)
    names, table = list(files), sources(files)
    where = save(tmp_path / 'there', files)

    def refused(table=table, from_dir=where):
        root = tmp_path / 'data'
        with pytest.raises(UserError) as error:
            prepare.prepare('mnist', str(root), from_dir=from_dir, sources=table)
        assert not root.exists() or os.listdir(root) == []
        return str(error.value)

    packed = tmp_path / 'there' / names[0]
    packed.write_bytes(files[names[0]][:-9])
    assert f'{names[0]} is not the file that TFDS lists' in refused()
    assert f'{names[0]} cannot be read' in refused(sources(files, unpack=True))
    packed.write_bytes(files[names[1]])
    assert f'{names[0]} is not the file' in refused(sources(files, unpack=True))
    packed.unlink()
    save(tmp_path / 'there', {names[0][:-3]: gzip.decompress(files[names[0]])})
    assert f'only the SHA-256 of {names[0]} is known' in refused()
    (tmp_path / 'there' / names[0][:-3]).unlink()
    (tmp_path / 'there' / names[1]).unlink()
    message = refused()
    assert f'{where} has no {names[0]}, {names[1]}: get {table[0].url}' in message
    assert 'There is no directory nowhere: check --from' in refused(from_dir='nowhere')


def test_binarized_mnist(tmp_path):
    """Catch bits read as characters, and the splits of this set mixed up."""
    splits = {'train': 'train', 'validation': 'valid', 'test': 'test'}
    bits = {
        split: {'image': np.random.default_rng(i).integers(0, 2, (i + 3, 28, 28, 1))}
        for i, split in enumerate(splits)
    }
    files = {
        f'binarized_mnist_{part}.amat': b''.join(
            ' '.join(map(str, row.ravel())).encode() + b'\n'
            for row in bits[split]['image']
        )
        for split, part in splits.items()
    }
    prepare.prepare(
        'binarized_mnist', str(tmp_path), from_dir=save(tmp_path / 'from', files),
        sources=sources(files),
    )
    data = assert_holds('binarized_mnist', tmp_path, bits, tuple(splits))
    assert data.num_values == 2


def test_emnist(digits, tmp_path):
    """Catch a config that is lost, and a zip file that has to be unpacked."""
    name = 'gzip/emnist-balanced-{split}-{kind}-idx{rank}-ubyte.gz'
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        for member, body in idx_files(digits, name).items():
            archive.writestr(member, body)
    files = {'gzip.zip': buffer.getvalue()}
    path, _ = prepare.prepare(
        'emnist/balanced', str(tmp_path), from_dir=save(tmp_path / 'from', files),
        sources=sources(files),
    )
    assert path == str(tmp_path / 'emnist/balanced/3.1.0')
    assert assert_holds('emnist/balanced', tmp_path, digits).num_classes == 47


@pytest.mark.parametrize('name, prefix, parts, names', [
    ('cifar10', 'cifar-10-batches-bin',
     {'train': [f'data_batch_{i}.bin' for i in (1, 2, 3, 4, 5)],
      'test': ['test_batch.bin']},
     {'label': ('batches.meta.txt', 10)}),
    ('cifar100', 'cifar-100-binary',
     {'train': ['train.bin'], 'test': ['test.bin']},
     {'coarse_label': ('coarse_label_names.txt', 20),
      'label': ('fine_label_names.txt', 100)}),
])
def test_cifar(tmp_path, name, prefix, parts, names):
    """Catch planes taken for pixels, batches out of order, and labels exchanged."""
    rng = np.random.default_rng(0)
    arrays, members = {}, {}
    for split, files in parts.items():
        num = 2 * len(files)
        columns = {'image': rng.integers(0, 256, (num, 32, 32, 3), dtype=np.uint8)}
        for label, (_, classes) in names.items():
            columns[label] = rng.integers(0, classes, num).astype(np.uint8)
        records = np.concatenate(
            [*(columns[label][:, None] for label in names),
             columns['image'].transpose(0, 3, 1, 2).reshape(num, -1)], axis=1,
        )
        arrays[split] = columns
        # Not in their order in the tar file, as in the real one.
        for i in reversed(range(len(files))):
            members[files[i]] = records[2 * i:2 * i + 2].tobytes()
    for file, classes in names.values():
        members[file] = '\n'.join([*(f'class_{i}' for i in range(classes)), ''])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as archive:
        for member, body in members.items():
            body = body if isinstance(body, bytes) else body.encode()
            entry = tarfile.TarInfo(f'{prefix}/{member}')
            entry.size = len(body)
            archive.addfile(entry, io.BytesIO(body))
    file = f'{prefix.replace("batches-bin", "binary")}.tar.gz'
    files = {file: buffer.getvalue()}
    prepare.prepare(
        name, str(tmp_path), from_dir=save(tmp_path / 'from', files),
        sources=sources(files),
    )
    data = assert_holds(name, tmp_path, arrays)
    assert data.num_classes == names['label'][1]
    builder = tfds.builder(name, data_dir=tmp_path)
    example = builder.as_data_source('train')[0]
    first = order('train', len(arrays['train']['image']))[0]
    assert example['id'] == f'train_{first:05d}'.encode()
    for label in names:
        assert example[label] == arrays['train'][label][first]
        assert builder.info.features[label].int2str(7) == 'class_7'


@pytest.mark.parametrize('error, sentence', [
    (OSError(errno.ENOSPC, 'full'), 'There is no space left on the disk of'),
    (RuntimeError('write() failed: No space left on device'), 'There is no space left'),
    (PermissionError(errno.EACCES, 'Permission denied', 'x'), 'x cannot be written'),
])
def test_disks_that_refuse(mnist, digits, tmp_path, monkeypatch, error, sentence):
    """Catch a traceback, and half a set."""
    def fail(*args):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(tfds_writer, 'write_split', fail)
        with pytest.raises(UserError, match=sentence):
            mnist()
    assert os.listdir(tmp_path / 'data') == ['downloads']
    mnist()
    assert_holds('mnist', tmp_path / 'data', digits)


def test_data_dir_that_is_a_file(tmp_path):
    """Catch a traceback for a directory that cannot be made."""
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='file.* cannot be written or read: Not a dir'):
        prepare.prepare('mnist', str(tmp_path / 'file'))


def test_what_a_killed_process_left(mnist, digits, tmp_path):
    """Catch half a set that is taken for one, or that stands in the way."""
    left = tmp_path / 'data/mnist.incomplete/mnist/3.0.1/dataset_info.json'
    left.parent.mkdir(parents=True)
    left.write_text('{')
    mnist()
    assert_holds('mnist', tmp_path / 'data', digits)
    assert not left.exists()


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """Catch a set that cannot be prepared, where only the lock is missing."""
    def refuse(*args):
        raise OSError(errno.ENOSYS, 'Function not implemented')

    monkeypatch.setattr(prepare.fcntl, 'flock', refuse)
    with prepare._alone(str(tmp_path / 'set')) as directory:
        assert pathlib.Path(directory).is_dir()


def test_two_at_once(mnist, tmp_path):
    """Catch two processes that write the same files."""
    work = tmp_path / 'data/mnist.incomplete'
    work.mkdir(parents=True)
    lock = os.open(work, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(UserError, match='Another process is preparing this set'):
        mnist()
    os.close(lock)
    mnist()


def test_damaged_set_that_is_there(mnist, tmp_path):
    """Catch a user who is sent round in circles: prepare it again, it is there."""
    path, _ = mnist()
    next(pathlib.Path(path).glob('*train*')).unlink()
    with pytest.raises(UserError, match='there but cannot be used: remove it.*missing'):
        mnist()
    (pathlib.Path(path) / 'dataset_info.json').unlink()
    with pytest.raises(UserError, match='remove it.*it has no dataset_info.json'):
        mnist()


@pytest.mark.parametrize('name', originals.SETS)
def test_tfds_lists_every_file(name):
    """Catch a file that prepare reads but TFDS lists no longer, or with another URL."""
    package = pathlib.Path(tfds.__file__).parent
    family = name.partition('/')[0]
    (path,) = [
        path for path in (package / f'url_checksums/{family}.txt',
                          package / f'datasets/{family}/checksums.tsv')
        if path.exists()
    ]
    lines = [line.split('\t') for line in path.read_text().splitlines()]
    files = prepare.original_files(name)
    assert sorted(map(list, (
        (file.url, str(file.size), file.sha256, file.name) for file in files
    ))) == sorted(lines)
    idx = {f'{part}-{kind}-ubyte.gz' for part in ('train', 't10k')
           for kind in ('images-idx3', 'labels-idx1')}
    assert {file.name for file in files} == {
        'binarized_mnist': {
            f'binarized_mnist_{part}.amat' for part in ('train', 'valid', 'test')
        },
        'cifar10': {'cifar-10-binary.tar.gz'},
        'cifar100': {'cifar-100-binary.tar.gz'},
        'emnist/balanced': {'gzip.zip'},
    }.get(name, idx)
    known = sum(bool(file.unpacked) for file in files)
    assert known == (4 if name in ('mnist', 'fashion_mnist') else 0)


def test_command(monkeypatch, tmp_path, capsys):
    """Catch a list without sizes, and statuses that a script cannot tell apart."""
    for argv in (['prepare'], ['prepare', '--help']):
        assert cli.main(argv) == 0
        out = capsys.readouterr().out
        assert '  mnist              12 MB  ' in out and '--from=DIR' in out
        assert all(f'  {name} ' in out for name in originals.SETS)
    assert 'gm-jax prepare lists' in cli.listing('experiments', 'gm-jax ')
    assert 'experiments prepare lists' in cli.listing('experiments', 'experiments.')
    assert cli.main(['prepare', 'mnist', 'mnits']) == 2
    error = capsys.readouterr().err
    assert error == "gm-jax prepare: 'mnits' is none of the sets: did you mean mnist?\n"
    assert cli.main(['prepare', 'emnist']) == 2
    assert 'did you mean emnist/balanced?' in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.main(['prepare', 'mnist', '--datadir=x'])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count('\n') == 1

    def act(name, data_dir, *, from_dir, show):
        assert (name, data_dir, from_dir) == ('mnist', 'x', 'y')
        show('a file', 1, 2)
        raise result

    monkeypatch.setattr(prepare, 'prepare', act)
    for result, status in ((UserError('No.'), 2), (KeyboardInterrupt(), 130)):
        monkeypatch.setattr(sys.stdout, 'isatty', lambda: status == 130)
        assert cli.main(['prepare', 'mnist', '--data_dir=x', '--from=y']) == status
        out, error = capsys.readouterr()
        assert error.startswith('gm-jax prepare: ')
        assert ('a file' in out) == (status == 130)  # a bar
