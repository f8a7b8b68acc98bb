"""Devices that are not here: compile for a TPU slice or for GPUs on a machine that has neither.

A compile-only device can be put into a mesh, and a step lowered for that mesh compiles with the real
compiler of that machine; it can not run. The extra `aot` brings the compilers: libtpu, and CUDA's
without its libraries.
"""

import contextlib
import os
import re
from typing import Any

import jax

from jaxdist.errors import Refused

EXAMPLES = "cpu, cpu:8, v4:2x2x1, v5e:4x4, v5p:2x2x4, v6e:4x4, tpu7x:2x2x1, h100:8"
# Before libtpu is loaded: do not look for a real TPU, and let several processes compile.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
# NVIDIA's published figures of an H100 SXM5, in the form that XLA's compiler takes.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  shared_memory_per_block: 49152
  shared_memory_per_core: 233472  threads_per_core_limit: 2048  core_count: 132
  fpus_per_core: 128  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535
  block_dim_limit_z: 65535  memory_bandwidth: 3352320000000  l2_cache_size: 52428800
  clock_rate_ghz: 1.98  device_memory_size: 84929347584  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
}
runtime_version { major: 13 minor: 0 patch: 0 }
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def devices(target: str) -> list[Any]:
    """The devices of a target, to put into a mesh.

    Args:
      target: `cpu` (this machine's), `cpu:8` (eight simulated ones), a TPU generation and the shape of
        its slice (`v5e:4x4`; several slices as `v5p:2x2x2*4`), or `h100:8` (GPUs of one host).

    Returns:
      JAX devices; those of a TPU or GPU can be compiled for, and not run.

    Raises:
      Refused: an unknown target, or its compiler is not installed.

    Example:
      >>> devices("cpu") == jax.devices()
      True
    """
    cpu = re.fullmatch(r"cpu(?::(\d+))?", target)
    if cpu:
        return _simulated(int(cpu[1])) if cpu[1] else jax.devices("cpu")
    gpu = re.fullmatch(r"h100:(\d+)", target)
    tpu = re.fullmatch(r"((?:v[2-6]\w?|tpu7x):[\dx]+)(?:\*(\d+))?", target)
    if not (gpu or tpu):
        raise Refused(f"there is no target {target!r}; write one like {EXAMPLES}")
    from jax.experimental import topologies

    try:
        if gpu:
            described = topologies.get_topology_desc(
                "h100", "cuda", target_config=H100, topology=f"1x1x{gpu[1]}"
            )
        else:
            assert tpu
            for name, value in ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            slices = {"num_slices": int(tpu[2])} if tpu[2] else {}
            described = topologies.get_topology_desc(platform="tpu", topology_name=tpu[1], **slices)
    except Exception as error:  # whatever the plugin raises when it is missing or refuses a shape
        said = " ".join(str(error).split())[:200]
        raise Refused(
            f"target {target!r} can not be compiled for here: {said}; "
            f"pip install 'jaxdist[aot]' brings the compilers, and shapes are like those of {EXAMPLES}"
        ) from error
    return list(described.devices)


def _simulated(count: int) -> list[Any]:
    # If JAX has made its devices already it refuses; there may be enough of them.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)
    made = jax.devices("cpu")
    if len(made) < count:
        raise Refused(
            f"target cpu:{count}: this process has {len(made)} CPU devices already; "
            f"set JAX_NUM_CPU_DEVICES={count} before it starts"
        )
    return made[:count]
