"""The original files of well-known image sets: downloaded, or found in a directory.

Which files a set is made from, their URLs and SHA-256 are those that TFDS ships. A
download that was cut goes on where it stopped, and no file is used unverified.
"""

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from gm_jax.data import readers
from gm_jax.errors import UserError

__all__ = ['download', 'find', 'listed', 'Original', 'SETS', 'Show']

# What `gm_jax.data.prepare` can prepare, as TFDS spells it, and what is in it.
SETS = {
    'mnist': 'digits, 60,000 + 10,000 of 28x28',
    'fashion_mnist': 'clothes, 60,000 + 10,000 of 28x28',
    'kmnist': 'Japanese letters, 60,000 + 10,000 of 28x28',
    'emnist/balanced': 'digits and letters, 112,800 + 18,800 of 28x28, 47 classes',
    'binarized_mnist': 'static bits, 50,000 + 10,000 + 10,000 of 28x28, no labels',
    'cifar10': 'objects in colour, 50,000 + 10,000 of 32x32',
    'cifar100': 'the same of 100 classes',
}

# SHA-256 of what is in the .gz files, which TFDS does not list, so that a file that
# lies unpacked or that somebody else has packed can be verified too.
_UNPACKED = {
    'mnist': {
        'train-images-idx3-ubyte.gz':
            'ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db',
        'train-labels-idx1-ubyte.gz':
            '65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5',
        't10k-images-idx3-ubyte.gz':
            '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7',
        't10k-labels-idx1-ubyte.gz':
            'ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2',
    },
    'fashion_mnist': {
        'train-images-idx3-ubyte.gz':
            'c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888',
        'train-labels-idx1-ubyte.gz':
            'bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9',
        't10k-images-idx3-ubyte.gz':
            '5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b',
        't10k-labels-idx1-ubyte.gz':
            '0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34',
    },
}

_CHUNK = 2**16  # bytes
_TIMEOUT = 10, 30  # seconds to connect and between two pieces of a file

# Called with what is being done, how much of it is done, and the whole.
Show = Callable[[str, int, int], None]


class Original(NamedTuple):
    """A file that a set is made from.

    Attributes:
        name: its name, without a directory.
        url: where it is.
        size: its size in bytes.
        sha256: the SHA-256 of the file, in hexadecimal.
        unpacked: that of its content without gzip; '' if it is not known.
    """

    name: str
    url: str
    size: int
    sha256: str
    unpacked: str = ''


def listed(name: str, url_infos: Mapping[str, Any]) -> list[Original]:
    """Return the files of a set.

    Args:
        name: the set, without its config.
        url_infos: the `url_infos` of its TFDS builder.
    """
    unpacked = _UNPACKED.get(name, {})
    return [
        Original(
            info.filename, url, int(info.size), info.checksum,
            unpacked.get(info.filename, ''),
        )
        for url, info in url_infos.items()
    ]


def download(
    files: Iterable[Original], directory: str, show: Show
) -> dict[str, str]:
    """Download the files that the directory does not hold yet.

    The piece of a file that has come lies beside it as FILE.part, and the next call
    goes on from there.

    Args:
        files: the files.
        directory: where to keep them.
        show: is told how many bytes of a file are there.

    Returns:
        The path of each file, by its name.

    Raises:
        UserError: a file cannot be reached or has another SHA-256.
        OSError: the directory cannot be written, or the disk is full.
    """
    import pooch

    os.makedirs(directory, exist_ok=True)
    pooch.get_logger().setLevel('WARNING')
    paths = {}
    for file in files:
        def append(url: str, target: str, _: Any, file: Original = file) -> None:
            os.remove(target)  # empty, it would outlive a process that is killed
            part = os.path.join(directory, f'{file.name}.part')
            _complete(file, part, show)
            os.replace(part, target)

        try:
            paths[file.name] = pooch.retrieve(
                file.url, f'sha256:{file.sha256}', file.name, directory,
                downloader=append,
            )
        except ValueError:
            raise UserError(
                f'{file.url} is not the file that TFDS lists: its SHA-256 is another, '
                f'and what was downloaded has been removed. {_ELSEWHERE}'
            ) from None
    return paths


