"""Where shards are kept: a local path, or the URI of any pyarrow filesystem with its options after `?`."""

import os
import re
from functools import partial
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from pyarrow import fs as pafs

from evidence.patience import within
from evidence.require import first_line

_PASSWORD = re.compile(r"[^/?@]*:(?!\d+(/|$))[^?]*@")  # with a "/" in it too: a secret key has one, often unescaped
_S3 = (
    "region", "scheme", "endpoint_override", "allow_bucket_creation", "allow_bucket_deletion", "allow_delayed_open",
    "tls_ca_file_path", "tls_ca_dir_path", "tls_verify_certificates",
)  # fmt: skip
_GCS = ("scheme", "endpoint_override", "retry_limit_seconds", "project_id")
_AZURE = (
    "blob_storage_authority", "dfs_storage_authority", "enable_tls", "credential_kind", "tenant_id", "client_id",
    "background_writes",
)  # fmt: skip
# The options of each scheme that pyarrow 26 knows and that hold no secret. Of other schemes none is taken.
OPTIONS = {"s3": _S3, "gs": _GCS, "gcs": _GCS, "abfs": _AZURE, "abfss": _AZURE, "hdfs": ("replication", "buffer_size")}
_PLAIN = re.compile(r"[\w.:/\[\]-]*")  # what an option may say: nothing in it is another option or a password
_S3_ATTEMPTS = 3  # a store that is not there takes seconds with it; with the client of `from_uri`, minutes
_GCS_RETRIES = "retry_limit_seconds=20"  # of each request; pyarrow's own limit is a quarter of an hour
_OPEN_S = 60.0  # S3 is asked for the bucket's region
_FSSPEC = ("fsspec+", "hf://")  # a URI whose path is the rest of it, as it is
_PATH_CHARACTERS = "/%:@!$&'()*+,;="  # beside letters, digits, and "-._~": RFC 3986, 3.3
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ELSEWHERE = "put credentials into the environment of every node (for s3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
_USER = {"abfs", "abfss", "gs", "gcs", "hdfs"}  # schemes whose part before an "@" is a container, a role or a name
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def join(root: str, name: str) -> str:
    """The path or URI of `name` under `root`: a local path, or a pyarrow filesystem URI with its options after `?`.

    ValueError when `name` is not a plain file name.
    """
    if not name or name != os.path.basename(name) or name.startswith("."):
        raise ValueError(f"shard name: found {name!r}, expected a plain file name that does not start with a dot")
    if "://" not in root:
        return os.path.join(os.path.abspath(root), name)
    base, mark, options = (root, "", "") if root.startswith(_FSSPEC) else standard(root).partition("?")
    scheme, _, path = base.partition("://")
    return f"{scheme}://{path.rstrip('/')}/{quote(name)}{mark}{options}"


def standard(uri: str) -> str:
    """The URI with every character of its path escaped that a URI keeps for itself: "#", a space, "é", a lone "%".

    Escapes stay as they are, "?" begins the options, and a URI in this form is its own. ValueError names the URI when
    it is none.
    """
    if uri.startswith(_FSSPEC):
        return uri
    if _CONTROL.search(uri):
        raise ValueError(f"{uri!r}: found a control character, expected a URI")
    try:
        parts = urlsplit(uri, allow_fragments=False)
    except ValueError as error:
        raise ValueError(f"{uri}: found {error}, expected a path or a URI that pyarrow can open") from error
    path = quote(_LONE_PERCENT.sub("%25", parts.path), safe=_PATH_CHARACTERS)
    return f"{parts.scheme}://{parts.netloc}{path}" + (f"?{parts.query}" if parts.query else "")


def options_of(uri: str) -> dict[str, str]:
    """What follows the `?`. ValueError for what is no URI, which the message does not repeat."""
    try:
        return dict(parse_qsl(urlsplit(uri, allow_fragments=False).query, keep_blank_values=True))
    except ValueError:
        raise ValueError(f"{uri.partition('://')[0]}://...: found no URI, expected one that pyarrow can open") from None


def refuse_credentials(uri: str) -> None:
    """ValueError for a URI with a password, key or token in it, or an option that may be one: neither is repeated.

    A shard's URI is in the manifest, its root in config.toml.
    """
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return
    scheme, rest = scheme.lower(), unquote(rest)
    has_user = scheme.removeprefix("fsspec+") not in _USER and "@" in re.split("[/?]", rest)[0]
    if has_user or _PASSWORD.match(rest if scheme.endswith("file") else rest.lstrip("/")):
        raise ValueError(
            f"{scheme}://...: found credentials in the URI, expected none, since a run's files repeat it: {_ELSEWHERE}"
        )
    given = dict.fromkeys(re.findall(r"#([^/?&;#=]*)=", rest), "#")  # a name may have a "#", and no option
    if is_opaque := uri.lower().startswith(_FSSPEC):
        given |= dict.fromkeys(re.findall(r"[?&;]([^/?&;]*)=", rest), "")
    else:
        given |= options_of(uri)
    taken = () if is_opaque else OPTIONS.get(scheme, ())
    if bad := [name for name, value in given.items() if name not in taken or not _PLAIN.fullmatch(value)]:
        which = f"the option {bad[0]}" if bad[0] in taken else f"option {list(given).index(bad[0]) + 1}"
        expected = f"one of {', '.join(taken)} with a plain value" if taken else "none"
        raise ValueError(
            f"{scheme}://...: found {which} of the URI, which may hold a credential, expected {expected}, since a "
            f"run's files repeat it: {_ELSEWHERE}"
        )


def locate(uri: str) -> tuple[pafs.FileSystem | None, str]:
    """(filesystem, path inside it); None stands for the local disk, which has stronger guarantees of its own.

    ValueError names the URI when pyarrow cannot read it or when it holds credentials; OSError when what it needs is
    not here, or when it does not answer.
    """
    if "://" not in uri:
        return None, uri
    refuse_credentials(uri)
    try:
        found, path = within(_OPEN_S, partial(pafs.FileSystem.from_uri, _hasty(standard(uri))))
    except OSError as error:
        if isinstance(error.__cause__, (ValueError, ImportError, NotImplementedError)):  # ImportError: of fsspec+
            raise ValueError(
                f"{uri}: found {error.__cause__}, expected a path or a URI that pyarrow can open"
            ) from error
        first = first_line(error)  # without Java's libraries, HDFS lists every place where it looked
        raise OSError(f"cannot open {uri!r}: {first}") from error
    if isinstance(found, pafs.LocalFileSystem):
        return None, path
    return (_impatient(found, uri) if found.type_name == "s3" else found), path


def _hasty(uri: str) -> str:
    """The URI with a limit on retries, where its store takes one there and none is given."""
    if not uri.startswith(("gs://", "gcs://")) or "retry_limit_seconds" in options_of(uri):
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}{_GCS_RETRIES}"


def _impatient(found: pafs.FileSystem, uri: str) -> pafs.FileSystem:
    """The same S3 client with few attempts, which a URI cannot ask for.

    It is made of what the first one says of itself when it is pickled, so what that read in the environment holds
    (AWS_ENDPOINT_URL). As it is where the URI has an option that is not among those.
    """
    _, (options,) = found.__reduce__()
    if not options_of(uri).keys() <= options.keys():
        return found
    retry = pafs.AwsStandardS3RetryStrategy(max_attempts=_S3_ATTEMPTS)
    return pafs.S3FileSystem(**options, retry_strategy=retry)
