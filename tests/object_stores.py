"""Servers on loopback that speak as S3 and Google Cloud Storage do, and the environment to reach them."""

import contextlib
import gc
import logging
import os
import secrets
import socket
import warnings
from collections.abc import Iterator

BUCKET = "bucket"


@contextlib.contextmanager
def serving(scheme: str) -> Iterator[dict[str, str]]:
    """Inside there is a bucket, `s3://bucket` or `gs://bucket`, for this process too.

    Yields:
      What the environment of another process needs to find it.
    """
    made = {"s3": _s3, "gs": _gs}[scheme]
    with made() as environment:
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        try:
            _forget(scheme)
            yield environment
        finally:
            _forget(scheme)
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def fresh(scheme: str) -> str:
    """A URL below which there is nothing; what a server holds outlives it in this process."""
    return f"{scheme}://{BUCKET}/{secrets.token_hex(6)}"


@contextlib.contextmanager
def _s3() -> Iterator[dict[str, str]]:
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    where = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    client = boto3.client(
        "s3",
        endpoint_url=where["AWS_ENDPOINT_URL"],
        region_name=where["AWS_DEFAULT_REGION"],
        aws_access_key_id="a",
        aws_secret_access_key="b",
    )
    client.create_bucket(Bucket=BUCKET)
    client.close()
    try:
        yield {**keys, **where}
    finally:
        server.stop()


@contextlib.contextmanager
def _gs() -> Iterator[dict[str, str]]:
    from gcp_storage_emulator.server import create_server

    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
    server.start()
    try:
        yield {
            "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",
            "FSSPEC_GS_TOKEN": "anon",
            # It would ask for the kind of the bucket by gRPC, which the emulator does not speak.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
    finally:
        server.stop()


def _forget(scheme: str) -> None:
    """Makes fsspec look at the environment anew: it keeps file systems, and read its settings long ago."""
    import fsspec

    fsspec.config.conf.pop(scheme, None)
    fsspec.config.set_conf_env(fsspec.config.conf)
    fsspec.get_filesystem_class(scheme).clear_instance_cache()
    # Both packages leave their connections to the collector, which would complain in some later test.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()