_ELSEWHERE = (
    'Try the same command later, or get the file elsewhere and name its directory: '
    '--from=DIR.'
)


def _complete(file: Original, part: str, show: Show) -> None:
    """Download the rest of a file, in as many pieces as it takes to get further."""
    import requests
    import urllib3

    there = _size(part)
    while there < file.size:
        reason = 'the connection was cut'
        try:
            _append(file, part, show)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            reason = _reason(error) or reason
        before, there = there, _size(part)
        if there <= before:
            raise UserError(
                f'{file.url} cannot be downloaded: {reason} ({there:,} of '
                f'{file.size:,} bytes are there). {_ELSEWHERE}'
            )


def _append(file: Original, part: str, show: Show) -> None:
    """Ask once for what is missing of a file, and write what comes."""
    import requests

    there = _size(part)
    # What is compressed on the way has no position from which to go on.
    headers = {'Accept-Encoding': 'identity'}
    if there:
        headers['Range'] = f'bytes={there}-'
    with requests.get(
        file.url, headers=headers, stream=True, timeout=_TIMEOUT
    ) as response:
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            there = 0  # the whole file comes
        what = f'{file.name}, {file.size / 1e6:.1f} MB'
        with open(part, 'ab' if there else 'wb') as out:
            for chunk in response.raw.stream(_CHUNK, decode_content=False):
                out.write(chunk)
                there += len(chunk)
                show(what, there, file.size)


def _reason(error: Exception) -> str:
    """Return what went wrong, without the names of classes; '' for a cut connection."""
    import requests
    import urllib3

    if isinstance(error, requests.HTTPError) and error.response is not None:
        answer = error.response
        return f'the server answers {answer.status_code} {answer.reason}'
    if isinstance(error, requests.exceptions.SSLError):
        return 'the certificate of the server is not accepted'
    if isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError)):
        return 'the server does not answer in time'
    if isinstance(error, requests.ConnectionError):
        return 'there is no connection to the server'
    if isinstance(error, requests.RequestException):
        return str(error).rstrip('.')
    return ''


def find(files: Iterable[Original], directory: str) -> dict[str, str]:
    """Find the files in a directory, as they are or unpacked.

    Args:
        files: the files.
        directory: where they lie.

    Returns:
        The path of each file, by its name; a path that does not end in .gz is that of
        the unpacked file.

    Raises:
        UserError: a file is not there or is another one.
    """
    if not os.path.isdir(directory):
        raise UserError(f'There is no directory {directory}: check --from.')
    paths, missing = {}, []
    for file in files:
        path = os.path.join(directory, file.name)
        there = [p for p in (path, path.removesuffix('.gz')) if os.path.isfile(p)]
        if there:
            paths[file.name] = there[0]
        else:
            missing.append(file)
    if missing:
        raise UserError(
            f'{directory} has no {", ".join(file.name for file in missing)}: get '
            f'{" and ".join(file.url for file in missing)}, or leave --from out.'
        )
    for file in files:
        _verify(file, paths[file.name])
    return paths


def _verify(file: Original, path: str) -> None:
    """Raise unless the file, or what is in it, has the SHA-256 that it should have."""
    try:
        with open(path, 'rb') as raw:
            found = hashlib.file_digest(raw, 'sha256').hexdigest()
        if found == file.sha256:
            return
        if file.unpacked:
            with readers.open_file(path) as content:
                found = hashlib.file_digest(content, 'sha256').hexdigest()
            if found == file.unpacked:
                return
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'{path} cannot be read: {reason}. Get {file.url}.') from None
    if not file.unpacked and not path.endswith('.gz') and file.name.endswith('.gz'):
        raise UserError(
            f'{path} lies unpacked, and only the SHA-256 of {file.name} is known: get '
            f'{file.url}.'
        )
    raise UserError(
        f'{path} is not the file that TFDS lists: its SHA-256 is another. Get '
        f'{file.url}.'
    )


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0
