"""The process that trains: device, CPU threads, ranks, random seeds."""

import os
import random

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import nn

from paddleseg_ext.errors import ConfigError
from paddleseg_ext.models.weights import running_statistics


def set_device(device: str) -> str:
    """Use 'gpu', 'xpu', 'npu' or 'mlu' where this build of Paddle and the machine have it, else the CPU; returns which."""
    available = {
        "gpu": paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0,
        "xpu": paddle.is_compiled_with_xpu(),
        "npu": "npu" in paddle.device.get_all_custom_device_type(),
        "mlu": "mlu" in paddle.device.get_all_custom_device_type(),
    }
    chosen = device if available.get(device) else "cpu"
    paddle.set_device(chosen)
    if chosen == "cpu":
        use_all_cores()
    return chosen


def use_all_cores() -> None:
    """Paddle uses one CPU thread unless told otherwise; give each local process its share of the cores."""
    paddle.base.core.set_num_threads(threads())


def threads() -> int:
    """This process's share of the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local_ranks = int(os.environ.get("PADDLE_LOCAL_SIZE", world_size()))
    return max(cores // max(local_ranks, 1), 1)


def device_in_words() -> str:
    """What computes here: the accelerator's name, or how many threads of the CPU."""
    device = paddle.get_device()
    if device.startswith("gpu"):
        return paddle.device.cuda.get_device_name()
    return f"{threads()} CPU thread{'s' if threads() > 1 else ''}" if device == "cpu" else device


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size()


def rank() -> int:
    """The number of this process among them; 0 is the one that writes."""
    return dist.get_rank()


def join_ranks() -> None:
    """Connect to the other processes that `paddle.distributed.launch` started, if there are any."""
    if world_size() > 1 and not dist.is_initialized():
        dist.init_parallel_env()


def agree(flag: bool) -> bool:
    """Whether the flag is set on any rank. Every rank must ask."""
    if world_size() == 1:
        return flag
    value = paddle.to_tensor([int(flag)])
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def from_first(number: int) -> int:
    """Rank 0's number, on every rank."""
    if world_size() == 1:
        return number
    value = paddle.to_tensor([number], dtype="int64")
    dist.broadcast(value, src=0)
    return int(value.item())


def wait_for_all() -> None:
    """Go on when every rank has come here."""
    if world_size() > 1:
        dist.barrier()


def sum_over_ranks(array: np.ndarray) -> np.ndarray:
    """The exact sum of an int64 array over all ranks."""
    if world_size() == 1:
        return array
    value = paddle.to_tensor(array)
    dist.all_reduce(value)
    return value.numpy()


def mean_over_ranks(values: paddle.Tensor) -> paddle.Tensor:
    """The mean of a tensor over all ranks."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world_size()


def share_statistics(model: nn.Layer) -> None:
    """Give every rank rank 0's running statistics: they differ where batch norm is not synchronised."""
    if world_size() > 1:
        for buffer in running_statistics(model).values():
            dist.broadcast(buffer, src=0)


def seed_everything(*entropy: int) -> None:
    """Seed Paddle's, NumPy's and Python's global generators from the given numbers."""
    state = np.random.SeedSequence(entropy).generate_state(1)
    paddle.seed(int(state[0]))
    np.random.seed(state[0])
    random.seed(int(state[0]))


def check_precision(precision: str, device: str) -> None:
    """Raise ConfigError where the device cannot train at this precision."""
    if precision == "fp16" and device == "cpu":
        raise ConfigError("--precision fp16 needs a GPU; a CPU trains in fp32")
