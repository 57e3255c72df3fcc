"""Stands in for `sgl_kernel`, installed as a module of that name.

SGLang imports kernels from it unconditionally, and its CPU build is not on PyPI. Imports
succeed; a kernel that is really called raises, naming itself, so a wrong guess about which
code path a CPU takes is seen at once.
"""
# SGLang compares this with the oldest kernel package it accepts.
__version__ = "0.4.10"


def __getattr__(name):
    # Python itself probes modules for dunder names (__path__, __wrapped__): those must be absent.
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args, **kwargs):
        raise NotImplementedError(f"sgl_kernel.{name}: SGLang's CPU kernels are not on PyPI")

    missing.__name__ = name
    return missing
