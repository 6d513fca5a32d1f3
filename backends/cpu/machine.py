"""Compile kernels for the processor that is here, and run them on torch's own threads."""

import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .emitter import TEAM

Entry = Callable[[int], None]


class Processor:
    """Code for this processor, compiled when it is first wanted; kept as long as the process."""

    def __init__(self) -> None:
        from llvmlite import binding

        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        self.features: Mapping[str, bool] = binding.get_host_cpu_features()
        self._machine = binding.Target.from_default_triple().create_target_machine(
            cpu=binding.get_host_cpu_name(), features=self.features.flatten(), opt=2
        )
        self._engines: list[Any] = []

    def compile(self, text: str) -> Callable[[str], int]:
        """Compile a module; gives addresses of its functions by name."""
        from llvmlite import binding

        module = binding.parse_assembly(text)
        module.verify()
        options = binding.create_pipeline_tuning_options(speed_level=2)
        options.loop_unrolling = options.slp_vectorization = options.loop_vectorization = False
        builder = binding.create_pass_builder(self._machine, options)
        builder.getModulePassManager().run(module, builder)
        engine = binding.create_mcjit_compiler(module, self._machine)
        engine.finalize_object()
        self._engines.append(engine)
        found: Callable[[str], int] = engine.get_function_address
        return found


@functools.cache
def processor() -> Processor:
    """The one of this process."""
    return Processor()


class Team:
    """The threads of torch: kernels run on them, so that no core has two to run."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._run = library.GOMP_parallel
        self._run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self._run.restype = None
        names = ("omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier")
        self.functions = tuple(
            ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in names
        )

    def run(self, entry: int, operands: int, threads: int) -> None:
        """Run a function in every thread."""
        self._run(entry, operands, threads, 0)


@functools.cache
def team() -> Team | None:
    """The OpenMP runtime that torch is linked with; None where it has no such functions."""
    folder = Path(torch.__file__).parent / "lib"
    for path in sorted(folder.glob("libtorch_cpu.*")):
        try:
            return Team(ctypes.CDLL(str(path)))
        except (OSError, AttributeError):
            continue
    return None


class Kernel:
    """A compiled kernel."""

    def __init__(self, address: Callable[[str], int], name: str, operands: Sequence[str]) -> None:
        self._team, alone = address(f"{name}_team"), address(f"{name}_alone")
        self._alone = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(alone)
        self._names = tuple(operands)
        self._kind = ctypes.c_int64 * (len(TEAM) + len(operands))

    def __call__(self, **given: int) -> None:
        """Run it on as many threads as torch has."""
        threads, found = torch.get_num_threads(), team()
        values = [given[name] for name in self._names]
        if threads == 1 or found is None:
            # Held by a name until the call is over: an address alone keeps nothing.
            operands = self._kind(0, 0, 0, *values)
            self._alone(ctypes.addressof(operands))
        else:
            operands = self._kind(*found.functions, *values)
            found.run(self._team, ctypes.addressof(operands), threads)
