"""Where shards are kept: a local path, or the URI of any pyarrow filesystem with its options after `?`."""

import os
import re
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
from pyarrow import fs as pafs

_PASSWORD = re.compile(r"[^/?@]*:(?!\d+(/|$))[^?]*@")  # with a "/" in it too: a secret key has one, often unescaped
_SECRET_OPTION = re.compile(r"[?&]([^=&]*(?:secret|password|token|access_key)[^=&]*|sig)=", re.IGNORECASE)
_S3_FLAGS = ("allow_delayed_open", "allow_bucket_creation", "allow_bucket_deletion")
_S3_TEXTS = ("region", "scheme", "endpoint_override", "tls_ca_file_path")
_S3_ATTEMPTS = 3  # a store that is not there takes seconds with it; with the client of `from_uri`, minutes


def join(root: str, name: str) -> str:
    """The path or URI of `name` under `root`: a local path, or a pyarrow filesystem URI with its options after `?`.

    ValueError when `name` is not a plain file name.
    """
    if not name or name != os.path.basename(name) or name.startswith("."):
        raise ValueError(f"shard name: found {name!r}, expected a plain file name that does not start with a dot")
    if "://" not in root:
        return os.path.join(os.path.abspath(root), name)
    base, mark, options = root.partition("?")
    return f"{base.rstrip('/')}/{name}{mark}{options}"


def refuse_credentials(uri: str) -> None:
    """ValueError for a URI with a password, key or token in it, which the message does not repeat.

    A shard's URI is in the manifest, its root in config.toml and in the exported model's card.
    """
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return
    has_user = scheme == "s3" and "@" in re.split("[/?]", rest)[0]
    if has_user or _PASSWORD.match(rest) or _SECRET_OPTION.search(rest):
        raise ValueError(
            f"{scheme}://...: found credentials in the URI, expected none, since a run's files repeat it: put them "
            "into the environment of every node (for s3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
        )


def locate(uri: str) -> tuple[pafs.FileSystem | None, str]:
    """(filesystem, path inside it); None stands for the local disk, which has stronger guarantees of its own.

    ValueError names the URI when pyarrow cannot read it or when it holds credentials; OSError when what it needs is
    not here.
    """
    if "://" not in uri:
        return None, uri
    refuse_credentials(uri)
    try:
        found, path = pafs.FileSystem.from_uri(uri)
    except (ValueError, ImportError, pa.ArrowNotImplementedError) as error:  # ImportError: of a package behind fsspec+
        raise ValueError(f"{uri}: found {error}, expected a path or a URI that pyarrow can open") from error
    except OSError as error:
        first = str(error).splitlines()[0]  # without Java's libraries, HDFS lists every place where it looked
        raise OSError(f"cannot open {uri!r}: {first}") from error
    if isinstance(found, pafs.LocalFileSystem):
        return None, path
    return (_impatient(found, uri) if found.type_name == "s3" else found), path


def _impatient(found: pafs.FileSystem, uri: str) -> pafs.FileSystem:
    """The same S3 client with few attempts, which a URI cannot ask for; as it is where an option has no keyword."""
    options = dict(parse_qsl(urlsplit(uri).query))
    if not options.keys() <= {*_S3_FLAGS, *_S3_TEXTS}:
        return found
    flags = {name: options[name].lower() in ("true", "1") for name in _S3_FLAGS if name in options}
    retry = pafs.AwsStandardS3RetryStrategy(max_attempts=_S3_ATTEMPTS)
    return pafs.S3FileSystem(**(options | flags | {"region": found.region}), retry_strategy=retry)
