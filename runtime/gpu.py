"""The NVIDIA GPU of this machine, asked of the CUDA driver."""

from ..artifacts import InputError
from ..kernels.gpu.driver import CudaUnavailableError, Driver
from .engines import Gpu


def find_gpu() -> Gpu:
    """The first GPU.

    Raises:
        InputError: there is no NVIDIA driver, or no GPU.
    """
    try:
        driver = Driver.open()
        return Gpu(driver.device_name(), driver.compute_capability())
    except CudaUnavailableError as error:
        raise InputError(f"no NVIDIA GPU can be used here: {error}") from error
