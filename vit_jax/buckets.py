"""Google Cloud Storage: finds the server, the credentials and the bucket.

Three libraries read and write `gs://` paths: gcsfs (through epath) whole files,
TensorStore the arrays of checkpoints, and ArrayRecord the records of packed
data. `connect` makes them use the same server, and explains within seconds why
a bucket cannot be used; the libraries by themselves try for minutes.

For tests without Google's service, STORAGE_EMULATOR_HOST names a server on this
machine, such as fake-gcs-server. No credentials are looked up then.
"""

import functools
import importlib.util
import json
import os
from typing import Any
import urllib.error
import urllib.request

EMULATOR = 'STORAGE_EMULATOR_HOST'
_SERVICE = 'https://storage.googleapis.com'
_SECONDS = 10  # for the answer to the first request
_SCOPE = 'https://www.googleapis.com/auth/devstorage.read_write'
_LOGIN = (
  'Log in with `gcloud auth application-default login`, or set '
  'GOOGLE_APPLICATION_CREDENTIALS to the key file of a service account'
)


class BucketError(ValueError):
  """A bucket cannot be used; the message says why and what to do."""


@functools.cache
def connect(bucket: str) -> None:
  """Prepares the libraries for a bucket, once in a process.

  Args:
    bucket: its name, without gs://.

  Raises:
    BucketError: the extra `gcs` is not installed, there are no credentials,
      they do not suffice, the server does not answer, or there is no such
      bucket.
  """
  if not bucket:
    raise BucketError('gs:// lacks a bucket: write gs://BUCKET/PATH')
  if importlib.util.find_spec('gcsfs') is None:
    raise BucketError(
      f"gs://{bucket} needs the package gcsfs: pip install 'vit_jax[gcs]'"
    )
  server, token = _emulator(), None
  if server:
    _use_emulator(server)
  else:
    server, token = _SERVICE, _access_token(bucket)
  _ask(bucket, server, token)
  _configure(anonymous=token is None)


def _emulator() -> str:
  """The address of the server that replaces Google's; '' if there is none."""
  address = os.environ.get(EMULATOR, '')
  if address and '://' not in address:
    address = f'http://{address}'
  return address.rstrip('/')


def _use_emulator(server: str) -> None:
  """Makes every library use the server, without looking for credentials.

  The variables are those that the libraries read when they are used for the
  first time; processes that are started later inherit them.
  """
  os.environ[EMULATOR] = server  # gcsfs needs the scheme
  os.environ.setdefault('CLOUD_STORAGE_EMULATOR_ENDPOINT', server)
  os.environ.setdefault('TENSORSTORE_GCS_HTTP_URL', server)
  # TensorStore takes this token instead of looking for credentials.
  os.environ.setdefault('GOOGLE_AUTH_TOKEN_FOR_TESTING', 'emulator')


def _access_token(bucket: str) -> str | None:
  """The token of the user's credentials; None if there are none.

  Raises:
    BucketError: there are credentials that are not valid any more.
  """
  import google.auth
  import google.auth.exceptions
  import google.auth.transport.requests

  request = google.auth.transport.requests.Request()
  try:
    credentials, _ = google.auth.default(scopes=[_SCOPE], request=request)
  except google.auth.exceptions.DefaultCredentialsError:
    return None
  try:
    credentials.refresh(request)
  except google.auth.exceptions.GoogleAuthError as e:
    raise BucketError(
      f'gs://{bucket}: the credentials are not accepted ({_first_line(e)}). '
      f'{_LOGIN}'
    ) from e
  return credentials.token


def _ask(bucket: str, server: str, token: str | None) -> None:
  """Lists one object; raises BucketError if that is refused."""
  request = urllib.request.Request(
    f'{server}/storage/v1/b/{bucket}/o?maxResults=1&fields=items(name)',
    headers={'Authorization': f'Bearer {token}'} if token else {},
  )
  try:
    with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
      json.load(answer)
  except urllib.error.HTTPError as e:
    if e.code == 404:
      raise BucketError(
        f'there is no bucket gs://{bucket}: correct the name, or make it with '
        f'`gcloud storage buckets create gs://{bucket}`'
      ) from e
    if e.code in (401, 403):
      raise BucketError(
        f'gs://{bucket}: the credentials lack the permission to list objects: '
        'give the account the role Storage Object User for this bucket'
        if token
        else f'gs://{bucket} needs credentials, and there are none. {_LOGIN}'
      ) from e
    # Other answers, such as that the service is busy, may pass: the libraries
    # ask again.
  except (OSError, ValueError) as e:
    raise BucketError(
      f'gs://{bucket}: {server} does not answer ({_first_line(e)}). Check the '
      f'network and the variable {EMULATOR}, which names a server for tests'
    ) from e


def _configure(anonymous: bool) -> None:
  """Sets the options of gcsfs."""
  if anonymous:
    # gcsfs would look for credentials to find the type of the bucket.
    os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
  # One backend of epath for gs://, whether TensorFlow is installed or not.
  os.environ.setdefault('EPATH_USE_TF', 'false')
  import fsspec.config

  options: dict[str, Any] = fsspec.config.conf.setdefault('gcs', {})
  # A listing that is kept would hide what other processes write.
  options.setdefault('use_listings_cache', False)
  if anonymous:
    options.setdefault('token', 'anon')


def _first_line(error: Exception) -> str:
  reason = getattr(error, 'reason', error)
  return str(reason).split('\n')[0] or type(error).__name__
